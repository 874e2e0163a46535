//! candle as a process that `belay-bench kernels` asks: `moe TOKENS TIMES` on standard input, a line of JSON for each.
//!
//! Usage: `RAYON_NUM_THREADS=THREADS candle-peer IDS`. Experts in Q4_0, since candle has no MXFP4; one `QMatMul` for each projection of an expert,
//! since it has no grouped product on CPUs. 128 experts, more of which would only take longer to make.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::io::{BufRead, Write};
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result};
use candle_core::quantized::{GgmlDType, QMatMul, QStorage, QTensor};
use candle_core::{DType, Device, Module, Tensor};

const HIDDEN: usize = 4096;
const INNER: usize = 2048;
const EXPERTS: usize = 128;
const ACTIVE: usize = 6;
/// Bits of a weight in Q4_0: 16 bytes of codes and 2 of a scale for 32 of them.
const BITS: f64 = 4.5;

/// Gate, up and the way back.
type Expert = [QMatMul; 3];

fn random(rows: usize, cols: usize) -> Result<QTensor> {
    let values = Tensor::randn(0f32, 0.02, (rows, cols), &Device::Cpu)?;
    Ok(QTensor::quantize(&values, GgmlDType::Q4_0)?)
}

/// The same values in memory of its own.
fn copy(of: &QTensor) -> Result<QMatMul> {
    let data = Cow::Owned(of.data()?.to_vec());
    let storage = QStorage::from_data(data, &Device::Cpu, GgmlDType::Q4_0)?;
    Ok(QMatMul::from_arc(Arc::new(QTensor::new(storage, of.shape().clone())?))?)
}

/// What the tokens' experts make of them.
fn layer(experts: &[Expert], x: &Tensor, ids: &[i32]) -> Result<usize> {
    let tokens = ids.len() / ACTIVE;
    let mut rows: BTreeMap<i32, Vec<u32>> = BTreeMap::new();
    for (i, expert) in ids.iter().enumerate() {
        rows.entry(*expert).or_default().push((i / ACTIVE) as u32);
    }
    let mut y = Tensor::zeros((tokens, HIDDEN), DType::F32, &Device::Cpu)?;
    for (expert, rows) in &rows {
        let [gate, up, down] = &experts[*expert as usize];
        let rows = Tensor::from_slice(rows, rows.len(), &Device::Cpu)?;
        let own = x.index_select(&rows, 0)?;
        let inner = (gate.forward(&own)?.silu()? * up.forward(&own)?)?;
        let out = (down.forward(&inner)? * (1.0 / ACTIVE as f64))?;
        y = y.index_add(&rows, &out, 0)?;
    }
    std::hint::black_box(&y);
    Ok(rows.len())
}

fn main() -> Result<()> {
    let folder = std::env::args().nth(1).context("folder of expert ids")?;
    let made = [random(INNER, HIDDEN)?, random(INNER, HIDDEN)?, random(HIDDEN, INNER)?];
    let expert = |_| Ok([copy(&made[0])?, copy(&made[1])?, copy(&made[2])?]);
    let experts: Vec<Expert> = (0..EXPERTS).map(expert).collect::<Result<_>>()?;
    let mut out = std::io::stdout();
    writeln!(out, "{}", serde_json::json!({"ready": 1, "experts": EXPERTS, "format": "q4_0"}))?;
    let mut turn = 0;
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        let words: Vec<&str> = line.split_whitespace().collect();
        let ["moe", tokens, times] = words[..] else { anyhow::bail!("not a command: {line:?}") };
        let (tokens, times): (usize, usize) = (tokens.parse()?, times.parse()?);
        let raw = std::fs::read(format!("{folder}/ids_{EXPERTS}_{tokens}.bin"))?;
        let (numbers, _) = raw.as_chunks::<4>();
        let ids: Vec<i32> = numbers.iter().map(|bytes| i32::from_le_bytes(*bytes)).collect();
        let sets: Vec<&[i32]> = ids.chunks_exact(tokens * ACTIVE).collect();
        let x = Tensor::randn(0f32, 0.1, (tokens, HIDDEN), &Device::Cpu)?;
        let (mut ms, mut bytes) = (Vec::new(), Vec::new());
        // one to warm up, if that is short
        for time in 0..times + usize::from(tokens <= 64) {
            turn += 1;
            let began = Instant::now();
            let used = layer(&experts, &x, sets[turn % sets.len()])?;
            let took = began.elapsed().as_secs_f64() * 1e3;
            if tokens > 64 || time > 0 {
                ms.push(took);
                bytes.push((used * 3 * HIDDEN * INNER) as f64 * BITS / 8.0);
            }
        }
        let flops = (2 * 3 * HIDDEN * INNER * ACTIVE * tokens) as f64;
        writeln!(out, "{}", serde_json::json!({"ms": ms, "bytes": bytes, "flops": flops}))?;
        out.flush()?;
    }
    Ok(())
}

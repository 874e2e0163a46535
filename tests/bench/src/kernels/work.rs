//! The process whose kernels are measured: reads commands from its standard input, answers each with a line of JSON.
//!
//! - `moe TOKENS TIMES`: the routed part of a layer, with other experts each time.
//! - `dense FORMAT TOKENS TIMES`: a linear of D × D, another one each time.
//! - `attend selected|visible CONTEXT TOKENS TIMES`: attention of the last tokens of a context.
//! - `index CONTEXT TOKENS TIMES`: the indexer's choice of entries for them.
//! - `read THREADS TIMES`: memory in pieces of a decoding step's experts.
//! - `peak KIND THREADS`: products in registers.

use std::collections::BTreeSet;
use std::io::{BufRead, Write};
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use belay_backend::{Backend, Bytes, ExpertRows, Experts, Format, Precision, Route, StoredMatrix};
use belay_cpu::limits::{self, Peak};
use belay_cpu::{CpuBackend, CpuMatrix, Level, Products, Weights};
use serde::{Deserialize, Serialize};

use super::{ACTIVE, EXPERTS, HIDDEN, INNER, memory};

/// What the kernels are to be.
#[derive(Clone, Copy, Debug)]
pub struct Setup {
    /// Instruction set; the machine's best if none is given.
    pub level: Option<Level>,
    /// What inputs are multiplied as.
    pub products: Products,
    /// Threads.
    pub threads: usize,
}

/// Answer to a command.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Timing {
    /// Milliseconds of each repetition.
    #[serde(default)]
    pub ms: Vec<f64>,
    /// Bytes of weights that each of them reads.
    #[serde(default)]
    pub bytes: Vec<f64>,
    /// Additions and multiplications of one repetition.
    #[serde(default)]
    pub flops: f64,
}

struct Expert {
    w1: CpuMatrix,
    w3: CpuMatrix,
    w2: CpuMatrix,
}

/// What is measured, made when it is first needed.
pub(super) struct Work {
    pub(super) backend: CpuBackend,
    experts: Vec<Expert>,
    /// All of their bytes.
    layer: Option<Arc<Bytes>>,
    dense: Vec<(Format, Vec<CpuMatrix>)>,
    /// Of what is drawn next.
    state: u64,
    /// Matrix that was read last.
    turn: usize,
}

/// Serves until the input ends.
///
/// # Errors
/// A command that is none, or no memory.
pub fn serve(setup: Setup) -> Result<()> {
    let level = setup.level.unwrap_or_else(Level::detect);
    let backend = CpuBackend::with(level, setup.threads)
        .with_context(|| format!("this machine has no {level}"))?
        .with_products(setup.products)
        // they are in huge pages already
        .with_weights(Weights::Mapped);
    let mut work =
        Work { backend, experts: Vec::new(), layer: None, dense: Vec::new(), state: 0x2545_f491, turn: 0 };
    let mut out = std::io::stdout().lock();
    work.need_layer()?;
    writeln!(out, "{}", serde_json::json!({ "ready": 1, "what": work.backend.describe() }))?;
    out.flush()?;
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        let words: Vec<&str> = line.split_whitespace().collect();
        let answer = work.answer(&words).with_context(|| format!("command {line:?}"))?;
        writeln!(out, "{}", serde_json::to_string(&answer)?)?;
        out.flush()?;
    }
    Ok(())
}

impl Work {
    fn answer(&mut self, words: &[&str]) -> Result<Timing> {
        match words {
            ["moe", tokens, times] => self.moe(tokens.parse()?, times.parse()?),
            ["dense", format, tokens, times] => self.dense(named(format)?, tokens.parse()?, times.parse()?),
            ["attend", kind @ ("selected" | "visible"), context, tokens, times] => {
                self.attend(*kind == "selected", context.parse()?, tokens.parse()?, times.parse()?)
            }
            ["index", context, tokens, times] => {
                self.index(context.parse()?, tokens.parse()?, times.parse()?)
            }
            ["read", threads, times] => self.read(threads.parse()?, times.parse()?),
            ["peak", kind, threads] => peak(kind, threads.parse()?),
            _ => bail!("not a command"),
        }
    }

    /// The next number without a pattern.
    fn draw(&mut self, below: usize) -> usize {
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        ((self.state >> 16) % below as u64) as usize
    }

    pub(super) fn input(&mut self, count: usize) -> Result<<CpuBackend as Backend>::Buffer> {
        let values: Vec<f32> = (0..count).map(|_| self.draw(2001) as f32 / 10_000.0 - 0.1).collect();
        let mut buffer = self.backend.alloc(count)?;
        self.backend.write(&mut buffer, 0, &values)?;
        Ok(buffer)
    }

    fn need_layer(&mut self) -> Result<()> {
        if self.layer.is_some() {
            return Ok(());
        }
        let (data, scale) = Format::Fp4.bytes(INNER, HIDDEN);
        // scales of usual weights: 2^-9 to 2^-5
        let all = Arc::new(memory::random(3 * EXPERTS * data, 1, |byte| byte)?);
        let scales = Arc::new(memory::random(3 * EXPERTS * scale, 2, |byte| 118 + byte % 5)?);
        for expert in 0..EXPERTS {
            let matrix = |number: usize, rows: usize, cols: usize| {
                let at = 3 * expert + number;
                let data = memory::part(&all, at * data, data)?;
                let scale = memory::part(&scales, at * scale, scale)?;
                let stored = StoredMatrix::new(rows, cols, Format::Fp4, data, scale)?;
                anyhow::Ok(self.backend.matrix(stored, Precision::Expert)?)
            };
            let (w1, w3) = (matrix(0, INNER, HIDDEN)?, matrix(1, INNER, HIDDEN)?);
            let w2 = matrix(2, HIDDEN, INNER)?;
            self.experts.push(Expert { w1, w3, w2 });
        }
        self.layer = Some(all);
        Ok(())
    }

    /// Experts of each token, all different.
    fn routes(&mut self, tokens: usize) -> Vec<(u32, Route)> {
        let mut routes = Vec::with_capacity(tokens * ACTIVE);
        for row in 0..tokens as u32 {
            let mut chosen = BTreeSet::new();
            while chosen.len() < ACTIVE {
                chosen.insert(self.draw(EXPERTS) as u32);
            }
            let weight = 1.0 / ACTIVE as f32;
            routes.extend(chosen.into_iter().map(|expert| Route { row, expert, weight }));
        }
        let mut routes: Vec<(u32, Route)> = (0..).zip(routes).collect();
        routes.sort_by_key(|&(place, route)| (route.expert, place));
        routes
    }

    fn moe(&mut self, tokens: usize, times: usize) -> Result<Timing> {
        let x = self.input(tokens * HIDDEN)?;
        let mut y = self.backend.alloc(tokens * ACTIVE * HIDDEN)?;
        let mut timing =
            Timing { flops: (tokens * ACTIVE * 3 * 2 * HIDDEN * INNER) as f64, ..Timing::default() };
        let bytes_of_one = {
            let (data, scale) = Format::Fp4.bytes(INNER, HIDDEN);
            3 * (data + scale)
        };
        // one to warm up what is not weights
        for time in 0..times + usize::from(tokens <= 64) {
            let routes = self.routes(tokens);
            let groups: Vec<&[(u32, Route)]> = routes.chunk_by(|a, b| a.1.expert == b.1.expert).collect();
            let experts: Vec<ExpertRows<'_, CpuBackend>> = groups
                .iter()
                .map(|rows| {
                    let Expert { w1, w3, w2 } = &self.experts[rows[0].1.expert as usize];
                    ExpertRows { w1, w3, w2, rows }
                })
                .collect();
            let op = Experts { x: &x, width: HIDDEN, inner: INNER, limit: 10.0, experts: &experts };
            let began = Instant::now();
            ensure!(self.backend.experts(&op, &mut y)?, "the backend has no experts");
            let ms = began.elapsed().as_secs_f64() * 1e3;
            if tokens > 64 || time > 0 {
                timing.ms.push(ms);
                timing.bytes.push((groups.len() * bytes_of_one) as f64);
            }
        }
        Ok(timing)
    }

    fn need_dense(&mut self, format: Format) -> Result<usize> {
        if let Some(at) = self.dense.iter().position(|(of, _)| *of == format) {
            return Ok(at);
        }
        let (data, scale) = format.bytes(HIDDEN, HIDDEN);
        // neither NaN nor infinity: a bf16 whose high byte is 0x3c or 0xbc, e4m3 below its last codes
        let keep: fn(u8) -> u8 = match format {
            Format::Bf16 => |byte| byte & 0x80 | 0x3c,
            _ => |byte| byte & 0xf7,
        };
        let mut matrices = Vec::new();
        for seed in 0..16 {
            let data = memory::random(data, 100 + seed, keep)?;
            let stored = StoredMatrix::new(HIDDEN, HIDDEN, format, data, vec![122; scale].into())?;
            matrices.push(self.backend.matrix(stored, Precision::Working)?);
        }
        self.dense.push((format, matrices));
        Ok(self.dense.len() - 1)
    }

    fn dense(&mut self, format: Format, tokens: usize, times: usize) -> Result<Timing> {
        let at = self.need_dense(format)?;
        let x = self.input(tokens * HIDDEN)?;
        let mut y = self.backend.alloc(tokens * HIDDEN)?;
        let (data, scale) = format.bytes(HIDDEN, HIDDEN);
        let mut timing = Timing { flops: (2 * tokens * HIDDEN * HIDDEN) as f64, ..Timing::default() };
        for time in 0..=times {
            // in turn: what was read last time is no longer in any cache
            self.turn = (self.turn + 1) % self.dense[at].1.len();
            let which = self.turn;
            let began = Instant::now();
            self.backend.linear(&self.dense[at].1[which], &x, tokens, &mut y)?;
            if time > 0 {
                timing.ms.push(began.elapsed().as_secs_f64() * 1e3);
                timing.bytes.push((data + scale) as f64);
            }
        }
        Ok(timing)
    }

    /// As many experts as a token has, each dealt to all threads.
    fn read(&mut self, threads: usize, times: usize) -> Result<Timing> {
        let all = Arc::clone(self.layer.as_ref().context("no layer")?);
        let expert = all.len() / EXPERTS;
        let share = expert / threads / 512 * 512;
        let mut timing = Timing::default();
        for _ in 0..times {
            let chosen: Vec<usize> = (0..ACTIVE).map(|_| self.draw(EXPERTS)).collect();
            let barrier = std::sync::Barrier::new(threads);
            let run = |thread: usize| {
                barrier.wait();
                let began = Instant::now();
                for &at in &chosen {
                    std::hint::black_box(limits::read(&all[at * expert + thread * share..][..share]));
                }
                barrier.wait();
                began.elapsed().as_secs_f64() * 1e3
            };
            timing.ms.push(on_threads(threads, &run)?);
            timing.bytes.push((ACTIVE * share * threads) as f64);
        }
        Ok(timing)
    }
}

/// The longest of all.
fn on_threads(threads: usize, run: &(dyn Fn(usize) -> f64 + Sync)) -> Result<f64> {
    std::thread::scope(|scope| {
        let others: Vec<_> = (1..threads).map(|thread| scope.spawn(move || run(thread))).collect();
        let mut longest = run(0);
        for other in others {
            longest = longest.max(other.join().map_err(|_| anyhow::anyhow!("a thread panicked"))?);
        }
        Ok(longest)
    })
}

fn peak(kind: &str, threads: usize) -> Result<Timing> {
    const ROUNDS: u64 = 1_000_000;
    // threads may begin on one core, so not the first time alone
    const TIMES: usize = 7;
    let peak = Peak::ALL.into_iter().find(|peak| peak.name() == kind).context("no such instruction")?;
    if !peak.is_available() {
        return Ok(Timing::default());
    }
    let done = peak.run(1).unwrap_or(0) * ROUNDS * threads as u64;
    let barrier = std::sync::Barrier::new(threads);
    let run = |_: usize| {
        barrier.wait();
        let began = Instant::now();
        std::hint::black_box(peak.run(ROUNDS));
        barrier.wait();
        began.elapsed().as_secs_f64() * 1e3
    };
    let ms = (0..TIMES).map(|_| on_threads(threads, &run)).collect::<Result<_>>()?;
    Ok(Timing { ms, bytes: Vec::new(), flops: done as f64 })
}

fn named(format: &str) -> Result<Format> {
    let known = [Format::Bf16, Format::Fp8, Format::Fp4];
    known.into_iter().find(|known| known.to_string() == format).with_context(|| format!("format {format}"))
}

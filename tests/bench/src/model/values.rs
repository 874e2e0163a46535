//! Bytes of a tensor, from a generator of its own.

use std::io::{self, Write};

use belay_backend::dtype::f32_to_e4m3;
use rand_core::{Rng, SeedableRng};
use rand_pcg::Pcg64Mcg;
use sha2::{Digest, Sha256};

use super::tensors::{Fill, Kind, Tensor};

/// Random bytes that are turned into values at a time.
const CHUNK: usize = 1 << 16;

/// Writes a tensor's bytes.
///
/// # Errors
/// What the sink says.
pub fn write(tensor: &Tensor, seed: u64, sink: &mut impl Write) -> io::Result<()> {
    let mut random = generator(&tensor.name, seed);
    match tensor.fill {
        Fill::Uniform { mean, deviation } => {
            let table = table(tensor.kind, mean, deviation);
            bytewise(&mut random, tensor.elements(), sink, |byte, out| {
                out.extend_from_slice(&table[usize::from(byte)]);
            })
        }
        Fill::Codes => bytewise(&mut random, tensor.elements(), sink, |byte, out| out.push(byte)),
        Fill::Scale { exponent } => {
            // one block in eight each is half and twice as large
            let code = |byte: u8| match byte % 8 {
                0 => exponent - 1,
                1 => exponent + 1,
                _ => exponent,
            };
            bytewise(&mut random, tensor.elements(), sink, |byte, out| out.push((code(byte) + 127) as u8))
        }
        Fill::Distinct { row, limit } => distinct(&mut random, tensor.elements() / row, row, limit, sink),
    }
}

/// PCG, whose stream is fixed by its definition; one for each tensor, so that no tensor depends on another one's size.
fn generator(name: &str, seed: u64) -> Pcg64Mcg {
    let digest = Sha256::new().chain_update(seed.to_le_bytes()).chain_update(name).finalize();
    let mut state = [0; 16];
    state.copy_from_slice(&digest[..16]);
    Pcg64Mcg::from_seed(state)
}

fn bytewise(
    random: &mut Pcg64Mcg,
    mut count: usize,
    sink: &mut impl Write,
    mut value: impl FnMut(u8, &mut Vec<u8>),
) -> io::Result<()> {
    let (mut bytes, mut out) = (vec![0; CHUNK], Vec::new());
    while count > 0 {
        let now = count.min(CHUNK);
        random.fill_bytes(&mut bytes[..now]);
        out.clear();
        bytes[..now].iter().for_each(|&byte| value(byte, &mut out));
        sink.write_all(&out)?;
        count -= now;
    }
    Ok(())
}

/// Stored form of the 256 values of a uniform distribution.
fn table(kind: Kind, mean: f32, deviation: f32) -> Vec<Vec<u8>> {
    // a uniform distribution reaches √3 standard deviations to either side
    let value = |step: u8| mean + deviation * 3f32.sqrt() * (f32::from(step) - 127.5) / 128.0;
    let stored = |value: f32| match kind {
        Kind::Bf16 => value.to_le_bytes()[2..].to_vec(),
        Kind::E4m3 => vec![f32_to_e4m3(value)],
        Kind::F32 | Kind::I64 | Kind::E8m0 | Kind::I8 => value.to_le_bytes().to_vec(),
    };
    (0..=255).map(|step| stored(value(step))).collect()
}

/// Rows of a partial shuffle.
fn distinct(
    random: &mut Pcg64Mcg,
    rows: usize,
    row: usize,
    limit: usize,
    sink: &mut impl Write,
) -> io::Result<()> {
    let mut numbers: Vec<i64> = (0..limit as i64).collect();
    for _ in 0..rows {
        for at in 0..row {
            let other = at + random.next_u32() as usize % (limit - at);
            numbers.swap(at, other);
            sink.write_all(&numbers[at].to_le_bytes())?;
        }
    }
    Ok(())
}

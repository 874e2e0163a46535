//! Every call that the backend's operations make fails once, one after the other, on each chip: an error that names the
//! operation and the call, no object left, and the same operations right afterwards.
#![allow(clippy::unwrap_used, reason = "test code")]

mod chips;
mod common;
#[path = "../../model/tests/common/mod.rs"]
mod model;

use belay_ascend::{AscendBackend, Device, Products};
use belay_backend::{
    Attention, Backend, BackendError, Compress, Entries, Format, HyperShape, PagedRows, Precision, Rotary,
    RowFormat, RowLayout, Rows, Select, StoredMatrix,
};
use chips::{backend_of, on_every_chip};
use common::{KINDS, Sim, some_values};

/// A code that stands for nothing in particular.
const CODE: i32 = 500_999;

fn stored(rows: usize, cols: usize, seed: u32) -> StoredMatrix {
    let data: Vec<u8> = some_values(rows * cols, seed)
        .iter()
        .flat_map(|value| common::to_bf16(*value).to_le_bytes())
        .collect();
    StoredMatrix::new(rows, cols, Format::Bf16, data.into(), Vec::new().into()).unwrap()
}

/// Every operation of a backend once, on a sequence of a few tokens. Gives what was computed.
fn scenario(backend: &AscendBackend) -> Result<Vec<f32>, BackendError> {
    let (rows, width, heads, head) = (6, 32, 2, 16);
    let mut found = Vec::new();
    let buffer = |len: usize, seed: u32| {
        let mut buffer = backend.alloc(len)?;
        backend.write(&mut buffer, 0, &some_values(len, seed))?;
        Ok(buffer)
    };
    let mut take = |buffer: &<AscendBackend as Backend>::Buffer, len: usize| {
        let at = found.len();
        found.resize(at + len, 0.0);
        backend.read(buffer, 0, &mut found[at..])
    };
    let all = Rows { first: 0, count: rows, width };

    let table = backend.matrix(stored(20, width, 1), Precision::Half)?;
    let precise = backend.matrix(stored(width, width, 2), Precision::Full)?;
    let halves = backend.matrix(stored(width, width / 2, 3), Precision::Working)?;
    let mut x = backend.alloc(rows * width)?;
    backend.embed(&table, &[3, 1, 4, 1, 5, 9], 1, &mut x)?;
    let mut y = backend.alloc(rows * width)?;
    backend.linear(&precise, &x, rows, &mut y)?;
    backend.linear_grouped(&halves, 2, &y, rows, &mut x)?;
    let expert = backend.matrix(stored(width, width, 16), Precision::Expert)?;
    backend.linear(&expert, &x, rows, &mut y)?;
    take(&y, rows * width)?;
    backend.gather(&x, width, &[5, 4, 3, 2, 1, 0], &mut y)?;
    let (gamma, angles) = (buffer(width, 4)?, buffer(rows * 8, 5)?);
    backend.rms_norm(&y, all, &gamma, 1e-6, &mut x, 0)?;
    backend.head_norm(&mut x, rows * heads, head, 1e-6)?;
    backend.rope(&mut x, all, Rotary { heads, channels: 8, inverse: true }, &angles, 0)?;
    take(&x, rows * width)?;

    let mut arena = backend.arena(4, 1024)?;
    let pages = [2, 0, 3, 1];
    let part = |offset: usize, rows_per_page: usize, format: RowFormat, width: usize| PagedRows {
        pages: &pages,
        first_page: 0,
        shift: 0,
        rows_per_block: 16,
        rows_per_page,
        offset,
        layout: RowLayout { format, width },
    };
    let keys = part(0, 4, RowFormat::Bf16, head);
    let entries = part(128, 8, RowFormat::F32, head);
    let key_rows = Rows { first: 0, count: rows, width: head };
    let key_values = buffer(rows * head, 6)?;
    backend.store(&key_values, key_rows, &mut arena, keys, 0)?;
    let (values, gates, bias) =
        (buffer(rows * 2 * head, 7)?, buffer(rows * 2 * head, 8)?, buffer(4 * head, 9)?);
    let mut pooled = backend.alloc(rows * head)?;
    let compress = Compress {
        values: &values,
        gates: &gates,
        bias: &bias,
        rows: 0..rows,
        start: 0,
        ratio: 2,
        overlap: true,
        width: head,
        open: part(0, 4, RowFormat::F32, 4 * head),
        keep: rows,
    };
    backend.compress(&compress, &mut arena, &mut pooled)?;
    backend.store(&pooled, Rows { count: 3, ..key_rows }, &mut arena, entries, 0)?;
    let mut fetched = backend.alloc(rows * head)?;
    backend.fetch(&arena, keys, 0, &mut fetched, key_rows)?;
    take(&fetched, rows * head)?;
    let weights = buffer(rows * heads, 10)?;
    let mut chosen = backend.alloc_indices(rows)?;
    let select = Select {
        q: &x,
        head_weights: &weights,
        scale: 0.5,
        arena: &arena,
        keys: entries,
        rows: 0..rows,
        start: 0,
        ratio: 2,
        heads,
        width: head,
        k: 1,
    };
    backend.select(&select, &mut chosen)?;
    let mut choices = [0; 6];
    backend.read_indices(&chosen, 0, &mut choices)?;
    let sink = buffer(heads, 11)?;
    let attention = Attention {
        q: &x,
        rows: 0..rows,
        start: 0,
        arena: &arena,
        keys,
        window: 3,
        entries: Entries::Selected { entries, chosen: &chosen, k: 1 },
        sink: &sink,
        heads,
        width: head,
    };
    backend.attention(&attention, &mut y)?;
    take(&y, rows * width)?;

    backend.swiglu(&mut y, &x, rows * width, 1.5)?;
    backend.scale_rows(&mut y, width, &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0])?;
    backend.add(&mut y, &x, rows * width)?;
    backend.copy(&y, width..2 * width, &mut y_copy(backend, &mut x)?, 0)?;
    backend.sqrt_softplus(&mut y, rows * width)?;
    take(&y, rows * width)?;

    let shape = HyperShape { streams: 2, width: head, iterations: 3, eps: 1e-6, norm_eps: 1e-6 };
    let mut streams = buffer(rows * 2 * head, 12)?;
    let (base, scale) = (buffer(8, 13)?, buffer(3, 14)?);
    let (mut mix, mut out) = (buffer(rows * 8, 15)?, backend.alloc(rows * head)?);
    backend.hyper_mix(&streams, rows, shape, &base, &scale, &mut mix)?;
    backend.hyper_pre(&streams, rows, shape, &mix, 8, &mut out)?;
    backend.hyper_post(&mut streams, rows, shape, &mix, &out)?;
    backend.hyper_head(&streams, rows, shape, &base, &scale, &mut mix)?;
    backend.fill(&mut out, 1.0)?;
    take(&streams, rows * 2 * head)?;
    take(&mix, rows * 2)?;
    take(&out, head)?;
    Ok(found)
}

/// Somewhere to copy to.
fn y_copy(
    backend: &AscendBackend,
    like: &mut <AscendBackend as Backend>::Buffer,
) -> Result<<AscendBackend as Backend>::Buffer, BackendError> {
    backend.alloc(backend.len(like))
}

#[test]
fn every_call_of_an_operation_fails_once() {
    on_every_chip("every_call_of_an_operation_fails_once_on_this_chip");
}

#[test]
#[ignore = "run by every_call_of_an_operation_fails_once on each chip"]
fn every_call_of_an_operation_fails_once_on_this_chip() {
    let sim = Sim::take();
    let symbols = sim.symbols();
    let counts = || symbols.iter().map(|symbol| sim.calls(symbol)).collect::<Vec<_>>();
    let device = chips::device();
    let counted = |backend: &AscendBackend| {
        let before = counts();
        let found = scenario(backend).unwrap();
        assert!(found.iter().all(|value| value.is_finite()) && found.iter().any(|value| *value != 0.0));
        (found, counts().iter().zip(before).map(|(after, before)| after - before).collect::<Vec<u64>>())
    };

    let backend = backend_of(&device, Products::Bf16);
    let (expected, calls) = counted(&backend);
    let planned = backend.plans();
    drop(backend);
    assert!(planned.made > 20 && planned.single == 0, "{planned:?}");
    let mut tried = 0;
    let planned_by = |symbol: &&String, calls: &u64| *calls > 0 && !is_release(symbol);
    for (symbol, calls) in symbols.iter().zip(&calls).filter(|(symbol, calls)| planned_by(symbol, calls)) {
        tried += fail_in_turn(&sim, &device, Products::Bf16, (symbol, *calls), &expected);
    }
    println!("| {tried} failures of {} symbols |", symbols.len());
    assert!(tried > 100, "{tried}");

    // the calls that quantised products alone make
    let products = *chips::products(&device).last().unwrap();
    let backend = backend_of(&device, products);
    let (expected, quantised_calls) = counted(&backend);
    assert!(backend.plans().single > 0, "lists are planned each time");
    drop(backend);
    let mut tried = 0;
    for (symbol, (calls, others)) in symbols.iter().zip(quantised_calls.iter().zip(&calls)) {
        if *others == 0 && planned_by(&symbol, calls) {
            tried += fail_in_turn(&sim, &device, products, (symbol, *calls), &expected);
        }
    }
    println!("| {products:?} | {tried} more failures |");
    assert!(tried >= 5, "{tried}");
}

/// Lets calls of a symbol fail, each in a backend of its own, and gives how many. A scenario makes `calls` of it.
fn fail_in_turn(
    sim: &Sim,
    device: &Device,
    products: Products,
    (symbol, calls): (&str, u64),
    expected: &[f32],
) -> usize {
    // the first, the last and some between: objects are made for every operator in the same way
    let step = (calls / 6).max(1) as usize;
    let mut tried = 0;
    for nth in (1..=calls).step_by(step) {
        let backend = backend_of(device, products);
        let live = sim.live_all();
        sim.fail(symbol, nth, CODE);
        let outcome = scenario(&backend);
        sim.clear();
        tried += 1;
        match outcome {
            Err(BackendError::Device { cause, .. }) => {
                assert!(
                    cause.contains(symbol) && cause.contains(&CODE.to_string())
                        || cause.contains("gave no object"),
                    "{symbol} {nth}: {cause}"
                );
            }
            Err(error) => panic!("{symbol} {nth}: {error}"),
            // what cannot be repeated is planned anew each time
            Ok(found) => assert!(
                symbol == "aclSetAclOpExecutorRepeatable" && found == expected,
                "{symbol} {nth} was not noticed"
            ),
        }
        assert_eq!(scenario(&backend).unwrap(), expected, "after {symbol} {nth}");
        drop(backend);
        let context = KINDS.iter().position(|kind| *kind == "context").unwrap();
        let after = sim.live_all();
        assert!(after[context] < live[context], "the backend is gone");
        let first_backend_gone = live.iter().zip(&after).all(|(before, after)| after <= before);
        assert!(first_backend_gone, "{symbol} {nth}: {live:?} became {after:?}; kinds are {KINDS:?}");
    }
    tried
}

/// Releases that fail are counted, not told: what has to be done about them has a test of its own.
fn is_release(symbol: &str) -> bool {
    ["Destroy", "Free", "Reset", "Finalize"].iter().any(|part| symbol.contains(part))
        || symbol == "aclrtSetCurrentContext"
}

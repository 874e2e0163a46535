//! Operators against the simulator: the two phases, plans that are used again, and what they give.

mod common;

use belay_ascend::{
    Arena, Binary, DataType, Error, IntArray, Kind, Launcher, Layout, Pages, Plans, Scalar, Staging, Stream,
    Tensor, TensorList, View,
};
use common::{LIMIT, Rig, Sim, from_bf16, get, put, some_values, to_bf16};

fn rounded(dtype: DataType, values: &[f32]) -> Vec<f32> {
    match dtype {
        DataType::Bf16 => values.iter().map(|value| from_bf16(to_bf16(*value))).collect(),
        _ => values.to_vec(),
    }
}

fn close(dtype: DataType, found: &[f32], expected: &[f64]) {
    let relative = if dtype == DataType::Bf16 { 1.0 / 128.0 } else { 1e-5 };
    assert_eq!(found.len(), expected.len());
    for (at, (found, expected)) in found.iter().zip(expected).enumerate() {
        let error = (f64::from(*found) - expected).abs();
        assert!(error <= relative * expected.abs().max(1.0), "{dtype:?} [{at}]: {found} for {expected}");
    }
}

fn product(left: &[f32], right: impl Fn(usize, usize) -> f32, (m, k, n): (usize, usize, usize)) -> Vec<f64> {
    let at = |row: usize, column: usize| {
        (0..k).map(|i| f64::from(left[row * k + i]) * f64::from(right(i, column))).sum::<f64>()
    };
    (0..m * n).map(|index| at(index / n, index % n)).collect()
}

#[test]
fn products_sums_and_norms_are_right() {
    let sim = Sim::take();
    let before = sim.live_all();
    let rig = Rig::on(0);
    {
        let current = rig.context.bind().unwrap();
        let stream = Stream::new(&current).unwrap();
        let mut staging = Staging::new(&current, 4096).unwrap();
        let mut arena = Arena::new(&current, 1 << 22, Pages::default()).unwrap();
        let workspace = arena.take(1 << 20).unwrap();
        let mut launcher = Launcher::new(stream.clone(), workspace);
        let (m, k, n) = (5, 48, 17);
        for dtype in [DataType::F32, DataType::Bf16] {
            let mut tensor = |dims: &[usize], values: &[f32]| {
                let region = arena.take(values.len() * dtype.bytes()).unwrap();
                put(&current, &stream, &mut staging, region, (dtype, dims), values)
            };
            let [a, b, c] =
                [m * k, k * n, m * n].map(|count| rounded(dtype, &some_values(count, count as u32)));
            let left = tensor(&[m, k], &a);
            let right = tensor(&[k, n], &b);
            let out = tensor(&[m, n], &vec![0.0; m * n]);
            let addend = tensor(&[m, n], &c);
            let gamma = tensor(&[n], &rounded(dtype, &some_values(n, 9)));
            // a weight as it is stored, one row for each output
            let stored = tensor(&[n, k], &b);
            let normed = tensor(&[m, n], &vec![0.0; m * n]);
            let rstd = arena.take(m * 4).unwrap();
            let rstd = View::new(rstd, Layout::contiguous(DataType::F32, &[m, 1]).unwrap()).unwrap();

            launcher.matmul(&current, &left, &right, &out).unwrap();
            let found = get(&current, &stream, &mut staging, &out);
            close(dtype, &found, &product(&a, |i, j| b[i * n + j], (m, k, n)));

            let layout = stored.layout().swapped(0, 1).unwrap();
            let transposed = View::new(stored.region().clone(), layout).unwrap();
            launcher.matmul(&current, &left, &transposed, &out).unwrap();
            let found = get(&current, &stream, &mut staging, &out);
            close(dtype, &found, &product(&a, |i, j| b[j * k + i], (m, k, n)));

            launcher.binary(&current, Binary::Add, &out, &addend, &out).unwrap();
            let sum = get(&current, &stream, &mut staging, &out);
            let expected: Vec<f64> =
                found.iter().zip(&c).map(|(a, b)| f64::from(*a) + f64::from(*b)).collect();
            close(dtype, &sum, &expected);

            launcher.rms_norm(&current, &out, &gamma, 1e-6, &normed, &rstd).unwrap();
            let weights = get(&current, &stream, &mut staging, &gamma);
            let scales: Vec<f64> = sum
                .chunks(n)
                .map(|row| row.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>() / n as f64)
                .map(|mean| 1.0 / (mean + 1e-6).sqrt())
                .collect();
            let expected: Vec<f64> = (0..m * n)
                .map(|at| f64::from(sum[at]) * scales[at / n] * f64::from(weights[at % n]))
                .collect();
            close(dtype, &get(&current, &stream, &mut staging, &normed), &expected);
            close(DataType::F32, &get(&current, &stream, &mut staging, &rstd), &scales);
        }
        assert_eq!(launcher.plans(), Plans { made: 8, reused: 0, single: 0 });
    }
    assert_eq!(rig.runtime.unreleased(), 0);
    drop(rig);
    assert_eq!(sim.live_all(), before);
}

#[test]
fn a_step_that_comes_again_allocates_and_plans_nothing() {
    let sim = Sim::take();
    let rig = Rig::on(0);
    let current = rig.context.bind().unwrap();
    let stream = Stream::new(&current).unwrap();
    let mut staging = Staging::new(&current, 4096).unwrap();
    let mut arena = Arena::new(&current, 1 << 22, Pages::default()).unwrap();
    let workspace = arena.take(1 << 20).unwrap();
    let mut launcher = Launcher::new(stream.clone(), workspace);
    let (m, n) = (4, 32);
    let weight = arena.take(n * n * 4).unwrap();
    let values = some_values(n * n, 3);
    let weight = put(&current, &stream, &mut staging, weight, (DataType::F32, &[n, n]), &values);
    let rows = some_values(m * n, 4);
    let layout = Layout::contiguous(DataType::F32, &[m, n]).unwrap();
    let expected: Vec<f64> = product(&rows, |i, j| values[i * n + j], (m, n, n))
        .iter()
        .zip(&rows)
        .map(|(product, row)| product + f64::from(*row))
        .collect();

    let counted = || {
        [
            "aclrtMalloc",
            "aclrtMallocHost",
            "aclrtFree",
            "aclrtFreeHost",
            "aclCreateTensor",
            "aclnnMatmulGetWorkspaceSize",
            "aclnnAddGetWorkspaceSize",
        ]
        .map(|symbol| sim.calls(symbol))
    };
    let mut after_first = None;
    let start = arena.mark();
    for round in 0..30 {
        // other addresses each time, as the buffers of a step may have
        arena.take(1 + 512 * round).unwrap();
        let x = arena.take(m * n * 4).unwrap();
        let x = put(&current, &stream, &mut staging, x, (DataType::F32, &[m, n]), &rows);
        let y = View::new(arena.take(m * n * 4).unwrap(), layout).unwrap();
        launcher.matmul(&current, &x, &weight, &y).unwrap();
        launcher.binary(&current, Binary::Add, &y, &x, &y).unwrap();
        close(DataType::F32, &get(&current, &stream, &mut staging, &y), &expected);
        arena.set_back(start);
        let first = *after_first.get_or_insert_with(&counted);
        assert_eq!(counted(), first, "round {round}");
    }
    assert_eq!(launcher.plans(), Plans { made: 2, reused: 58, single: 0 });
}

#[test]
fn an_operator_that_cannot_be_repeated_is_planned_each_time() {
    let sim = Sim::take();
    let rig = Rig::on(0);
    let current = rig.context.bind().unwrap();
    let stream = Stream::new(&current).unwrap();
    let mut staging = Staging::new(&current, 4096).unwrap();
    let mut arena = Arena::new(&current, 1 << 21, Pages::default()).unwrap();
    let workspace = arena.take(1 << 20).unwrap();
    let executors = sim.live("executor");
    let mut launcher = Launcher::new(stream.clone(), workspace);
    let x = arena.take(64).unwrap();
    let x = put(&current, &stream, &mut staging, x, (DataType::F32, &[16]), &[1.0; 16]);
    for round in 1..4 {
        sim.fail("aclSetAclOpExecutorRepeatable", 1, 561_000);
        launcher.binary(&current, Binary::Add, &x, &x, &x).unwrap();
        let found = get(&current, &stream, &mut staging, &x);
        assert_eq!(found, [f32::powi(2.0, round); 16]);
    }
    assert_eq!(launcher.plans(), Plans { made: 3, reused: 0, single: 3 });
    assert_eq!(sim.live("executor"), executors, "the library destroys what is used once");
}

#[test]
fn shapes_that_do_not_fit_are_refused_and_nothing_is_left() {
    let sim = Sim::take();
    let rig = Rig::on(0);
    let current = rig.context.bind().unwrap();
    let stream = Stream::new(&current).unwrap();
    let mut arena = Arena::new(&current, 1 << 21, Pages::default()).unwrap();
    let workspace = arena.take(1 << 20).unwrap();
    let live = sim.live_all();
    let mut launcher = Launcher::new(stream.clone(), workspace);
    let region = arena.take(1 << 12).unwrap();
    let view = |dtype, dims: &[usize]| View::new(region.clone(), Layout::contiguous(dtype, dims).unwrap());
    let a = view(DataType::F32, &[4, 8]).unwrap();
    let b = view(DataType::F32, &[4, 8]).unwrap();
    let half = view(DataType::Bf16, &[8, 4]).unwrap();
    let error = launcher.matmul(&current, &a, &b, &a).unwrap_err();
    assert_eq!(error.to_string(), "matmul: F32[4, 8], F32[4, 8], F32[4, 8] do not fit");
    assert!(matches!(launcher.matmul(&current, &a, &half, &a), Err(Error::Shape { .. })));
    assert!(matches!(launcher.binary(&current, Binary::Add, &a, &half, &a), Err(Error::Shape { .. })));
    assert!(matches!(view(DataType::F32, &[1 << 12]), Err(Error::TooSmall { .. })));
    let odd = View::new(region.part(4..2048).unwrap(), *a.layout()).unwrap_err();
    assert!(matches!(odd, Error::Shape { .. }), "{odd}");
    assert_eq!(sim.live_all(), live);
}

#[test]
fn a_failure_inside_the_library_reaches_the_caller_with_its_words() {
    let sim = Sim::take();
    let rig = Rig::on(0);
    let current = rig.context.bind().unwrap();
    let stream = Stream::new(&current).unwrap();
    let mut arena = Arena::new(&current, 1 << 21, Pages::default()).unwrap();
    let workspace = arena.take(1 << 20).unwrap();
    let mut launcher = Launcher::new(stream.clone(), workspace);
    let x = View::new(arena.take(64).unwrap(), Layout::contiguous(DataType::F32, &[16]).unwrap()).unwrap();
    sim.fail("aclnnAddGetWorkspaceSize", 1, 161_002);
    let error = launcher.binary(&current, Binary::Add, &x, &x, &x).unwrap_err();
    let Error::Call(call) = &error else { panic!("{error}") };
    assert_eq!((call.call, call.code, call.kind), ("aclnnAddGetWorkspaceSize", Some(161_002), Kind::Invalid));
    launcher.binary(&current, Binary::Add, &x, &x, &x).unwrap();
    stream.synchronize(&current, LIMIT).unwrap();
}

#[test]
fn a_list_releases_its_members_once() {
    let sim = Sim::take();
    let rig = Rig::on(0);
    let current = rig.context.bind().unwrap();
    let mut arena = Arena::new(&current, 1 << 16, Pages::default()).unwrap();
    let x = View::new(arena.take(64).unwrap(), Layout::contiguous(DataType::F32, &[16]).unwrap()).unwrap();
    let live = sim.live_all();
    let tensors = || (0..3).map(|_| Tensor::new(&rig.runtime, &x).unwrap()).collect();
    let list = TensorList::new(&rig.runtime, tensors()).unwrap();
    let array = IntArray::new(&rig.runtime, &[0, 1]).unwrap();
    let scalar = Scalar::f32(&rig.runtime, 1.0).unwrap();
    assert_ne!(sim.live_all(), live);
    drop((list, array, scalar));
    assert_eq!(sim.live_all(), live);

    sim.fail("aclCreateTensorList", 1, 0);
    let error = TensorList::new(&rig.runtime, tensors()).unwrap_err();
    assert!(error.to_string().starts_with("aclCreateTensorList failed and gave no object"), "{error}");
    assert_eq!(sim.live_all(), live, "members of a list that was not made are released");
    assert_eq!(rig.runtime.unreleased(), 0);
}

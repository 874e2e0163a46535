//! Every call of the library fails once, one after the other: an error that names the call, and nothing left behind.

mod common;

use std::time::Duration;

use belay_ascend::{
    Arena, Binary, Context, DataType, Device, DeviceBuffer, DeviceLimits, Error, Event, EventUse, HostBuffer,
    IntArray, Launcher, Layout, Pages, Runtime, Staging, Stream, Tensor, TensorList, View,
};
use common::{KINDS, LIMIT, Sim, library};

/// A code that stands for nothing in particular.
const CODE: i32 = 500_999;

/// Uses everything that this crate has. The runtime is given out, so that it can be asked afterwards.
fn scenario(runtime: &mut Option<Runtime>) -> Result<(), Error> {
    let runtime = &*runtime.insert(Runtime::start(library())?);
    runtime.device_count()?;
    let limits = DeviceLimits { wait: Duration::from_secs(30), kernel: Some(Duration::from_secs(30)) };
    let device = Device::open(runtime, 1, limits)?;
    let context = Context::new(&device)?;
    let other_context = Context::new(&device)?;
    let current = context.bind()?;
    device.memory(&current)?;

    let (stream, other) = (Stream::new(&current)?, Stream::new(&current)?);
    let (start, end) = (Event::new(&current, EventUse::Time)?, Event::new(&current, EventUse::Time)?);
    let mut arena = Arena::new(&current, 1 << 21, Pages::HugeFirst)?;
    let buffer = DeviceBuffer::new(&current, 4096, Pages::NormalOnly)?;
    start.record(&current, &stream)?;
    stream.fill(&current, buffer.region(), 0)?;
    stream.copy(&current, buffer.region(), &arena.take(4096)?)?;
    end.record(&current, &stream)?;
    other.wait_event(&current, &end)?;
    let up = stream.upload(&current, HostBuffer::new(&current, 4096)?, buffer.region())?;
    let down = other.download(&current, buffer.region(), HostBuffer::new(&current, 4096)?)?;
    up.wait(&current, LIMIT)?;
    end.synchronize(&current, LIMIT)?;
    end.is_complete(&current)?;
    end.elapsed_since(&current, &start)?;
    down.wait(&current, LIMIT)?;
    other.is_idle(&current)?;
    let mut staging = Staging::new(&current, 1024)?;
    staging.write(&current, &stream, &[0; 3000], buffer.region(), LIMIT)?;
    staging.read(&current, &stream, buffer.region(), &mut [0; 3000], LIMIT)?;

    let workspace = arena.take(1 << 20)?;
    let mut launcher = Launcher::new(stream.clone(), workspace);
    for _ in 0..2 {
        let mut view = |dims: &[usize]| {
            let layout = Layout::contiguous(DataType::F32, dims)?;
            let region = arena.take(layout.bytes())?;
            stream.fill(&current, &region, 0)?;
            View::new(region, layout)
        };
        let (square, out, gamma, rstd) = (view(&[8, 8])?, view(&[8, 8])?, view(&[8])?, view(&[8, 1])?);
        launcher.matmul(&current, &square, &square, &out)?;
        launcher.binary(&current, Binary::Add, &square, &out, &out)?;
        launcher.rms_norm(&current, &square, &gamma, 1e-6, &out, &rstd)?;
        let tensors = [&square, &out].map(|view| Tensor::new(runtime, view));
        let tensors = tensors.into_iter().collect::<Result<Vec<_>, _>>()?;
        TensorList::new(runtime, tensors)?;
        IntArray::new(runtime, &[0])?;
    }
    stream.synchronize(&current, LIMIT)?;
    other.abort(&current)?;

    // another context is entered for what is released without a guard
    drop(current);
    let current = other_context.bind()?;
    drop((buffer, start, stream));
    Stream::new(&current)?;
    Ok(())
}

/// The kind of object that stays if this release fails.
fn left_by(symbol: &str) -> Option<&'static str> {
    Some(match symbol {
        // a device that is set has a context of its own
        "aclrtDestroyContext" | "aclrtResetDevice" => "context",
        "aclrtDestroyStream" | "aclrtDestroyStreamForce" => "stream",
        "aclrtDestroyEvent" => "event",
        "aclrtFree" => "device_memory",
        "aclrtFreeHost" => "host_memory",
        "aclDestroyTensor" => "tensor",
        "aclDestroyScalar" => "scalar",
        "aclDestroyIntArray" => "int_array",
        "aclDestroyTensorList" => "tensor_list",
        "aclDestroyAclOpExecutor" => "executor",
        _ => return None,
    })
}

/// Failures that are no reason to give up.
fn is_survived(symbol: &str) -> bool {
    let release = symbol == "aclFinalize" || left_by(symbol).is_some();
    // operators that cannot be repeated are planned for one use; a thread that lost its context to a release tries again
    release || ["aclSetAclOpExecutorRepeatable", "aclrtSetCurrentContext"].contains(&symbol)
}

#[test]
fn every_call_fails_once_and_nothing_is_left() {
    let sim = Sim::take();
    let counts = |symbols: &[String]| symbols.iter().map(|symbol| sim.calls(symbol)).collect::<Vec<_>>();
    let symbols = sim.symbols();
    let table: Vec<&str> = library().report().symbols.iter().map(|found| found.symbol).collect();
    let before = counts(&symbols);
    let live = sim.live_all();
    let mut runtime = None;
    scenario(&mut runtime).unwrap();
    assert_eq!(runtime.take().map(|runtime| runtime.unreleased()), Some(0));
    assert_eq!(sim.live_all(), live, "without any fault");
    let calls: Vec<u64> = counts(&symbols).iter().zip(before).map(|(after, before)| after - before).collect();

    let used: Vec<&String> =
        symbols.iter().zip(&calls).filter(|(_, calls)| **calls > 0).map(|(name, _)| name).collect();
    // operators and collectives have tests of their own
    let untried: Vec<&str> = table
        .into_iter()
        .filter(|symbol| {
            !symbol.starts_with("aclnn")
                && !symbol.starts_with("Hccl")
                && !used.iter().any(|used| used == symbol)
        })
        .collect();
    // called only when something went wrong before, or to name a version
    assert_eq!(untried, ["aclGetRecentErrMsg", "aclrtDestroyStreamForce", "aclsysGetVersionNum"]);

    let mut tried = 0;
    for (symbol, calls) in symbols.iter().zip(calls) {
        for nth in 1..=calls {
            let what = format!("{symbol}, call {nth} of {calls}");
            let live = sim.live_all();
            sim.fail(symbol, nth, CODE);
            let mut runtime = None;
            let result = scenario(&mut runtime);
            let unreleased = runtime.as_ref().map_or(0, Runtime::unreleased);
            drop(runtime);
            sim.clear();
            tried += 1;

            match &result {
                Ok(()) => {}
                Err(Error::Call(error)) => {
                    assert_eq!(error.call, symbol, "{what}: {error}");
                    assert!(error.code.is_none_or(|code| code == CODE), "{what}: {error}");
                }
                Err(error) => panic!("{what}: {error}"),
            }
            assert!(result.is_err() || is_survived(symbol), "{what} was not noticed");
            let mut expected = live;
            if let Some(kind) = left_by(symbol) {
                assert_eq!(unreleased, 1, "{what}");
                let at = KINDS.iter().position(|known| *known == kind).unwrap();
                expected[at] += 1;
                if kind == "tensor_list" {
                    expected[KINDS.iter().position(|known| *known == "tensor").unwrap()] += 2;
                }
            }
            assert_eq!(sim.live_all(), expected, "{what}: {result:?}; kinds are {KINDS:?}");
        }
    }
    assert!(tried > 100, "{tried}");
}

#[test]
fn a_version_that_cannot_be_asked_for_is_unknown() {
    let sim = Sim::take();
    let version = common::open_library().report().version.clone();
    assert!(version.is_some_and(|version| version.starts_with("(runtime package ")));
    sim.fail("aclsysGetVersionNum", 1, CODE);
    assert_eq!(common::open_library().report().version, None);
}

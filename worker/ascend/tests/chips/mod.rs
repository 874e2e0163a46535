//! A test on each generation of chips: in a process of its own, since what is simulated is settled once for a process.
#![allow(dead_code, clippy::unwrap_used, reason = "test code; each program uses a part")]

use std::process::Command;

use belay_ascend::{AscendBackend, AscendOptions, Device, DeviceLimits, Products, Runtime};
use belay_model::{CacheOptions, Numerics};

use crate::common;
use crate::model::{Loaded, load_cached};

/// One chip of each generation.
const SOCS: [&str; 4] = ["Ascend910B3", "Ascend910_9391", "Ascend950PR_9589", "Ascend950DT_9591"];

/// Says which chip the child is to simulate; absent in the parent.
const SOC: &str = "BELAY_TEST_SOC";

/// The first device of the chip that this process simulates.
pub fn device() -> Device {
    let runtime = Runtime::start(common::library()).unwrap();
    let device = Device::open(&runtime, 0, DeviceLimits::default()).unwrap();
    assert_eq!(device.soc(), std::env::var(SOC).unwrap());
    device
}

/// A backend on a device.
pub fn backend_of(device: &Device, products: Products) -> AscendBackend {
    // small, since the simulator writes to all of it
    let options = AscendOptions { products, temporaries: 1 << 20, ..AscendOptions::default() };
    AscendBackend::new(device, options).unwrap()
}

/// A backend on the first device.
pub fn backend(products: Products) -> AscendBackend {
    backend_of(&device(), products)
}

/// Products that this chip knows, quantised ones included.
pub fn products(device: &Device) -> Vec<Products> {
    let mut known = vec![Products::Bf16, Products::Int8];
    known.extend(device.chip().has_int4.then_some(Products::Int4Experts));
    known
}

/// A model with its experts on one device, and room for a few sequences.
pub fn small_cache(dir: &std::path::Path, backend: AscendBackend) -> Loaded<AscendBackend> {
    let cache = CacheOptions { memory: 8 << 20, ..CacheOptions::default() };
    load_cached(dir, backend, Numerics::EXACT, 0, cache)
}

/// Runs a test of this program by name on each chip, two at a time.
pub fn on_every_chip(test: &str) {
    SOCS.chunks(2).for_each(|socs| {
        std::thread::scope(|scope| {
            socs.iter().for_each(|soc| drop(scope.spawn(|| on_one_chip(test, soc))));
        });
    });
}

fn on_one_chip(test: &str, soc: &str) {
    let mut child = Command::new(std::env::current_exe().unwrap());
    child.args([test, "--exact", "--ignored", "--nocapture", "--test-threads=1"]);
    child.env(SOC, soc).env("BELAY_ASCEND_SIM", format!(r#"{{"soc":"{soc}"}}"#));
    let output = child.output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    let complained = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.contains("1 passed"), "{soc}:\n{said}\n{complained}");
    said.lines().filter(|line| line.contains('|')).for_each(|line| println!("{soc}: {line}"));
}

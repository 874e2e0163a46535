//! Round-trip time of one exchange between two workers on loopback, against a bare echo of the same bytes.
//!
//! `cargo run --release -p belay-fabric --example round_trip -- [hidden] [experts]`
#![allow(clippy::unwrap_used, reason = "a measurement")]

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use belay_backend::{ExpertCompute, Fabric, FabricError, Route};
use belay_fabric::{Group, Identity, Placement, Table, Timeouts, WorkerEntry};

const ROUNDS: usize = 5000;

/// Gives the row back: what remains is the fabric.
struct Echo(usize);

impl ExpertCompute for Echo {
    fn compute(&self, _: u32, x: &[f32], routes: &[Route], y: &mut [f32]) -> Result<(), FabricError> {
        for (route, out) in routes.iter().zip(y.chunks_exact_mut(self.0)) {
            out.copy_from_slice(&x[route.row as usize * self.0..][..self.0]);
        }
        Ok(())
    }
}

fn main() {
    let mut args = std::env::args().skip(1).map(|arg| arg.parse::<usize>().unwrap());
    let hidden = args.next().unwrap_or(4096);
    let experts = args.next().unwrap_or(6);

    let groups: Vec<Group> = (0..2).map(|worker| start(worker, hidden)).collect();
    let entry = |(index, group): (usize, &Group)| WorkerEntry {
        index: index as u32,
        address: group.local_addr().to_string(),
        uid: index.to_string(),
    };
    let table = Table::new(Placement {
        epoch: 1,
        ranks_per_worker: 1,
        workers: groups.iter().enumerate().map(entry).collect(),
        layers: vec![vec![vec![1]; experts]],
    })
    .unwrap();
    for group in &groups {
        group.update(table.clone(), vec![Arc::new(Echo(hidden))]).unwrap();
    }
    while groups.iter().any(|group| group.peers().iter().any(|peer| !peer.connected)) {
        std::thread::sleep(Duration::from_millis(5));
    }
    let x: Vec<f32> = (0..hidden).map(|i| i as f32).collect();
    let routes: Vec<Route> =
        (0..experts as u32).map(|expert| Route { row: 0, expert, weight: 1.0 }).collect();
    let mut y = vec![0.0; experts * hidden];
    let fabric = measure(|| groups[0].exchange(0, &x, &routes, &mut y).unwrap());

    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let (ask, answer) = (hidden * 4, experts * hidden * 4);
    let echo = std::thread::spawn(move || {
        let (mut socket, _) = listener.accept().unwrap();
        socket.set_nodelay(true).unwrap();
        let (mut input, output) = (vec![0u8; ask], vec![0u8; answer]);
        while socket.read_exact(&mut input).is_ok() {
            socket.write_all(&output).unwrap();
        }
    });
    let mut socket = TcpStream::connect(address).unwrap();
    socket.set_nodelay(true).unwrap();
    let (output, mut input) = (vec![0u8; ask], vec![0u8; answer]);
    let bare = measure(|| {
        socket.write_all(&output).unwrap();
        socket.read_exact(&mut input).unwrap();
    });
    drop(socket);
    echo.join().unwrap();
    println!("ask {ask} bytes, result {answer} bytes, {ROUNDS} rounds");
    println!("fabric   p50 {:>7.1} us   p99 {:>7.1} us", fabric.0, fabric.1);
    println!("bare TCP p50 {:>7.1} us   p99 {:>7.1} us", bare.0, bare.1);
}

fn start(worker: u32, hidden: usize) -> Group {
    let identity = Identity {
        group: "echo".into(),
        revision: String::new(),
        digest: String::new(),
        worker,
        uid: worker.to_string(),
        hidden: hidden as u32,
    };
    Group::start(identity, TcpListener::bind("127.0.0.1:0").unwrap(), Timeouts::default(), || {}).unwrap()
}

/// `(p50, p99)` in microseconds.
fn measure(mut round: impl FnMut()) -> (f64, f64) {
    (0..ROUNDS / 10).for_each(|_| round());
    let mut micros: Vec<f64> = (0..ROUNDS)
        .map(|_| {
            let started = Instant::now();
            round();
            started.elapsed().as_secs_f64() * 1e6
        })
        .collect();
    micros.sort_by(f64::total_cmp);
    (micros[ROUNDS / 2], micros[ROUNDS * 99 / 100])
}

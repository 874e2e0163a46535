//! Rounds of a circle of simulated NPUs: results have the bits that a rank with all experts gives, whoever asks what; what is
//! missing, lost or failing ends in an answer or an error, never in a wait.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "test code")]

mod chips;
mod common;
#[path = "../../model/tests/common/mod.rs"]
mod model;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

use belay_ascend::{AscendBackend, Device, DeviceLimits, Npus, Products, Runtime};
use belay_backend::{
    Collective, DeviceExperts, ExpertCompute, FabricError, RoundAnswer, RoundAsk, Route, Seat,
};
use belay_model::{Checkpoint, ExpertBank, Numerics};
use chips::{backend_of, on_every_chip};
use common::{KINDS, Sim, some_values};
use model::nano_dir;

const RANKS: u32 = 4;
/// Ranks of each of two workers.
const OWN: u32 = 2;
const EXPERTS: u32 = 16;

type Bank = ExpertBank<AscendBackend>;

/// A device and those of the experts for which `is_here`.
fn npu(index: u32, is_here: impl Fn(u32) -> bool) -> (Arc<AscendBackend>, Arc<Bank>) {
    let runtime = Runtime::start(common::library()).unwrap();
    let device = Device::open(&runtime, index, DeviceLimits::default()).unwrap();
    let backend = Arc::new(backend_of(&device, Products::Bf16));
    let checkpoint = Arc::new(Checkpoint::open(&nano_dir("bf16")).unwrap());
    let bank = Arc::new(Bank::new(Arc::clone(&backend), Arc::clone(&checkpoint), Numerics::EXACT));
    let layers = 0..checkpoint.config().layers.len() as u32;
    let wanted = layers.flat_map(|layer| (0..EXPERTS).map(move |expert| (layer, expert)));
    bank.load(wanted.filter(|(_, expert)| is_here(*expert)), &mut |_, _| {}).unwrap();
    (backend, bank)
}

fn hidden() -> usize {
    Checkpoint::open(&nano_dir("bf16")).unwrap().config().hidden_size
}

/// The rank that has an expert.
fn home(expert: u32) -> u32 {
    expert % RANKS
}

fn workers(as_bf16: bool, is_here: impl Fn(u32, u32) -> bool) -> Vec<Arc<Npus>> {
    of_ranks(as_bf16, &(0..RANKS).map(|rank| npu(rank, |expert| is_here(rank, expert))).collect::<Vec<_>>())
}

fn of_ranks(as_bf16: bool, ranks: &[(Arc<AscendBackend>, Arc<Bank>)]) -> Vec<Arc<Npus>> {
    let of = |ranks: &[(Arc<AscendBackend>, Arc<Bank>)]| {
        let ranks = ranks.iter().map(|(backend, bank)| {
            (Arc::clone(backend), Arc::clone(bank) as Arc<dyn DeviceExperts<AscendBackend>>)
        });
        Arc::new(Npus::new(ranks, hidden(), as_bf16).unwrap())
    };
    ranks.chunks(OWN as usize).map(of).collect()
}

/// An ask of `rows` rows, each of which has three experts.
fn ask(layer: u32, rows: u32, seed: u32) -> RoundAsk {
    let x = some_values(rows as usize * hidden(), seed);
    let mut routes = vec![Vec::new(); RANKS as usize];
    for expert in 0..EXPERTS {
        for row in 0..rows {
            if [1, 6, 11].iter().any(|step| (row * 5 + seed + step) % EXPERTS == expert) {
                let weight = 0.1 + 0.05 * expert as f32;
                routes[home(expert) as usize].push(Route { row, expert, weight });
            }
        }
    }
    RoundAsk { layer, x, routes }
}

type Outcome = Result<Vec<Option<RoundAnswer>>, FabricError>;

/// What each rank asks in each round.
type Script = Vec<Vec<Option<RoundAsk>>>;

/// Lets every rank take part in as many rounds as its script has.
fn rounds(workers: &[Arc<Npus>], script: &Script, goes_on: &(dyn Fn() -> bool + Sync)) -> Vec<Outcome> {
    rounds_with(workers, script, goes_on, &|_, _| {})
}

/// The same; `first` is called with rank and round before each round.
fn rounds_with(
    workers: &[Arc<Npus>],
    script: &Script,
    goes_on: &(dyn Fn() -> bool + Sync),
    first: &(dyn Fn(u32, usize) + Sync),
) -> Vec<Outcome> {
    let root = workers[0].root().unwrap();
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..)
            .zip(script)
            .map(|(rank, asks)| {
                let (worker, root) = (&workers[(rank / OWN) as usize], root.clone());
                scope.spawn(move || {
                    let seat = Seat { root, ranks: script.len() as u32, rank };
                    let mut sitting = worker.join(rank % OWN, &seat)?;
                    let round = |(round, ask): (usize, &Option<RoundAsk>)| {
                        first(rank, round);
                        sitting.round(ask.as_ref(), goes_on)
                    };
                    asks.iter().enumerate().map(round).collect()
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

/// What one rank that has everything makes of an ask.
fn alone(bank: &Bank, ask: &RoundAsk) -> Vec<f32> {
    let routes: Vec<Route> = ask.routes.iter().flatten().copied().collect();
    let mut y = vec![0.0; routes.len() * hidden()];
    bank.compute(ask.layer, &ask.x, &routes, &mut y).unwrap();
    y
}

fn script() -> Script {
    let none = || vec![None; 5];
    let mut script = vec![none(), none(), none(), none()];
    // one asker; two with different layers; two with the same; nobody; one with a single row
    script[0][0] = Some(ask(0, 9, 1));
    script[0][1] = Some(ask(1, 4, 2));
    script[2][1] = Some(ask(3, 6, 3));
    script[0][2] = Some(ask(2, 5, 4));
    script[2][2] = Some(ask(2, 7, 5));
    script[2][4] = Some(ask(4, 1, 6));
    script
}

#[test]
fn every_asker_gets_the_bits_of_a_rank_with_all_experts() {
    on_every_chip("every_asker_gets_the_bits_of_a_rank_with_all_experts_on_this_chip");
}

#[test]
#[ignore = "run by every_asker_gets_the_bits_of_a_rank_with_all_experts on each chip"]
fn every_asker_gets_the_bits_of_a_rank_with_all_experts_on_this_chip() {
    let sim = Sim::take();
    let before = sim.live_all();
    {
        let script = script();
        let (_, all) = npu(RANKS, |_| true);
        for as_bf16 in [false, true] {
            let workers = workers(as_bf16, |rank, expert| home(expert) == rank);
            let mut script = script.clone();
            for ask in script.iter_mut().flatten().flatten().filter(|_| as_bf16) {
                // the fabric gives rows that are bf16 already
                ask.x.iter_mut().for_each(|value| *value = half(*value));
            }
            let found = rounds(&workers, &script, &|| true);
            for (rank, (asks, found)) in script.iter().zip(&found).enumerate() {
                for (round, (ask, found)) in asks.iter().zip(found.as_ref().unwrap()).enumerate() {
                    let Some(ask) = ask else {
                        assert_eq!(*found, None, "rank {rank} asked nothing in round {round}");
                        continue;
                    };
                    let found = found.as_ref().unwrap();
                    assert_eq!(found.missing, [None; RANKS as usize]);
                    let mut expected = alone(&all, ask);
                    expected.iter_mut().filter(|_| as_bf16).for_each(|value| *value = half(*value));
                    assert_eq!(bits(&found.y), bits(&expected), "rank {rank}, round {round}");
                }
            }
        }
    }
    assert_eq!(sim.live_all(), before, "{KINDS:?}");
}

/// Nearest bf16, ties to even.
fn half(value: f32) -> f32 {
    f32::from_bits(u32::from(common::to_bf16(value)) << 16)
}

#[test]
fn an_expert_that_is_not_there_is_named_and_the_other_ranks_answer() {
    let _sim = Sim::take();
    let (_, all) = npu(RANKS, |_| true);
    let workers = workers(false, |rank, expert| home(expert) == rank && expert != 7);
    let mut script: Script = vec![vec![None; 2]; RANKS as usize];
    let wanted = ask(1, 8, 1);
    script[0] = vec![Some(wanted.clone()); 2];
    let lacking = home(7) as usize;
    assert!(wanted.routes[lacking].iter().any(|route| route.expert == 7));
    let found = rounds(&workers, &script, &|| true);
    for answer in found[0].as_ref().unwrap().iter().flatten() {
        let expected: Vec<_> = (0..RANKS as usize).map(|rank| (rank == lacking).then_some(7)).collect();
        assert_eq!(answer.missing, expected);
        let before: usize = wanted.routes[..lacking].iter().map(Vec::len).sum();
        let first: usize = before * hidden();
        let mut given = wanted.clone();
        given.routes.truncate(lacking);
        assert_eq!(bits(&answer.y[..first]), bits(&alone(&all, &given)));
        let last =
            answer.y.len() - wanted.routes[lacking + 1..].iter().map(Vec::len).sum::<usize>() * hidden();
        given.routes = wanted.routes[lacking + 1..].to_vec();
        assert_eq!(bits(&answer.y[last..]), bits(&alone(&all, &given)));
    }
}

#[test]
fn nobody_waits_for_a_rank_that_does_not_come_or_whose_device_is_lost() {
    let sim = Sim::take();
    let before = sim.live_all();
    {
        let ranks: Vec<_> = (0..RANKS).map(|rank| npu(rank, |expert| home(expert) == rank)).collect();
        let workers = of_ranks(false, &ranks);
        let mut script: Script = vec![vec![None; 3]; RANKS as usize];
        script[0] = vec![Some(ask(0, 3, 1)); 3];
        // the last one leaves after two rounds, and keeps its place for a while
        script[3].truncate(2);
        let waits = AtomicBool::new(true);
        let begun = Instant::now();
        let found = std::thread::scope(|scope| {
            scope.spawn(|| {
                std::thread::sleep(Duration::from_millis(1500));
                waits.store(false, Ordering::Release);
            });
            rounds(&workers, &script, &|| waits.load(Ordering::Acquire))
        });
        assert!(begun.elapsed() < Duration::from_secs(15), "{:?}", begun.elapsed());
        assert!(found[3].is_ok());
        for (rank, outcome) in found[..3].iter().enumerate() {
            assert!(outcome.is_err(), "rank {rank}: {outcome:?}");
        }
        // the devices are as good as before
        script[3].resize(3, None);
        assert!(rounds(&workers, &script, &|| true).iter().all(Result::is_ok));

        let ready = Barrier::new(RANKS as usize);
        let (contexts, during) = (sim.live("context"), AtomicU64::new(0));
        let lose = |rank: u32, round: usize| {
            if round == 1 {
                ready.wait();
                if rank == 3 {
                    during.store(sim.live("context"), Ordering::Release);
                    sim.lose(3, 507_901);
                }
                ready.wait();
            }
        };
        // what the model computes meanwhile on the devices of those that are left does not stop with the round
        let begun = Instant::now();
        let is_over = AtomicBool::new(false);
        let found = std::thread::scope(|scope| {
            for (rank, (_, bank)) in (0u32..).zip(&ranks).take(RANKS as usize - 1) {
                let is_over = &is_over;
                scope.spawn(move || {
                    let (x, routes) = (some_values(3 * hidden(), 9), own_routes(rank));
                    let compute = || {
                        let mut y = vec![0.0; routes.len() * hidden()];
                        bank.compute(1, &x, &routes, &mut y).map(|()| bits(&y))
                    };
                    let expected = compute();
                    assert!(expected.is_ok());
                    while !is_over.load(Ordering::Acquire) {
                        assert_eq!(compute(), expected, "on rank {rank}");
                    }
                });
            }
            let found = rounds_with(&workers, &script, &|| true, &lose);
            std::thread::sleep(Duration::from_millis(50));
            is_over.store(true, Ordering::Release);
            found
        });
        assert!(begun.elapsed() < Duration::from_secs(15), "{:?}", begun.elapsed());
        // a failure stops all of its context, if only until somebody aborts: too short to be met for sure
        assert_eq!(during.into_inner(), contexts + u64::from(RANKS), "rounds have contexts of their own");
        assert!(found.iter().all(Result::is_err), "{found:?}");
        sim.heal(3);
    }
    // what was on the lost device is not given back by it
    let of =
        |live: [u64; KINDS.len()], kind: &str| live[KINDS.iter().position(|known| *known == kind).unwrap()];
    assert_eq!(of(sim.live_all(), "comm"), of(before, "comm"));
}

/// Routes to experts that a rank has.
fn own_routes(rank: u32) -> Vec<Route> {
    let own = (0..EXPERTS).filter(|expert| home(*expert) == rank);
    own.map(|expert| Route { row: expert % 3, expert, weight: 0.5 }).collect()
}

#[test]
fn every_call_of_a_round_fails_once() {
    let sim = Sim::take();
    let symbols = sim.symbols();
    let counts = || symbols.iter().map(|symbol| sim.calls(symbol)).collect::<Vec<_>>();
    // alone, nobody waits for who has failed
    let mut wanted = ask(0, 3, 1);
    wanted.routes = vec![wanted.routes.concat()];
    wanted.routes[0].sort_by_key(|route| (route.expert, route.row));
    let script: Script = vec![vec![Some(wanted), None]];
    let new = || {
        let (backend, bank) = npu(0, |_| true);
        let ranks = vec![(Arc::clone(&backend), bank as Arc<dyn DeviceExperts<AscendBackend>>)];
        [Arc::new(Npus::new(ranks, hidden(), true).unwrap())]
    };
    let run = |worker: &[Arc<Npus>; 1]| -> Outcome {
        // as `rounds`, but making the root may fail as well
        let seat = Seat { root: worker[0].root()?, ranks: 1, rank: 0 };
        let mut sitting = worker[0].join(0, &seat)?;
        script[0].iter().map(|ask| sitting.round(ask.as_ref(), &|| true)).collect()
    };
    let worker = new();
    let before = counts();
    let expected = run(&worker).unwrap();
    let calls: Vec<u64> = counts().iter().zip(before).map(|(after, before)| after - before).collect();
    drop(worker);
    let mut tried = 0;
    for (symbol, calls) in symbols.iter().zip(calls) {
        let releases = ["Destroy", "Free", "Reset", "Abort", "SetCurrentContext"];
        if releases.iter().any(|part| symbol.contains(part))
            || ["HcclGetErrorString", "aclGetRecentErrMsg"].contains(&symbol.as_str())
        {
            continue;
        }
        for nth in (1..=calls).step_by((calls / 4).max(1) as usize) {
            let worker = new();
            let live = sim.live_all();
            let before = sim.calls(symbol);
            sim.fail(symbol, nth, 500_999);
            let outcome = run(&worker);
            // how often a wait looks around depends on how long it takes
            let came = sim.calls(symbol) - before >= nth;
            sim.clear();
            tried += 1;
            match outcome {
                Err(FabricError::Local(cause)) => {
                    let said = cause.contains(symbol.as_str()) || cause.contains("gave no object");
                    assert!(said, "{symbol} {nth}: {cause}");
                }
                Err(error) => panic!("{symbol} {nth}: {error}"),
                Ok(found) => assert!(
                    (symbol == "aclSetAclOpExecutorRepeatable" || !came) && found == expected,
                    "{symbol} {nth} was not noticed"
                ),
            }
            let again = run(&worker);
            assert_eq!(again, Ok(expected.clone()), "after {symbol} {nth}");
            drop(worker);
            let after = sim.live_all();
            let gone = live.iter().zip(&after).all(|(before, after)| after <= before);
            assert!(gone, "{symbol} {nth}: {live:?} became {after:?}; kinds are {KINDS:?}");
        }
    }
    assert!(tried > 40, "{tried}");
}

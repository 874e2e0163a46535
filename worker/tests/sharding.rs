//! Contract 1 with the real model: the same logits and guesses, bit for bit, however the experts are spread.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

mod common;

use std::net::TcpListener;
use std::sync::Arc;
use std::time::{Duration, Instant};

use belay_backend::{ExpertCompute, Fabric};
use belay_cpu::CpuBackend;
use belay_fabric::{Group, Health, Identity, InProcess, Options, Placement, RowFormat, Table, WorkerEntry};
use belay_model::{
    CacheOptions, Checkpoint, Draft, Drafting, ExpertBank, LocalExperts, Logits, Model, Numerics, Scratch,
    Segment,
};
use common::{cases, nano};

type Bank = ExpertBank<CpuBackend>;

struct Nano {
    backend: Arc<CpuBackend>,
    checkpoint: Arc<Checkpoint>,
    model: Model<CpuBackend>,
}

impl Nano {
    fn load() -> Self {
        let backend = Arc::new(CpuBackend::detect());
        let checkpoint = Arc::new(Checkpoint::open_with(&nano().join("bf16"), Drafting::AUTO).unwrap());
        let cache = CacheOptions::default();
        let model =
            Model::load(Arc::clone(&backend), &checkpoint, Numerics::EXACT, cache, &mut |_, _| {}).unwrap();
        Self { backend, checkpoint, model }
    }

    fn shape(&self) -> (usize, usize, usize) {
        let card = self.checkpoint.card();
        (card.layers as usize, card.experts as usize, self.checkpoint.config().hidden_size)
    }

    fn bank(&self, share: impl IntoIterator<Item = (u32, u32)>) -> Arc<Bank> {
        let bank = Bank::new(Arc::clone(&self.backend), Arc::clone(&self.checkpoint), Numerics::EXACT);
        bank.load(share, &mut |_, _| {}).unwrap();
        Arc::new(bank)
    }

    fn ranks(&self, table: &Table, worker: u32) -> Vec<Arc<dyn ExpertCompute>> {
        let per_worker = table.ranks_per_worker();
        (worker * per_worker..(worker + 1) * per_worker)
            .map(|rank| self.bank(table.of_rank(rank)) as Arc<dyn ExpertCompute>)
            .collect()
    }

    /// Bits of all logits of a prompt, fed in two pieces and then two single tokens, and what is guessed behind each.
    fn logits(&self, fabric: &dyn Fabric, prompt: &[u32]) -> Vec<u32> {
        let mut state = self.model.new_state();
        let mut scratch = Scratch::default();
        let middle = prompt.len() / 2;
        let tail = prompt.len() - 2;
        let mut bits = Vec::new();
        for tokens in [&prompt[..middle], &prompt[middle..tail], &prompt[tail..=tail], &prompt[tail + 1..]] {
            let mut logits = Vec::new();
            let mut segments =
                [Segment { state: &mut state, tokens, logits: Logits::All, rewindable: false }];
            self.model.forward(&mut scratch, &mut segments, fabric, &mut logits).unwrap();
            bits.extend(logits.iter().map(|value| value.to_bits()));
            let mut drafts = [Draft { state: &mut state, token: 47, count: 1 }];
            let mut guesses = Vec::new();
            self.model.draft(&mut scratch, &mut drafts, fabric, &mut guesses).unwrap();
            assert_eq!(guesses.len(), 1);
            bits.extend(guesses);
        }
        bits
    }
}

/// Two workers of two ranks on loopback, experts dealt round robin.
fn two_workers(nano: &Nano) -> Vec<Group> {
    let (layers, experts, hidden) = nano.shape();
    let groups: Vec<Group> = (0..2)
        .map(|worker| {
            let identity = Identity {
                group: "nano".into(),
                revision: "abcd1234".into(),
                digest: nano.checkpoint.card().digest.clone(),
                worker,
                uid: format!("life-{worker}"),
                hidden: hidden as u32,
                format: RowFormat::F32,
            };
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            Group::start(identity, listener, Options::default(), || {}).unwrap()
        })
        .collect();
    let entry = |(index, group): (usize, &Group)| WorkerEntry {
        index: index as u32,
        address: group.local_addr().to_string(),
        uid: format!("life-{index}"),
        expert_bytes_limit: 0,
    };
    let table = Table::new(Placement {
        epoch: 1,
        ranks_per_worker: 2,
        workers: groups.iter().enumerate().map(entry).collect(),
        layers: vec![(0..experts).map(|expert| vec![expert as u32 % 4]).collect(); layers],
        expert_bytes: 0,
    })
    .unwrap();
    for (worker, group) in groups.iter().enumerate() {
        group.update(Some(table.clone()), None, nano.ranks(&table, worker as u32)).unwrap();
    }
    let deadline = Instant::now() + Duration::from_secs(20);
    while groups.iter().any(|group| group.peers().iter().any(|peer| peer.health != Health::Live)) {
        assert!(Instant::now() < deadline, "the workers connect");
        std::thread::sleep(Duration::from_millis(5));
    }
    groups
}

#[test]
fn one_rank_four_ranks_and_two_workers_of_two_give_the_same_bits() {
    let nano = Nano::load();
    let (layers, experts, hidden) = nano.shape();
    let every = (0..layers as u32).flat_map(|layer| (0..experts as u32).map(move |expert| (layer, expert)));
    let whole = LocalExperts::new(nano.bank(every));
    let in_process = |ranks: u32| {
        let table = Table::stand_alone(layers, experts, ranks).unwrap();
        let computes = nano.ranks(&table, 0);
        InProcess::new(table, computes, hidden)
    };
    let (one, three, four) = (in_process(1), in_process(3), in_process(4));
    let workers = two_workers(&nano);
    for case in cases("fact", 2).iter().chain(&cases("doc", 2)) {
        let expected = nano.logits(&whole, &case.prompt_ids);
        assert!(expected.len() > 10 * 2048);
        let fabrics: [(&str, &dyn Fabric); 5] = [
            ("1 rank", &one),
            ("3 ranks", &three),
            ("4 ranks", &four),
            ("worker 0 of 2 x 2", &workers[0]),
            ("worker 1 of 2 x 2", &workers[1]),
        ];
        for (name, fabric) in fabrics {
            assert!(nano.logits(fabric, &case.prompt_ids) == expected, "{}: {name} differs", case.id);
        }
    }
    assert!(workers[0].stats().snapshot().rows_sent > 0, "rows went over the wire");
}

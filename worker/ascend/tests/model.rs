//! Programs of queued work, made up by chance, against what the same program does to ordinary memory.
#![allow(clippy::unwrap_used, reason = "test code")]

mod common;

use belay_ascend::{Arena, Current, Event, EventUse, HostBuffer, Mark, Pages, Pending, Region, Stream};
use common::{LIMIT, Rig, Sim};
use proptest::prelude::*;

const REGIONS: usize = 4;
const BYTES: usize = 3000;

#[derive(Clone, Debug)]
enum Step {
    /// On a stream, from now on.
    Switch(usize),
    Fill(usize, u8),
    Copy(usize, usize),
    Upload(usize, u8),
    Download(usize),
    Wait,
    /// The region's place is given back and taken anew; its contents are then undefined.
    Retake(usize),
}

fn step() -> impl Strategy<Value = Step> {
    let region = 0..REGIONS;
    prop_oneof![
        1 => (0..2usize).prop_map(Step::Switch),
        2 => (region.clone(), any::<u8>()).prop_map(|(region, value)| Step::Fill(region, value)),
        3 => (region.clone(), region.clone()).prop_map(|(from, to)| Step::Copy(from, to)),
        2 => (region.clone(), any::<u8>()).prop_map(|(region, seed)| Step::Upload(region, seed)),
        3 => region.clone().prop_map(Step::Download),
        1 => Just(Step::Wait),
        1 => region.prop_map(Step::Retake),
    ]
}

fn pattern(seed: u8) -> Vec<u8> {
    (0..BYTES).map(|at| (at as u8).wrapping_mul(31).wrapping_add(seed)).collect()
}

struct Program<'a> {
    current: &'a Current,
    streams: [Stream; 2],
    active: usize,
    regions: Vec<Region>,
    /// What each region holds once all is done.
    expected: Vec<Vec<u8>>,
    downloads: Vec<(Pending, Vec<u8>)>,
    arenas: Vec<(Arena, Mark)>,
}

impl Program<'_> {
    fn stream(&self) -> &Stream {
        &self.streams[self.active]
    }

    fn run(&mut self, step: &Step) {
        match *step {
            Step::Switch(to) if to != self.active => {
                // what comes next sees all that was queued before
                let event = Event::new(self.current, EventUse::Order).unwrap();
                event.record(self.current, self.stream()).unwrap();
                self.active = to;
                self.stream().wait_event(self.current, &event).unwrap();
            }
            Step::Switch(_) => {}
            Step::Fill(region, value) => {
                self.stream().fill(self.current, &self.regions[region], value).unwrap();
                self.expected[region] = vec![value; BYTES];
            }
            Step::Copy(from, to) if from != to => {
                self.stream().copy(self.current, &self.regions[from], &self.regions[to]).unwrap();
                self.expected[to] = self.expected[from].clone();
            }
            Step::Copy(..) => {}
            Step::Upload(region, seed) => {
                let mut host = HostBuffer::new(self.current, BYTES).unwrap();
                host.copy_from_slice(&pattern(seed));
                // let go of at once: the stream keeps the memory
                drop(self.stream().upload(self.current, host, &self.regions[region]).unwrap());
                self.expected[region] = pattern(seed);
            }
            Step::Download(region) => {
                let host = HostBuffer::new(self.current, BYTES).unwrap();
                let pending = self.stream().download(self.current, &self.regions[region], host).unwrap();
                self.downloads.push((pending, self.expected[region].clone()));
            }
            Step::Wait => self.stream().synchronize(self.current, LIMIT).unwrap(),
            Step::Retake(region) => {
                let (arena, start) = &mut self.arenas[region];
                arena.set_back(*start);
                self.regions[region] = arena.take(BYTES).unwrap();
                self.run(&Step::Fill(region, 0));
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn queued_work_does_what_the_same_program_does_at_once(
        steps in proptest::collection::vec(step(), 1..60),
    ) {
        let sim = Sim::take();
        let live = sim.live_all();
        {
            let rig = Rig::on(0);
            let current = rig.context.bind().unwrap();
            let mut program = Program {
                current: &current,
                streams: [(); 2].map(|()| Stream::new(&current).unwrap()),
                active: 0,
                regions: Vec::new(),
                expected: vec![vec![0; BYTES]; REGIONS],
                downloads: Vec::new(),
                arenas: Vec::new(),
            };
            for region in 0..REGIONS {
                let mut arena = Arena::new(&current, BYTES + 512, Pages::default()).unwrap();
                let start = arena.mark();
                program.regions.push(arena.take(BYTES).unwrap());
                program.arenas.push((arena, start));
                program.run(&Step::Fill(region, 0));
            }
            steps.iter().for_each(|step| program.run(step));
            (0..REGIONS).for_each(|region| program.run(&Step::Download(region)));
            for (pending, expected) in program.downloads.drain(..) {
                pending.wait(&current, LIMIT).unwrap();
                let found = pending.into_buffer().unwrap();
                prop_assert_eq!(&*found, &expected[..]);
            }
            prop_assert_eq!(rig.runtime.unreleased(), 0);
        }
        prop_assert_eq!(sim.live_all(), live);
    }
}

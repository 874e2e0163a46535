//! Experts in one operation have the bits of the operations that they consist of, on every level, for any threads.
#![allow(clippy::unwrap_used, missing_docs)]

use belay_backend::{Backend, ExpertRows, Experts, Format, Precision, Route, StoredMatrix};
use belay_cpu::{CpuBackend, CpuMatrix, Level, Products};
use proptest::prelude::*;

/// A layer of experts and the rows that they get.
#[derive(Clone, Debug)]
struct Case {
    width: usize,
    inner: usize,
    limit: f32,
    rows: usize,
    x: Vec<f32>,
    experts: Vec<Expert>,
}

/// Seed of its weights, their format, and its routes: row and weight.
type Expert = (u64, Format, Vec<(u32, f32)>);

/// Numbers without a pattern.
fn noise(seed: u64, count: usize) -> impl Iterator<Item = u64> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..count).map(move |_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    })
}

fn stored(seed: u64, format: Format, rows: usize, cols: usize) -> StoredMatrix {
    let bytes = |count: usize| noise(seed, count).map(|number| (number >> 20) as u8).collect::<Vec<u8>>();
    let (data, scale) = match format {
        Format::Bf16 => {
            let value = |number: u64| ((number % 2001) as f32 / 1000.0 - 1.0).to_bits().to_le_bytes();
            let halves = noise(seed, rows * cols).flat_map(move |number| value(number)[2..].to_vec());
            (halves.collect(), Vec::new())
        }
        // neither of the two NaN codes
        Format::Fp8 => {
            let codes = bytes(rows * cols).into_iter().map(|code| if code & 0x7f == 0x7f { 1 } else { code });
            (codes.collect(), vec![120; rows.div_ceil(128) * cols.div_ceil(128)])
        }
        _ => {
            let scales = noise(seed + 1, rows * cols.div_ceil(32)).map(|number| 118 + (number % 6) as u8);
            (bytes(rows * cols.div_ceil(2)), scales.collect())
        }
    };
    StoredMatrix::new(rows, cols, format, data.into(), scale.into()).unwrap()
}

fn case() -> impl Strategy<Value = Case> {
    (1usize..5, 1usize..5, 1usize..12, prop::collection::vec(any::<u64>(), 0..6), any::<u64>()).prop_map(
        |(width, inner, rows, seeds, seed)| {
            let (width, inner) = (32 * width, 32 * inner);
            let x = noise(seed, rows * width).map(|number| (number % 4001) as f32 / 1000.0 - 2.0).collect();
            let formats = [Format::Fp4, Format::Fp8, Format::Bf16];
            let experts = seeds.iter().map(|&seed| {
                let count = 1 + seed as usize % (2 * rows);
                let routes = noise(seed, count)
                    .map(|number| ((number % rows as u64) as u32, (number % 97) as f32 / 50.0));
                (seed % 1000, formats[seed as usize % 3], routes.collect())
            });
            Case { width, inner, limit: 3.0, rows, x, experts: experts.collect() }
        },
    )
}

struct Loaded {
    w1: CpuMatrix,
    w3: CpuMatrix,
    w2: CpuMatrix,
    rows: Vec<(u32, Route)>,
}

impl Case {
    /// Experts with places that are dealt over all results.
    fn load(&self, backend: &CpuBackend) -> Vec<Loaded> {
        let places: usize = self.experts.iter().map(|(.., routes)| routes.len()).sum();
        // one after the other, from the last to the first
        let mut place = places as u32;
        let of = |(seed, format, routes): &Expert| {
            let matrix = |salt: u64, rows: usize, cols: usize| {
                backend.matrix(stored(3 * seed + salt, *format, rows, cols), Precision::Expert).unwrap()
            };
            let rows = routes.iter().map(|&(row, weight)| {
                place -= 1;
                (place, Route { row, expert: 0, weight })
            });
            Loaded {
                rows: rows.collect(),
                w1: matrix(0, self.inner, self.width),
                w3: matrix(1, self.inner, self.width),
                w2: matrix(2, self.width, self.inner),
            }
        };
        self.experts.iter().map(of).collect()
    }

    fn input(&self, backend: &CpuBackend) -> <CpuBackend as Backend>::Buffer {
        let mut x = backend.alloc(self.x.len()).unwrap();
        backend.write(&mut x, 0, &self.x).unwrap();
        x
    }

    fn fused(&self, backend: &CpuBackend) -> Vec<u32> {
        let loaded = self.load(backend);
        let x = self.input(backend);
        let experts: Vec<ExpertRows<'_, CpuBackend>> =
            loaded.iter().map(|Loaded { w1, w3, w2, rows }| ExpertRows { w1, w3, w2, rows }).collect();
        let op =
            Experts { x: &x, width: self.width, inner: self.inner, limit: self.limit, experts: &experts };
        let places: usize = loaded.iter().map(|expert| expert.rows.len()).sum();
        let mut y = backend.alloc(places * self.width + 5).unwrap();
        assert!(backend.experts(&op, &mut y).unwrap());
        let found = read(backend, &y);
        assert!(found[places * self.width..].iter().all(|bits| *bits == 0), "nothing beyond the results");
        found[..places * self.width].to_vec()
    }

    /// The same of linears, a product and a scaling, expert by expert.
    fn composed(&self, backend: &CpuBackend) -> Vec<u32> {
        let loaded = self.load(backend);
        let x = self.input(backend);
        let (width, inner) = (self.width, self.inner);
        let places: usize = loaded.iter().map(|expert| expert.rows.len()).sum();
        let mut y = backend.alloc(places * width).unwrap();
        for expert in &loaded {
            let count = expert.rows.len();
            let alloc = |channels| backend.alloc(count * channels).unwrap();
            let (mut gathered, mut gate, mut up, mut out) =
                (alloc(width), alloc(inner), alloc(inner), alloc(width));
            let rows: Vec<u32> = expert.rows.iter().map(|(_, route)| route.row).collect();
            let weights: Vec<f32> = expert.rows.iter().map(|(_, route)| route.weight).collect();
            backend.gather(&x, width, &rows, &mut gathered).unwrap();
            backend.linear(&expert.w1, &gathered, count, &mut gate).unwrap();
            backend.linear(&expert.w3, &gathered, count, &mut up).unwrap();
            backend.swiglu(&mut gate, &up, count * inner, self.limit).unwrap();
            backend.linear(&expert.w2, &gate, count, &mut out).unwrap();
            backend.scale_rows(&mut out, width, &weights).unwrap();
            for (at, (place, _)) in expert.rows.iter().enumerate() {
                backend.copy(&out, at * width..(at + 1) * width, &mut y, *place as usize * width).unwrap();
            }
        }
        read(backend, &y)
    }
}

fn read(backend: &CpuBackend, y: &<CpuBackend as Backend>::Buffer) -> Vec<u32> {
    let mut values = vec![0.0; backend.len(y)];
    backend.read(y, 0, &mut values).unwrap();
    values.iter().map(|value| value.to_bits()).collect()
}

/// Every level that this machine has, with either kind of products.
fn kinds() -> impl Iterator<Item = (Level, Products)> {
    let levels = Level::ALL.into_iter().filter(|level| level.is_available());
    levels.flat_map(|level| [Products::F32, Products::Bf16].map(|products| (level, products)))
}

fn backend((level, products): (Level, Products), threads: usize) -> CpuBackend {
    CpuBackend::with(level, threads).unwrap().with_products(products)
}

proptest! {
    #[test]
    fn one_operation_has_the_bits_of_its_parts(case in case(), threads in 1usize..4) {
        for kind in kinds() {
            let expected = case.composed(&backend(kind, 1));
            let found = case.fused(&backend(kind, threads));
            prop_assert_eq!(&found, &expected, "{:?} with {} threads", kind, threads);
            prop_assert!(case.rows > 0);
        }
    }
}

/// Large enough to be dealt to several threads.
#[test]
fn many_rows_on_several_threads_have_the_same_bits() {
    let (width, inner, rows) = (256, 128, 24);
    let x = noise(5, rows * width).map(|number| (number % 4001) as f32 / 1000.0 - 2.0).collect();
    let routes =
        |seed: u64| (0..rows as u32).map(|row| (row, 0.1 * (seed + u64::from(row)) as f32)).collect();
    let experts = (0..7).map(|seed| (seed, Format::Fp4, routes(seed))).collect();
    let case = Case { width, inner, limit: 10.0, rows, x, experts };
    for kind in kinds() {
        let expected = case.composed(&backend(kind, 1));
        for threads in [1, 2, 5] {
            assert_eq!(case.fused(&backend(kind, threads)), expected, "{kind:?}, {threads}");
        }
    }
}

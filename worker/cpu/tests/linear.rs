//! Linears of every stored format on every level, through the backend's own interface.
#![allow(clippy::unwrap_used, missing_docs)]

use belay_backend::{Backend, Format, Precision, StoredMatrix};
use belay_cpu::{CpuBackend, Level, Products};
use proptest::prelude::*;

/// A linear in groups and its input.
#[derive(Clone, Debug)]
struct Case {
    format: Format,
    groups: usize,
    /// Outputs and inputs of one group.
    outputs: usize,
    inputs: usize,
    rows: usize,
    data: Vec<u8>,
    scale: Vec<u8>,
    x: Vec<f32>,
}

impl Case {
    fn stored(&self) -> StoredMatrix {
        let rows = self.groups * self.outputs;
        StoredMatrix::new(rows, self.inputs, self.format, self.data.clone().into(), self.scale.clone().into())
            .unwrap()
    }

    /// y for the given rows of x.
    fn run(&self, backend: &CpuBackend, x: &[f32], rows: usize) -> Vec<f32> {
        let matrix = backend.matrix(self.stored(), Precision::Full).unwrap();
        let (mut input, mut output) =
            (backend.alloc(x.len()).unwrap(), backend.alloc(rows * self.groups * self.outputs).unwrap());
        backend.write(&mut input, 0, x).unwrap();
        backend.linear_grouped(&matrix, self.groups, &input, rows, &mut output).unwrap();
        let mut y = vec![0.0; backend.len(&output)];
        backend.read(&output, 0, &mut y).unwrap();
        y
    }

    /// Σ |w·x| bounds how far rounding can move a sum; computed by the reference from |x| and decoded weights.
    fn magnitudes(&self, reference: &CpuBackend) -> f32 {
        let table = reference.matrix(self.stored(), Precision::Full).unwrap();
        let rows = self.groups * self.outputs;
        let ids: Vec<u32> = (0..rows as u32).collect();
        let mut decoded = reference.alloc(rows * self.inputs).unwrap();
        reference.embed(&table, &ids, 1, &mut decoded).unwrap();
        let mut weights = vec![0.0; rows * self.inputs];
        reference.read(&decoded, 0, &mut weights).unwrap();
        let largest = |values: &[f32]| values.iter().fold(0f32, |most, value| value.abs().max(most));
        largest(&weights) * largest(&self.x) * self.inputs as f32
    }
}

fn bytes(format: Format, count: usize) -> BoxedStrategy<Vec<u8>> {
    match format {
        Format::F32 => prop::collection::vec(-2f32..2.0, count / 4)
            .prop_map(|values| values.iter().flat_map(|x| x.to_le_bytes()).collect())
            .boxed(),
        Format::Bf16 => prop::collection::vec(-2f32..2.0, count / 2)
            .prop_map(|values| {
                values.iter().flat_map(|x| ((x.to_bits() >> 16) as u16).to_le_bytes()).collect()
            })
            .boxed(),
        Format::Fp8 => prop::collection::vec(
            any::<u8>().prop_map(|code| if code & 0x7f == 0x7f { 1 } else { code }),
            count,
        )
        .boxed(),
        Format::Fp4 => prop::collection::vec(any::<u8>(), count).boxed(),
    }
}

fn case() -> impl Strategy<Value = Case> {
    let format = prop_oneof![Just(Format::F32), Just(Format::Bf16), Just(Format::Fp8), Just(Format::Fp4)];
    let size = prop_oneof![1usize..40, 120usize..140];
    // an FP4 row has an even number of columns
    let inputs = prop_oneof![1usize..40, 120usize..140, 250usize..270].prop_map(|inputs| 2 * inputs);
    (format, 1usize..4, size, inputs, prop_oneof![1usize..20, 33usize..40]).prop_flat_map(
        |(format, groups, outputs, inputs, rows)| {
            let (data, scale) = format.bytes(groups * outputs, inputs);
            (
                bytes(format, data),
                // usual ones, and ones that are too far from 1 to be put into weights
                prop_oneof![
                    prop::collection::vec(118u8..132, scale),
                    prop::collection::vec(80u8..175, scale)
                ],
                prop::collection::vec(-3f32..3.0, rows * groups * inputs),
            )
                .prop_map(move |(data, scale, x)| Case {
                    format,
                    groups,
                    outputs,
                    inputs,
                    rows,
                    data,
                    scale,
                    x,
                })
        },
    )
}

fn reference() -> CpuBackend {
    CpuBackend::with(Level::Scalar, 1).unwrap()
}

const PRODUCTS: [Products; 2] = [Products::F32, Products::Bf16];

/// Every level that this machine has, with either kind of products; names the others.
fn available() -> impl Iterator<Item = (Level, Products)> {
    let levels = Level::ALL.into_iter().filter(|level| {
        let there = level.is_available();
        if !there {
            eprintln!("skipped: this machine has no {level}");
        }
        there
    });
    levels.flat_map(|level| PRODUCTS.map(|products| (level, products)))
}

fn backend((level, products): (Level, Products), threads: usize) -> CpuBackend {
    CpuBackend::with(level, threads).unwrap().with_products(products)
}

/// bf16 products are those of inputs that were rounded before, and f32 weights are not concerned.
#[test]
fn products_in_bf16_are_those_of_rounded_inputs() {
    let values: Vec<f32> = (0..256).map(|i| (i as f32 * 0.37).sin()).collect();
    let rounded: Vec<f32> = values
        .iter()
        .map(|&x| belay_backend::dtype::bf16_to_f32(belay_backend::dtype::f32_to_bf16(x)))
        .collect();
    for format in [Format::F32, Format::Bf16, Format::Fp8, Format::Fp4] {
        let (data, scale) = format.bytes(3, 256);
        let case = Case {
            format,
            groups: 1,
            outputs: 3,
            inputs: 256,
            rows: 1,
            data: (0..data).map(|i| [0x20, 0x3f, 0x42][i % 3]).collect(),
            scale: vec![126; scale],
            x: values.clone(),
        };
        for kind in available().filter(|(_, products)| *products == Products::Bf16) {
            let found = case.run(&backend(kind, 1), &case.x, 1);
            let of_rounded = case.run(&backend(kind, 1), &rounded, 1);
            let exact = case.run(&backend((kind.0, Products::F32), 1), &case.x, 1);
            if format == Format::F32 {
                assert_eq!(found, exact, "{kind:?}");
            } else {
                assert_eq!(found, of_rounded, "{kind:?} {format:?}");
                assert_ne!(found, exact, "{kind:?} {format:?}");
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn every_level_agrees_with_the_reference(case in case()) {
        let tolerance = 4.0 * f32::EPSILON * case.magnitudes(&reference());
        for kind in available() {
            let expected = case.run(&reference().with_products(kind.1), &case.x, case.rows);
            let found = case.run(&backend(kind, 1), &case.x, case.rows);
            for (found, expected) in found.iter().zip(&expected) {
                prop_assert!((found - expected).abs() <= tolerance, "{kind:?}: {found} {expected} ± {tolerance}");
            }
        }
    }

    #[test]
    fn a_row_has_the_same_bits_alone_in_a_batch_and_on_many_threads(case in case()) {
        for kind in available() {
            let together = case.run(&backend(kind, 3), &case.x, case.rows);
            let width = case.groups * case.outputs;
            for (row, together) in together.chunks_exact(width).enumerate() {
                let x = &case.x[row * case.groups * case.inputs..][..case.groups * case.inputs];
                let alone = case.run(&backend(kind, 1), x, 1);
                let bits = |y: &[f32]| y.iter().map(|y| y.to_bits()).collect::<Vec<_>>();
                prop_assert_eq!(bits(&alone), bits(together), "{:?} row {}", kind, row);
            }
        }
    }
}

//! Products with weights in each format that a checkpoint may have, against the same product in f64.
#![allow(clippy::unwrap_used, reason = "test code")]

mod chips;
mod common;
#[path = "../../model/tests/common/mod.rs"]
mod model;

use belay_ascend::{AscendBackend, AscendOptions, Error, Products};
use belay_backend::dtype::{E2M1, E4M3, f32_to_e2m1, f32_to_e4m3, pow2_ceil};
use belay_backend::{Backend, BackendError, FP4_BLOCK, FP8_BLOCK, Format, Precision, StoredMatrix};
use common::{from_bf16, some_values, to_bf16};

/// A weight as a checkpoint has it, and its values.
struct Weight {
    stored: StoredMatrix,
    values: Vec<f32>,
}

/// Numbers that are distributed as weights and activations are: many small ones.
fn normal(count: usize, seed: u32) -> Vec<f32> {
    let uniform = some_values(6 * count, seed);
    uniform.chunks_exact(6).map(|parts| parts.iter().sum::<f32>() / 1.41).collect()
}

impl Weight {
    fn new(format: Format, rows: usize, cols: usize, seed: u32) -> Self {
        let mut values: Vec<f32> = normal(rows * cols, seed).iter().map(|value| value * 0.02).collect();
        let (mut data, mut scale) = (Vec::new(), Vec::new());
        let exponent = |largest: f32, most: f32| pow2_ceil(largest.max(1e-30) / most);
        let code_of = |scale: f32| (scale.to_bits() >> 23) as u8;
        match format {
            Format::Bf16 => {
                for value in &mut values {
                    let bits = to_bf16(*value);
                    data.extend(bits.to_le_bytes());
                    *value = from_bf16(bits);
                }
            }
            Format::Fp4 => {
                for block in values.chunks_mut(FP4_BLOCK) {
                    let s = exponent(block.iter().fold(0.0, |most, value| value.abs().max(most)), 6.0);
                    let codes: Vec<u8> = block.iter().map(|value| f32_to_e2m1(value / s)).collect();
                    block.iter_mut().zip(&codes).for_each(|(v, code)| *v = E2M1[usize::from(*code)] * s);
                    data.extend(codes.chunks(2).map(|pair| pair[0] | pair[1] << 4));
                    scale.push(code_of(s));
                }
            }
            Format::Fp8 => {
                let across = cols.div_ceil(FP8_BLOCK);
                data = vec![0; rows * cols];
                for block in 0..rows.div_ceil(FP8_BLOCK) * across {
                    let (top, left) = (block / across * FP8_BLOCK, block % across * FP8_BLOCK);
                    let places: Vec<usize> = (top..rows.min(top + FP8_BLOCK))
                        .flat_map(|row| (left..cols.min(left + FP8_BLOCK)).map(move |col| row * cols + col))
                        .collect();
                    let largest = places.iter().fold(0.0f32, |most, at| values[*at].abs().max(most));
                    let s = exponent(largest, 448.0);
                    for at in places {
                        data[at] = f32_to_e4m3(values[at] / s);
                        values[at] = E4M3[usize::from(data[at])] * s;
                    }
                    scale.push(code_of(s));
                }
            }
            Format::F32 => data.extend(values.iter().flat_map(|value| value.to_le_bytes())),
        }
        let stored = StoredMatrix::new(rows, cols, format, data.into(), scale.into()).unwrap();
        Self { stored, values }
    }

    /// `W x`, W and x in groups.
    fn times(&self, groups: usize, x: &[f32]) -> Vec<f64> {
        let (outputs, inputs) = (self.stored.rows, self.stored.cols);
        let row = |x: &[f32]| -> Vec<f64> {
            let output = |output: usize| {
                let x = &x[output / (outputs / groups) * inputs..][..inputs];
                let w = &self.values[output * inputs..][..inputs];
                w.iter().zip(x).map(|(w, x)| f64::from(*w) * f64::from(*x)).sum()
            };
            (0..outputs).map(output).collect()
        };
        x.chunks_exact(groups * inputs).flat_map(row).collect()
    }
}

fn relative_error(found: &[f32], expected: &[f64]) -> f64 {
    let error: f64 =
        found.iter().zip(expected).map(|(found, expected)| (f64::from(*found) - expected).powi(2)).sum();
    (error / expected.iter().map(|value| value.powi(2)).sum::<f64>()).sqrt()
}

fn product(
    backend: &AscendBackend,
    weight: &Weight,
    precision: Precision,
    groups: usize,
    x: &[f32],
) -> Result<Vec<f32>, BackendError> {
    let rows = x.len() / (groups * weight.stored.cols);
    let matrix = backend.matrix(weight.stored.clone(), precision)?;
    let (mut input, mut y) = (backend.alloc(x.len())?, backend.alloc(rows * weight.stored.rows)?);
    backend.write(&mut input, 0, x)?;
    backend.linear_grouped(&matrix, groups, &input, rows, &mut y)?;
    let mut found = vec![0.0; rows * weight.stored.rows];
    backend.read(&y, 0, &mut found)?;
    Ok(found)
}

/// What a result may be off, root mean square, as a part of the results.
fn bound(products: Products, precision: Precision) -> f64 {
    match (products, precision) {
        (Products::F32, _) => 1e-6,
        (Products::Bf16, _) | (_, Precision::Half) => 0.003,
        (Products::Int4Experts, Precision::Expert) => 0.13,
        (Products::Int8 | Products::Int4Experts, _) => 0.013,
    }
}

#[test]
fn products_of_every_format() {
    chips::on_every_chip("products_of_every_format_on_this_chip");
}

#[test]
#[ignore = "run by products_of_every_format on each chip"]
fn products_of_every_format_on_this_chip() {
    let device = chips::device();
    // outputs and inputs of the published models, but for fewer outputs: an expert's two, a projection in groups, and
    // inputs that are no multiple of what shares a scale
    let shapes = [(96, 4096, 1), (96, 2048, 1), (128, 4096, 4), (64, 320, 1)];
    for products in chips::products(&device) {
        let backend = chips::backend_of(&device, products);
        for precision in [Precision::Working, Precision::Expert, Precision::Half] {
            for format in [Format::Bf16, Format::Fp8, Format::Fp4] {
                let mut worst = 0.0f64;
                for (seed, (outputs, inputs, groups)) in (1..).zip(shapes) {
                    if groups > 1 && precision == Precision::Expert {
                        continue;
                    }
                    let weight = Weight::new(format, outputs, inputs, seed);
                    let x = normal(5 * groups * inputs, seed + 10);
                    let found = product(&backend, &weight, precision, groups, &x).unwrap();
                    worst = worst.max(relative_error(&found, &weight.times(groups, &x)));
                    // a row alone has the same bits as among others
                    let row = 2 * groups * inputs..3 * groups * inputs;
                    let alone = product(&backend, &weight, precision, groups, &x[row]).unwrap();
                    assert_eq!(alone, found[2 * outputs..3 * outputs], "{products:?} {precision:?} {format}");
                }
                println!("| {products:?} | {precision:?} | {format} | {worst:.4} |");
                assert!(worst <= bound(products, precision), "{products:?} {precision:?} {format}: {worst}");
                assert!(worst > 0.0);
            }
        }
        let zeros = Weight::new(Format::Bf16, 64, 320, 1);
        let found = product(&backend, &zeros, Precision::Expert, 1, &[0.0; 2 * 320]).unwrap();
        assert_eq!(found, [0.0; 2 * 64], "{products:?}");
    }
}

#[test]
fn what_cannot_be_quantised_is_refused() {
    chips::on_every_chip("what_cannot_be_quantised_is_refused_on_this_chip");
}

#[test]
#[ignore = "run by what_cannot_be_quantised_is_refused on each chip"]
fn what_cannot_be_quantised_is_refused_on_this_chip() {
    let device = chips::device();
    let new = |products| AscendBackend::new(&device, AscendOptions { products, ..AscendOptions::default() });
    match (new(Products::Int4Experts), device.chip().has_int4) {
        (Ok(_), true) => {}
        (Err(error), false) => {
            assert!(matches!(error, Error::Unsupported { .. }), "{error}");
            let expected = format!("{} cannot compute products with INT4 experts", device.soc());
            assert!(error.to_string().starts_with(&expected), "{error}");
        }
        (outcome, has_int4) => panic!("{has_int4}: {:?}", outcome.err()),
    }
    let backend = new(Products::Int8).unwrap();
    let mut weight = Weight::new(Format::Bf16, 16, 32, 3);
    let table = backend.matrix(weight.stored.clone(), Precision::Working).unwrap();
    let mut rows = backend.alloc(32).unwrap();
    let error = backend.embed(&table, &[1], 1, &mut rows).unwrap_err().to_string();
    assert_eq!(error, "embedding: weight: rows of a quantised weight cannot be looked up");
    let infinite = [to_bf16(1.0), 0x7f80].iter().flat_map(|bits| bits.to_le_bytes()).collect::<Vec<_>>();
    weight.stored = StoredMatrix::new(1, 2, Format::Bf16, infinite.into(), Vec::new().into()).unwrap();
    let error = backend.matrix(weight.stored, Precision::Working).err().unwrap().to_string();
    assert_eq!(error, "weight: weight: inf cannot be quantised");
}

use belay_backend::dtype::{bf16_to_f32, f32_to_bf16};
use proptest::prelude::*;

use super::hardware::Config;
use super::twin::{Twin, multiply};
use super::*;
use crate::kernel::{Decoded, Kernels, SCORED, scalar};
use crate::level::Level;
use crate::panel::Panel;
use crate::pool::Pool;
use crate::products::Products;

/// Weight rows with their codes and scales, and inputs.
#[derive(Clone, Debug)]
struct Case {
    format: Format,
    cols: usize,
    rows: Vec<(Vec<u8>, Vec<u8>)>,
    x: Vec<Vec<f32>>,
}

/// The level, whether or not this machine has it: what is neither hardware nor its twin needs AVX-512 alone.
fn kernels() -> Option<Kernels> {
    if !Level::Avx512Bf16.is_available() {
        eprintln!("skipped: this machine has no {}", Level::Avx512Bf16);
        return None;
    }
    Some(Kernels { level: Level::AmxBf16, products: Products::Bf16 })
}

impl Case {
    fn stored(&self) -> Vec<StoredRow<'_>> {
        let of = |(data, scale)| StoredRow { format: self.format, data, scale, cols: self.cols };
        self.rows.iter().map(|(data, scale)| of((data.as_slice(), scale.as_slice()))).collect()
    }

    fn panel(&self, kernels: Kernels) -> Panel {
        let mut panel = Panel::default();
        let layout = kernels.layout(self.format);
        panel.fill(kernels, &Pool::new(1), layout, self.x.len(), self.cols, |i| &self.x[i]);
        panel
    }

    /// Bits of products with the inputs of these numbers.
    fn bits<T: Tiles>(&self, rows: &[StoredRow<'_>], inputs: &[usize]) -> Option<Vec<u32>> {
        let panel = self.panel(kernels()?);
        // what must not be used
        let waste = vec![bytemuck::cast([f32::NAN; SIDE]); 200];
        let mut room = Room { decoded: waste.clone(), sums: waste };
        let mut out = vec![f32::NAN; rows.len() * inputs.len()];
        // SAFETY: `kernels` has checked AVX-512, and tests of the hardware check that it is there.
        unsafe { products::<T>(rows, inputs.len(), &|i| panel.row(inputs[i]), &mut room, &mut out) };
        Some(out.iter().map(|value| value.to_bits()).collect())
    }

    fn all(&self) -> Vec<usize> {
        (0..self.x.len()).collect()
    }

    /// Compares with sums in f64; `least` is what a step loses of numbers that are smaller than any normal one.
    fn check(&self, least: f32) {
        let stored = self.stored();
        let Some(bits) = self.bits::<Twin>(&stored, &self.all()) else { return };
        let largest = |values: &[f32]| values.iter().fold(0f32, |most, value| value.abs().max(most));
        for (row, found) in stored.iter().zip(bits.chunks_exact(self.x.len())) {
            let weights = decoded(*row);
            for (x, &found) in self.x.iter().zip(found) {
                let x: Vec<f32> = x.iter().map(|&x| bf16_to_f32(f32_to_bf16(x))).collect();
                let [expected] = scalar::dots(&weights, [&x]);
                let size = largest(&weights) * largest(&x) * self.cols as f32;
                let tolerance = 4.0 * f32::EPSILON * size + least;
                let found = f32::from_bits(found);
                assert!((found - expected).abs() <= tolerance, "{found} {expected} ± {tolerance}");
            }
        }
    }
}

fn decoded(row: StoredRow<'_>) -> Vec<f32> {
    let mut values = vec![0.0; row.cols];
    scalar::decode(row, &mut values);
    values
}

/// Numbers without a pattern.
fn noise(seed: u64) -> impl Iterator<Item = u64> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    std::iter::repeat_with(move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state >> 16
    })
}

/// Rows and inputs of a seed; `scale(row, block)`.
fn made(
    format: Format,
    (rows, cols, inputs): (usize, usize, usize),
    seed: u64,
    scale: impl Fn(usize, usize) -> u8,
) -> Case {
    let mut noise = noise(seed);
    let mut next = || noise.next().unwrap();
    let block = if format == Format::Fp4 { FP4_BLOCK } else { FP8_BLOCK };
    let row = |r: usize| {
        let data = match format {
            Format::Fp4 => (0..cols.div_ceil(2)).map(|_| next() as u8).collect(),
            // neither of the two NaN codes
            Format::Fp8 => (0..cols)
                .map(|_| next() as u8)
                .map(|code| if code & 0x7f == 0x7f { 1 } else { code })
                .collect(),
            _ => (0..cols)
                .flat_map(|_| f32_to_bf16((next() % 4001) as f32 / 1000.0 - 2.0).to_le_bytes())
                .collect(),
        };
        let scales = if format == Format::Bf16 { 0 } else { cols.div_ceil(block) };
        (data, (0..scales).map(|block| scale(r, block)).collect())
    };
    let rows = (0..rows).map(row).collect();
    let x = (0..inputs).map(|_| (0..cols).map(|_| (next() % 6001) as f32 / 1000.0 - 3.0).collect()).collect();
    Case { format, cols, rows, x }
}

const FORMATS: [Format; 3] = [Format::Fp4, Format::Fp8, Format::Bf16];

fn case() -> impl Strategy<Value = Case> {
    let cols = prop_oneof![1usize..40, 90usize..140, 250usize..300];
    let format = prop_oneof![Just(Format::Fp4), Just(Format::Fp8), Just(Format::Bf16)];
    // usual scales, and ones of which some are too far from 1 to be put into weights
    let scales = prop_oneof![Just((118u8, 14u8)), Just((80, 95))];
    (format, 1usize..=tile::BLOCK, cols, 1usize..40, scales, any::<u64>()).prop_map(
        |(format, rows, cols, inputs, (least, many), seed)| {
            let cols = if format == Format::Fp4 { cols.next_multiple_of(2) } else { cols };
            let scale = |row: usize, block: usize| {
                let far = noise(seed ^ 7).nth(row).unwrap().is_multiple_of(2);
                let (least, many) = if far { (least, many) } else { (118, 14) };
                least + (noise(seed ^ 9).nth(40 * row + block).unwrap() % u64::from(many)) as u8
            };
            made(format, (rows, cols, inputs), seed, scale)
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn products_are_those_of_the_reference(case in case()) {
        case.check(0.0);
    }

    /// Alone, among others, in another place, beside other rows, and from inputs that do not lie in order.
    #[test]
    fn a_product_has_the_same_bits_beside_any_others(case in case(), seed in any::<u64>()) {
        let (stored, count) = (case.stored(), case.x.len());
        let Some(expected) = case.bits::<Twin>(&stored, &case.all()) else { return Ok(()) };
        let mut numbers = noise(seed);
        let mut below = |count: usize| (numbers.next().unwrap() % count as u64) as usize;
        // some in any order, some twice; and every second one, from the last to the first
        let some: Vec<usize> = (0..40).map(|_| below(count)).collect();
        let back: Vec<usize> = (0..count).rev().step_by(2).collect();
        // a group that is copied, then others as they lie
        let mixed = [&some[..SIDE], &case.all()].concat();
        for inputs in [&some[..], &back, &mixed, &some[..1]] {
            let first = below(stored.len());
            let rows = &stored[first..=first + below(stored.len() - first)];
            let found = case.bits::<Twin>(rows, inputs).unwrap();
            for (r, found) in found.chunks_exact(inputs.len()).enumerate() {
                for (input, &found) in inputs.iter().zip(found) {
                    prop_assert_eq!(found, expected[(first + r) * count + input], "row {} of {}", r, first);
                }
            }
        }
    }

    #[test]
    fn the_processor_does_what_the_twin_does(case in case(), seed in any::<u64>()) {
        if !Level::AmxBf16.is_available() {
            eprintln!("skipped: this machine has no {}", Level::AmxBf16);
            return Ok(());
        }
        let some: Vec<usize> =
            noise(seed).take(37).map(|number| (number % case.x.len() as u64) as usize).collect();
        let mixed = [&some[..SIDE], &case.all()].concat();
        for inputs in [&case.all()[..], &some, &mixed, &some[..1]] {
            let expected = case.bits::<Twin>(&case.stored(), inputs);
            prop_assert_eq!(case.bits::<Hardware>(&case.stored(), inputs), expected);
        }
    }
}

#[test]
fn wide_rows_are_those_of_the_reference() {
    for format in FORMATS {
        made(format, (32, 4096, 3), 5, |_, block| 120 + (block % 9) as u8).check(0.0);
        made(format, (3, 4096, 33), 6, |row, block| 80 + (row + block) as u8 % 95).check(0.0);
    }
}

/// Scales that bf16 can't take up, from the least one on, and such that numbers stay below the largest.
#[test]
fn scales_of_any_size_do() {
    for format in [Format::Fp4, Format::Fp8] {
        for scale in [0, 1, 20, 86, 87, 167, 168, 220, 235] {
            let case = made(format, (5, 270, 20), 7, |row, _| if row % 2 == 0 { scale } else { 126 });
            // 9 steps, each to a whole multiple of 2^-149
            case.check(9.0 * f32::from_bits(1));
            assert!(case.stored().iter().any(|row| decoded(*row).iter().any(|&value| value != 0.0)));
        }
    }
}

/// Inputs near the largest number: a row whose scales are in its weights stays finite, the others can't, and neither changes the
/// other.
#[test]
fn a_row_goes_its_own_way_whatever_is_beside_it() {
    for format in [Format::Fp4, Format::Fp8] {
        let mut case = made(format, (20, 70, 3), 11, |row, _| if row % 3 == 0 { 200 } else { 90 });
        case.x.iter_mut().flatten().for_each(|x| *x = x.signum() * 3e38);
        let stored = case.stored();
        let Some(together) = case.bits::<Twin>(&stored, &case.all()) else { return };
        for (r, together) in together.chunks_exact(3).enumerate() {
            let alone = case.bits::<Twin>(&stored[r..=r], &case.all()).unwrap();
            assert_eq!(alone, together, "{format:?} row {r}");
            assert_eq!(together.iter().all(|&bits| f32::from_bits(bits).is_finite()), r % 3 != 0, "row {r}");
        }
    }
}

/// Padding is zero on both sides: what is not finite stays with its input, and spoils nothing that it is not multiplied with.
#[test]
fn infinity_stays_where_it_is() {
    for format in FORMATS {
        let mut case = made(format, (17, 38, 18), 8, |_, _| 127);
        let Some(expected) = case.bits::<Twin>(&case.stored(), &case.all()) else { return };
        (case.x[3][37], case.x[17][0]) = (f32::INFINITY, f32::NAN);
        let found = case.bits::<Twin>(&case.stored(), &case.all()).unwrap();
        for (r, row) in case.stored().into_iter().enumerate() {
            for i in 0..18 {
                let (found, expected) =
                    (f32::from_bits(found[r * 18 + i]), f32::from_bits(expected[r * 18 + i]));
                match i {
                    3 if decoded(row)[37] == 0.0 => assert!(found.is_nan()),
                    3 => assert_eq!(found, decoded(row)[37] * f32::INFINITY),
                    17 => assert!(found.is_nan()),
                    _ => assert_eq!(found, expected, "{format:?}"),
                }
            }
        }
    }
}

fn packed(case: &Case, moderate: bool) -> Vec<u16> {
    let mut lines = vec![bytemuck::cast([f32::NAN; SIDE]); case.cols.div_ceil(CHUNK) * 4 * WEIGHT_LINES];
    let row = |row: &StoredRow<'_>| Row { data: row.data.as_ptr(), scale: row.scale.as_ptr() };
    let rows: Vec<Row> = case.stored().iter().map(row).collect();
    // SAFETY: rows of the case's columns; callers have checked AVX-512.
    unsafe {
        match case.format {
            Format::Fp4 => weights::pack::<FP4>(&rows, case.cols, moderate, &mut lines),
            Format::Fp8 => weights::pack::<FP8>(&rows, case.cols, moderate, &mut lines),
            _ => weights::pack::<BF16>(&rows, case.cols, moderate, &mut lines),
        }
    }
    bytemuck::cast_slice(&lines).to_vec()
}

/// Row r has 100r + 1, 100r + 2 …, as far as bf16 holds these.
#[test]
fn weights_are_pairs_of_columns_side_by_side() {
    if kernels().is_none() {
        return;
    }
    let bits = |row: usize, col: usize| f32_to_bf16((100 * row + col + 1) as f32);
    let row = |row| ((0..36).flat_map(|col| bits(row, col).to_le_bytes()).collect(), Vec::new());
    let case = Case { format: Format::Bf16, cols: 36, rows: (0..18).map(row).collect(), x: Vec::new() };
    let found = packed(&case, true);
    // the first line: columns 0 and 1 of row 0, the same of row 1, and so on to row 15
    assert_eq!(found[..4], [1.0, 2.0, 101.0, 102.0].map(f32_to_bf16));
    assert_eq!(found[30..32], [bits(15, 0), bits(15, 1)]);
    // the second line: columns 2 and 3
    assert_eq!(found[32..36], [3.0, 4.0, 103.0, 104.0].map(f32_to_bf16));
    // line 15: columns 30 and 31
    assert_eq!(found[15 * 32..][..2], [31.0, 32.0].map(f32_to_bf16));
    // the second tile: rows 16 and 17, then none
    assert_eq!(found[16 * 32..][..5], [bits(16, 0), bits(16, 1), bits(17, 0), bits(17, 1), 0]);
    // the second step: columns 32 to 35, then none
    assert_eq!(found[32 * 32..][..4], [bits(0, 32), bits(0, 33), bits(1, 32), bits(1, 33)]);
    assert_eq!(found[33 * 32..][..2], [bits(0, 34), bits(0, 35)]);
    assert!(found[34 * 32..48 * 32].iter().all(|&bits| bits == 0));
    assert!(found[64 * 32..].iter().all(|&bits| bits == 0));
}

/// Codes in their order, with their scales or without.
#[test]
fn packed_weights_are_those_that_are_stored() {
    if kernels().is_none() {
        return;
    }
    for format in FORMATS {
        for cols in [270, 384, 98] {
            let case = made(format, (21, cols, 0), 9, |row, block| 110 + (row + 3 * block) as u8);
            let mut plain = case.clone();
            plain.rows.iter_mut().for_each(|(_, scale)| scale.fill(127));
            for (moderate, of) in [(true, &case), (false, &plain)] {
                let found = packed(&case, moderate);
                for (place, &found) in found.iter().enumerate() {
                    let (line, lane) = (place / 32, place % 32);
                    let (step, tile, pair) = (line / 32, line / 16 % 2, line % 16);
                    let (row, col) = (16 * tile + lane / 2, 32 * step + 2 * pair + lane % 2);
                    let there = row < 21 && col < cols;
                    let expected = if there { decoded(of.stored()[row])[col] } else { 0.0 };
                    assert_eq!(bf16_to_f32(found), expected, "{format:?} row {row} column {col}");
                }
            }
        }
    }
}

/// Even and odd columns apart, in order, and what is in the tile comes last; small numbers are zeros.
#[test]
fn the_twin_sums_as_it_is_documented() {
    let large = 2f32.powi(24);
    let run = |inputs: &[f32], before: f32| {
        let mut line = [0; STEP];
        line.iter_mut().zip(inputs).for_each(|(bits, &value)| *bits = f32_to_bf16(value));
        // the first weight row is all ones, the others are zeros
        let mut weights = vec![0; SIDE * STEP];
        weights.chunks_exact_mut(STEP).for_each(|pair| pair[..2].fill(f32_to_bf16(1.0)));
        let mut sums = [before; SIDE];
        multiply(&line, &weights, &mut sums);
        assert!(sums[1..].iter().all(|sum| *sum == before || before.is_subnormal()));
        sums[0]
    };
    // even: 1 is lost in 2^24; odd: it is not
    assert_eq!(run(&[large, 1.0, 1.0, 1.0, -large, 1.0], 0.0), 3.0);
    // the other way round in time: what comes after is kept
    assert_eq!(run(&[large, 0.0, -large, 0.0, 1.0, 0.0], 0.0), 1.0);
    // both sums together before the tile: 1 + 1 counts beside 2^24, 1 and 1 would not
    assert_eq!(run(&[1.0, 1.0], large), large + 2.0);
    assert_eq!(run(&[1.0, 0.0], large), large);
    // subnormal inputs, sums and tiles
    assert_eq!(run(&[f32::MIN_POSITIVE / 2.0], 0.0), 0.0);
    assert_eq!(run(&[f32::MIN_POSITIVE * 1.5, -f32::MIN_POSITIVE], 0.0), 0.0);
    assert_eq!(run(&[f32::MIN_POSITIVE], f32::MIN_POSITIVE / 2.0), f32::MIN_POSITIVE);
}

/// Steps in order: what is lost in one is not found in another.
#[test]
fn a_sum_takes_its_steps_in_order() {
    let large = 2f32.powi(24);
    let ones = |cols: usize| vec![f32_to_bf16(1.0); cols].into_iter().flat_map(u16::to_le_bytes).collect();
    // where 2^24, 1 and -2^24 are
    for (places, expected) in
        [([0, 32, 64], 0.0), ([0, 64, 32], 1.0), ([64, 0, 300], 0.0), ([64, 300, 200], 1.0)]
    {
        let mut x = vec![0.0; 301];
        places.iter().zip([large, 1.0, -large]).for_each(|(&place, value)| x[place] = value);
        let case = Case { format: Format::Bf16, cols: 301, rows: vec![(ones(301), Vec::new())], x: vec![x] };
        let Some(found) = case.bits::<Twin>(&case.stored(), &[0]) else { return };
        assert_eq!(f32::from_bits(found[0]), expected, "{places:?}");
    }
}

/// As LDTILECFG has it: sums, inputs, weights; rows of tiles behind their bytes.
#[test]
fn tiles_are_as_large_as_their_groups() {
    let bytes = |groups| bytemuck::bytes_of(&Config::new(groups)).to_vec();
    let two = bytes([16, 3]);
    assert_eq!((two.len(), two[0]), (64, 1));
    assert!(two[1..16].iter().all(|&byte| byte == 0));
    assert_eq!(two[16..32], [64, 0].repeat(8));
    assert!(two[32..48].iter().all(|&byte| byte == 0));
    assert_eq!(two[48..], [16, 16, 3, 3, 16, 3, 16, 16, 0, 0, 0, 0, 0, 0, 0, 0]);
    let one = bytes([5, 0]);
    assert_eq!(one[16..32], [64, 0, 64, 0, 0, 0, 0, 0, 64, 0, 0, 0, 64, 0, 64, 0]);
    assert_eq!(one[48..56], [5, 5, 0, 0, 5, 0, 16, 16]);
    assert_eq!(align_of::<Config>(), 64);
}

/// What is not a product of bf16 is what AVX-512 makes of it.
#[test]
fn everything_else_is_that_of_avx512() {
    let Some(tiles) = kernels() else { return };
    let other = Kernels { level: Level::Avx512Bf16, products: Products::Bf16 };
    let values: Vec<f32> = (0..20 * SCORED).map(|i| (i as f32 * 0.37).sin()).collect();
    let case = made(Format::Fp4, (3, 64, 5), 10, |_, _| 120);
    let all = |kernels: Kernels| {
        let mut found = Vec::new();
        let mut add = |out: &[f32]| found.extend(out.iter().map(|value| value.to_bits()));
        add(&kernels.dots(&values[..77], [&values[100..177]]));
        let mut weights = values[..77].to_vec();
        kernels.softmax(&mut weights, 0.3, 0.1);
        add(&weights);
        kernels.gated(&mut weights, &values[7..84], 0.8);
        add(&weights);
        let mut out = vec![0.0; 6];
        kernels.scores(&values[..40], 20, &values, &[3, 50, 11], &mut out);
        add(&out);
        let mut out = vec![0.0; 40];
        kernels.values(&values[..6], 20, &values, &[3, 50, 11], &mut out);
        add(&out);
        let mut out = [0.0; SCORED];
        kernels.index_scores(&values[..40], &values[..2], &values, &mut out);
        add(&out);
        let single = kernels.with_products(Products::F32);
        let panel = case.panel(single);
        let mut out = vec![0.0; 15];
        single.row_products(&case.stored(), &panel, 5, |i| i, &mut Decoded::default(), &mut out);
        add(&out);
        found
    };
    assert_eq!(all(tiles), all(other));
    let mut columns = vec![0.0; values.len()];
    tiles.transpose(&values, 20, &mut columns);
    assert_eq!((columns[1], columns[SCORED]), (values[20], values[1]));
    assert_eq!(
        tiles.with_products(Products::F32).layout(Format::Fp4),
        other.with_products(Products::F32).layout(Format::Fp4)
    );
}

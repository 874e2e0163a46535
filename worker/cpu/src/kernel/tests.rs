use belay_backend::{FP4_BLOCK, FP8_BLOCK, Format};
use proptest::prelude::*;

use super::*;

/// Levels above scalar that this machine has.
fn vector_levels() -> Vec<Kernels> {
    Level::ALL.into_iter().skip(1).filter_map(Kernels::new).collect()
}

fn values(len: usize) -> impl Strategy<Value = Vec<f32>> {
    prop::collection::vec(-4f32..4.0, len)
}

/// Lengths around every multiple that a kernel treats apart.
fn length() -> impl Strategy<Value = usize> {
    prop_oneof![0usize..70, 120usize..140, 250usize..290]
}

fn decoded(kernels: Kernels, row: StoredRow<'_>) -> Vec<f32> {
    let mut out = vec![f32::NAN; row.cols];
    kernels.decode(row, &mut out);
    out
}

fn check_decode(row: StoredRow<'_>) -> Result<(), TestCaseError> {
    let expected = decoded(Kernels::new(Level::Scalar).unwrap(), row);
    for kernels in vector_levels() {
        prop_assert_eq!(&decoded(kernels, row), &expected, "{}", kernels.level());
    }
    Ok(())
}

proptest! {
    #[test]
    fn every_level_decodes_bf16_exactly(values in length().prop_flat_map(values)) {
        let data: Vec<u8> = values.iter().flat_map(|x| ((x.to_bits() >> 16) as u16).to_le_bytes()).collect();
        check_decode(StoredRow { format: Format::Bf16, data: &data, scale: &[], cols: values.len() })?;
    }

    #[test]
    fn every_level_decodes_f32_exactly(values in length().prop_flat_map(values)) {
        let data: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
        let row = StoredRow { format: Format::F32, data: &data, scale: &[], cols: values.len() };
        prop_assert_eq!(&decoded(Kernels::new(Level::Scalar).unwrap(), row), &values);
        check_decode(row)?;
    }

    #[test]
    fn every_level_decodes_fp8_exactly(
        (data, scale) in length().prop_flat_map(|len| {
            let code = any::<u8>().prop_map(|code| if code & 0x7f == 0x7f { 0 } else { code });
            (prop::collection::vec(code, len), prop::collection::vec(60u8..190, len.div_ceil(FP8_BLOCK)))
        })
    ) {
        check_decode(StoredRow { format: Format::Fp8, data: &data, scale: &scale, cols: data.len() })?;
    }

    #[test]
    fn every_level_decodes_fp4_exactly(
        (cols, data, scale) in length().prop_flat_map(|len| (
            Just(len),
            prop::collection::vec(any::<u8>(), len.div_ceil(2)),
            prop::collection::vec(60u8..190, len.div_ceil(FP4_BLOCK)),
        ))
    ) {
        check_decode(StoredRow { format: Format::Fp4, data: &data, scale: &scale, cols })?;
    }

    /// f32 sums of n products differ from the exact one by at most about n·ε·Σ|w·x|; vector sums are better than that.
    #[test]
    fn every_level_sums_like_the_reference(
        (w, x) in length().prop_flat_map(|len| (values(len), values(len)))
    ) {
        let [expected] = Kernels::new(Level::Scalar).unwrap().dots(&w, [&x]);
        let magnitude: f32 = w.iter().zip(&x).map(|(w, x)| (w * x).abs()).sum();
        for kernels in vector_levels() {
            let [found] = kernels.dots(&w, [&x]);
            let tolerance = 8.0 * f32::EPSILON * magnitude;
            prop_assert!((found - expected).abs() <= tolerance, "{} {found} {expected}", kernels.level());
        }
    }

    #[test]
    fn a_dot_product_has_the_same_bits_beside_any_others(
        (w, x) in length().prop_flat_map(|len| (values(len), prop::collection::vec(values(len), 1..10)))
    ) {
        for kernels in Level::ALL.into_iter().filter_map(Kernels::new) {
            let mut together = vec![0.0; x.len()];
            kernels.dot_all(&w, x.len(), |i| &x[i], &mut together);
            for (x, together) in x.iter().zip(together) {
                let [alone] = kernels.dots(&w, [x]);
                prop_assert_eq!(alone.to_bits(), together.to_bits(), "{}", kernels.level());
            }
        }
    }

    #[test]
    fn every_level_scores_like_the_reference_and_alike_in_any_column(
        (width, heads, q, weights, keys) in (1usize..40, 1usize..20).prop_flat_map(|(width, heads)| (
            Just(width), Just(heads), values(heads * width), values(heads), values(width * SCORED),
        )),
        shift in 1usize..SCORED,
    ) {
        let scores = |kernels: Kernels, keys: &[f32]| {
            let mut scores = [f32::NAN; SCORED];
            kernels.index_scores(&q, &weights, keys, &mut scores);
            scores
        };
        let expected = scores(Kernels::new(Level::Scalar).unwrap(), &keys);
        let mut turned = keys.clone();
        turned.chunks_exact_mut(SCORED).for_each(|row| row.rotate_left(shift));
        for kernels in Level::ALL.into_iter().filter_map(Kernels::new) {
            let found = scores(kernels, &keys);
            let mut back = scores(kernels, &turned);
            back.rotate_right(shift);
            for column in 0..SCORED {
                // up to 16 from each product of q, key and weight
                let tolerance = f32::EPSILON * (64 * heads * width * (width + heads)) as f32;
                prop_assert!((found[column] - expected[column]).abs() <= tolerance, "{}", kernels.level());
                prop_assert_eq!(found[column].to_bits(), back[column].to_bits(), "{}", kernels.level());
            }
        }
    }

    /// Attention's three steps for several heads over rows that overlap as they like.
    #[test]
    fn every_level_attends_like_the_reference_and_alike_beside_any_heads_and_keys(
        (width, heads, q, base, places) in (length(), 1usize..10).prop_flat_map(|(width, heads)| (
            Just(width.max(1)),
            Just(heads),
            values(heads * width.max(1)),
            values(width.max(1) + 50),
            prop::collection::vec(0usize..=50, 0..80),
        )),
        (scale, sink) in (0.01f32..0.3, -4f32..4.0),
    ) {
        let count = places.len();
        let attend = |kernels: Kernels, q: &[f32], places: &[usize]| {
            let mut scores = vec![f32::NAN; q.len() / width * places.len()];
            kernels.scores(q, width, &base, places, &mut scores);
            let mut weights = scores.clone();
            weights.chunks_exact_mut(places.len().max(1)).for_each(|head| kernels.softmax(head, scale, sink));
            let mut out = vec![f32::NAN; q.len()];
            kernels.values(&weights, width, &base, places, &mut out);
            (scores, weights, out)
        };
        let (scores, weights, out) = attend(Kernels::new(Level::Scalar).unwrap(), &q, &places);
        for kernels in Level::ALL.into_iter().filter_map(Kernels::new) {
            let found = attend(kernels, &q, &places);
            // products are at most 16; a weight's error is that of its exponent, and a value is at most 4
            let close = |found: &[f32], expected: &[f32], tolerance: f32| {
                found.iter().zip(expected).all(|(a, b)| (a - b).abs() <= tolerance)
            };
            let product = f32::EPSILON * 16.0 * width as f32;
            let weight = 2.0 * scale * product + 8.0 * f32::EPSILON;
            prop_assert!(close(&found.0, &scores, product), "scores, {}", kernels.level());
            prop_assert!(close(&found.1, &weights, weight), "weights, {}", kernels.level());
            let value = 4.0 * count as f32 * (weight + f32::EPSILON * count as f32);
            prop_assert!(close(&found.2, &out, value), "values, {}", kernels.level());
            for head in 0..heads {
                let alone = attend(kernels, &q[head * width..][..width], &places);
                prop_assert_eq!(&alone.0, &found.0[head * count..][..count], "scores, {}", kernels.level());
                prop_assert_eq!(&alone.1, &found.1[head * count..][..count], "weights, {}", kernels.level());
                prop_assert_eq!(&alone.2, &found.2[head * width..][..width], "values, {}", kernels.level());
            }
            for (key, &place) in places.iter().enumerate() {
                let (alone, ..) = attend(kernels, &q[..width], &[place]);
                prop_assert_eq!(alone[0].to_bits(), found.0[key].to_bits(), "a key, {}", kernels.level());
            }
        }
    }

    #[test]
    fn every_level_transposes(width in 1usize..70, seed in any::<u32>()) {
        let keys: Vec<f32> = (0..SCORED * width).map(|i| f32::from_bits(seed ^ (i as u32 * 7919))).collect();
        for kernels in Level::ALL.into_iter().filter_map(Kernels::new) {
            let mut columns = vec![f32::NAN; SCORED * width];
            kernels.transpose(&keys, width, &mut columns);
            for (i, column) in columns.iter().enumerate() {
                let expected = keys[i % SCORED * width + i / SCORED];
                prop_assert_eq!(column.to_bits(), expected.to_bits(), "{}", kernels.level());
            }
        }
    }
}

#[test]
fn every_level_decodes_every_code() {
    let codes: Vec<u8> = (0..=255u8).filter(|code| code & 0x7f != 0x7f).collect();
    let scale = vec![127; codes.len().div_ceil(FP8_BLOCK)];
    let row = StoredRow { format: Format::Fp8, data: &codes, scale: &scale, cols: codes.len() };
    let pairs: Vec<u8> = (0..=255).collect();
    let scale = vec![127; 512 / FP4_BLOCK];
    let packed = StoredRow { format: Format::Fp4, data: &pairs, scale: &scale, cols: 512 };
    for row in [row, packed] {
        let expected = decoded(Kernels::new(Level::Scalar).unwrap(), row);
        for kernels in vector_levels() {
            assert_eq!(decoded(kernels, row), expected, "{}", kernels.level());
        }
    }
}

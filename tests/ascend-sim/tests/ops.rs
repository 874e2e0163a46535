//! The ops against values worked out by hand and against formulas written another way.

#![allow(clippy::macro_metavars_in_unsafe, reason = "the arguments of op! are plain values")]

mod common;

use common::*;
use half::{bf16, f16};

const PLAIN: &str = r#"{"devices":1,"memory_bytes":16777216}"#;
const A3: &str = r#"{"soc":"Ascend910_9391","devices":1,"memory_bytes":16777216}"#;
const PR950: &str = r#"{"soc":"Ascend950PR_9579","devices":1,"memory_bytes":16777216}"#;

fn bf(values: &[f32]) -> Vec<bf16> {
    values.iter().map(|value| bf16::from_f32(*value)).collect()
}

#[test]
fn sums_broadcast_and_scale() {
    let _sim = sim(PLAIN);
    let a = Tensor::of(&[2, 3], &[1.0f32, 2.0, 3.0, 4.0, 5.0, 6.0]);
    let b = Tensor::of(&[3], &[10.0f32, 20.0, 30.0]);
    let out = Tensor::new::<f32>(&[2, 3]);
    let alpha = scalar(2.0f32);
    ok(op!(arithmetic, aclnnAddGetWorkspaceSize, aclnnAdd, a.handle, b.handle, alpha, out.handle));
    assert_eq!(out.values::<f32>(), [21.0, 42.0, 63.0, 24.0, 45.0, 66.0]);
    ok(op!(arithmetic, aclnnSubGetWorkspaceSize, aclnnSub, a.handle, b.handle, alpha, out.handle));
    assert_eq!(out.values::<f32>(), [-19.0, -38.0, -57.0, -16.0, -35.0, -54.0]);
    ok(op!(arithmetic, aclnnMulGetWorkspaceSize, aclnnMul, a.handle, b.handle, out.handle));
    assert_eq!(out.values::<f32>(), [10.0, 40.0, 90.0, 40.0, 100.0, 180.0]);
    ok(op!(arithmetic, aclnnDivGetWorkspaceSize, aclnnDiv, a.handle, b.handle, out.handle));
    near(&out.values::<f32>(), &[0.1, 0.1, 0.1, 0.4, 0.25, 0.2], 1e-7);
    ok(op!(arithmetic, aclnnAddsGetWorkspaceSize, aclnnAdds, a.handle, alpha, alpha, out.handle));
    assert_eq!(out.values::<f32>(), [5.0, 6.0, 7.0, 8.0, 9.0, 10.0]);
    ok(op!(arithmetic, aclnnMulsGetWorkspaceSize, aclnnMuls, a.handle, alpha, out.handle));
    assert_eq!(out.values::<f32>(), [2.0, 4.0, 6.0, 8.0, 10.0, 12.0]);
    let wrong = Tensor::new::<f32>(&[3, 2]);
    let code = op!(arithmetic, aclnnMulGetWorkspaceSize, aclnnMul, a.handle, b.handle, wrong.handle);
    assert_eq!(code, 161_002);
    assert!(message().contains("[3, 2]"));
    let code = op!(arithmetic, aclnnMulGetWorkspaceSize, aclnnMul, a.handle, NULL, out.handle);
    assert_eq!(code, 161_001);
}

#[test]
fn types_are_promoted() {
    let _sim = sim(PLAIN);
    let halves = Tensor::of(&[2], &bf(&[1.0, 257.0]));
    let wholes = Tensor::of(&[2], &[1i32, 2]);
    let floats = Tensor::of(&[2], &[0.001f32, 1.0]);
    let alpha = scalar(1i64);
    let out = Tensor::new::<bf16>(&[2]);
    // 256 + 2 has no bf16 between 256 and 258: the result is rounded
    ok(op!(arithmetic, aclnnAddGetWorkspaceSize, aclnnAdd, halves.handle, wholes.handle, alpha, out.handle));
    assert_eq!(out.values::<bf16>(), bf(&[2.0, 258.0]));
    let wide = Tensor::new::<f32>(&[2]);
    ok(op!(arithmetic, aclnnAddGetWorkspaceSize, aclnnAdd, halves.handle, floats.handle, alpha, wide.handle));
    assert_eq!(wide.values::<f32>(), [1.001, 257.0]);
    let whole = Tensor::new::<i32>(&[2]);
    let code = op!(
        arithmetic,
        aclnnAddGetWorkspaceSize,
        aclnnAdd,
        halves.handle,
        wholes.handle,
        alpha,
        whole.handle
    );
    assert_eq!(code, 161_002, "floats are not stored as integers");
    let half = scalar(0.5f32);
    let code =
        op!(arithmetic, aclnnAddGetWorkspaceSize, aclnnAdd, wholes.handle, wholes.handle, half, whole.handle);
    assert_eq!(code, 161_002, "alpha");
    ok(op!(
        arithmetic,
        aclnnAddGetWorkspaceSize,
        aclnnAdd,
        wholes.handle,
        wholes.handle,
        alpha,
        whole.handle
    ));
    assert_eq!(whole.values::<i32>(), [2, 4]);
}

#[test]
fn functions_of_one_operand() {
    let _sim = sim(PLAIN);
    let values = [0.25f32, 1.0, 2.0, 9.0];
    let x = Tensor::of(&[4], &values);
    let out = Tensor::new::<f32>(&[4]);
    let check = |expected: [f32; 4]| near(&out.values::<f32>(), &expected, 1e-6);
    ok(op!(arithmetic, aclnnSqrtGetWorkspaceSize, aclnnSqrt, x.handle, out.handle));
    check([0.5, 1.0, std::f32::consts::SQRT_2, 3.0]);
    ok(op!(arithmetic, aclnnRsqrtGetWorkspaceSize, aclnnRsqrt, x.handle, out.handle));
    check([2.0, 1.0, std::f32::consts::FRAC_1_SQRT_2, 1.0 / 3.0]);
    ok(op!(arithmetic, aclnnExpGetWorkspaceSize, aclnnExp, x.handle, out.handle));
    check([1.284_025_4, std::f32::consts::E, 7.389_056, 8_103.084]);
    ok(op!(arithmetic, aclnnLogGetWorkspaceSize, aclnnLog, x.handle, out.handle));
    check([-1.386_294_4, 0.0, std::f32::consts::LN_2, 2.197_224_6]);
    ok(op!(activation, aclnnSigmoidGetWorkspaceSize, aclnnSigmoid, x.handle, out.handle));
    check([0.562_176_5, 0.731_058_6, 0.880_797, 0.999_876_6]);
    ok(op!(activation, aclnnSiluGetWorkspaceSize, aclnnSilu, x.handle, out.handle));
    check([0.140_544_1, 0.731_058_6, 1.761_594_2, 8.998_89]);
    let (one, limit) = (scalar(1.0f32), scalar(5.0f32));
    ok(op!(activation, aclnnSoftplusGetWorkspaceSize, aclnnSoftplus, x.handle, one, limit, out.handle));
    check([0.825_939_4, 1.313_261_7, 2.126_928, 9.0]);
    ok(op!(arithmetic, aclnnClampGetWorkspaceSize, aclnnClamp, x.handle, one, NULL, out.handle));
    check([1.0, 1.0, 2.0, 9.0]);
    ok(op!(arithmetic, aclnnClampGetWorkspaceSize, aclnnClamp, x.handle, one, limit, out.handle));
    check([1.0, 1.0, 2.0, 5.0]);
    assert_eq!(
        op!(arithmetic, aclnnClampGetWorkspaceSize, aclnnClamp, x.handle, NULL, NULL, out.handle),
        161_001
    );
    let halves = Tensor::new::<bf16>(&[4]);
    ok(op!(arithmetic, aclnnCastGetWorkspaceSize, aclnnCast, x.handle, 27, halves.handle));
    assert_eq!(halves.values::<bf16>(), bf(&values));
    assert_eq!(op!(arithmetic, aclnnCastGetWorkspaceSize, aclnnCast, x.handle, 1, halves.handle), 161_002);
    let wholes = Tensor::new::<i64>(&[4]);
    ok(op!(arithmetic, aclnnCastGetWorkspaceSize, aclnnCast, x.handle, 9, wholes.handle));
    assert_eq!(wholes.values::<i64>(), [0, 1, 2, 9]);
}

#[test]
fn reductions() {
    let _sim = sim(PLAIN);
    let x = Tensor::of(&[2, 3, 2], &(1..=12).map(|i| i as f32).collect::<Vec<_>>());
    let (middle, all) = (ints(&[1]), ints(&[]));
    let out = Tensor::new::<f32>(&[2, 2]);
    ok(op!(reduce, aclnnReduceSumGetWorkspaceSize, aclnnReduceSum, x.handle, middle, false, 0, out.handle));
    assert_eq!(out.values::<f32>(), [9.0, 12.0, 27.0, 30.0]);
    ok(op!(reduce, aclnnMeanGetWorkspaceSize, aclnnMean, x.handle, middle, false, 0, out.handle));
    assert_eq!(out.values::<f32>(), [3.0, 4.0, 9.0, 10.0]);
    ok(op!(reduce, aclnnAmaxGetWorkspaceSize, aclnnAmax, x.handle, middle, false, out.handle));
    assert_eq!(out.values::<f32>(), [5.0, 6.0, 11.0, 12.0]);
    assert_eq!(
        op!(reduce, aclnnAmaxGetWorkspaceSize, aclnnAmax, x.handle, middle, true, out.handle),
        161_002
    );
    let kept = Tensor::new::<f32>(&[1, 1, 1]);
    ok(op!(reduce, aclnnReduceSumGetWorkspaceSize, aclnnReduceSum, x.handle, all, true, 0, kept.handle));
    assert_eq!(kept.values::<f32>(), [78.0]);
    let best = Tensor::new::<i64>(&[2, 3]);
    let y = Tensor::of(&[2, 3, 2], &[3.0f32, 3.0, 1.0, 2.0, 9.0, 0.0, 0.0, 1.0, 5.0, 4.0, -1.0, -2.0]);
    ok(op!(reduce, aclnnArgMaxGetWorkspaceSize, aclnnArgMax, y.handle, -1, false, best.handle));
    assert_eq!(best.values::<i64>(), [0, 1, 0, 1, 0, 0]);
    let soft = Tensor::new::<f32>(&[2, 3, 2]);
    ok(op!(reduce, aclnnSoftmaxGetWorkspaceSize, aclnnSoftmax, y.handle, 1, soft.handle));
    let values = soft.values::<f32>();
    near(&[values[0] + values[2] + values[4]], &[1.0], 1e-6);
    // e^3 / (e^3 + e^1 + e^9)
    near(&values[..1], &[0.002_471_792_6], 1e-6);
}

#[test]
fn the_k_largest() {
    let _sim = sim(PLAIN);
    let x = Tensor::of(&[2, 4], &bf(&[1.0, 4.0, 2.0, 3.0, 8.0, -1.0, 7.0, 9.0]));
    let (values, places) = (Tensor::new::<bf16>(&[2, 2]), Tensor::new::<i64>(&[2, 2]));
    let run = |largest, sorted| {
        op!(
            reduce,
            aclnnTopkGetWorkspaceSize,
            aclnnTopk,
            x.handle,
            2,
            -1,
            largest,
            sorted,
            values.handle,
            places.handle
        )
    };
    ok(run(true, true));
    assert_eq!(values.values::<bf16>(), bf(&[4.0, 3.0, 9.0, 8.0]));
    assert_eq!(places.values::<i64>(), [1, 3, 3, 0]);
    ok(run(false, true));
    assert_eq!(places.values::<i64>(), [0, 2, 1, 2]);
    ok(run(true, false));
    assert_eq!(places.values::<i64>(), [3, 1, 0, 3], "unsorted is not sorted");
    let narrow = Tensor::new::<i32>(&[2, 2]);
    let code = op!(
        reduce,
        aclnnTopkGetWorkspaceSize,
        aclnnTopk,
        x.handle,
        2,
        -1,
        true,
        true,
        values.handle,
        narrow.handle
    );
    assert_eq!(code, 161_002, "indices are INT64");
}

#[test]
fn moving_elements() {
    let _sim = sim(PLAIN);
    let x = Tensor::of(&[2, 3], &[1i32, 2, 3, 4, 5, 6]);
    let turned = Tensor::new::<i32>(&[3, 2]);
    ok(op!(layout, aclnnPermuteGetWorkspaceSize, aclnnPermute, x.handle, ints(&[1, 0]), turned.handle));
    assert_eq!(turned.values::<i32>(), [1, 4, 2, 5, 3, 6]);
    assert_eq!(
        op!(layout, aclnnPermuteGetWorkspaceSize, aclnnPermute, x.handle, ints(&[1, 1]), turned.handle),
        161_002
    );
    let part = Tensor::new::<i32>(&[2, 2]);
    ok(op!(layout, aclnnSliceGetWorkspaceSize, aclnnSlice, x.handle, 1, -2, 99, 1, part.handle));
    assert_eq!(part.values::<i32>(), [2, 3, 5, 6]);
    ok(op!(layout, aclnnSliceGetWorkspaceSize, aclnnSlice, x.handle, 1, 0, 3, 2, part.handle));
    assert_eq!(part.values::<i32>(), [1, 3, 4, 6]);
    let joined = Tensor::new::<i32>(&[2, 5]);
    let both = list(&[&x, &part]);
    ok(op!(layout, aclnnCatGetWorkspaceSize, aclnnCat, both, -1, joined.handle));
    assert_eq!(joined.values::<i32>(), [1, 2, 3, 1, 3, 4, 5, 6, 4, 6]);
    // a transposed view of a part: columns 1 and 2, as rows
    let view = joined.view::<i32>(&[2, 2], &[1, 5], 1);
    ok(op!(layout, aclnnInplaceCopyGetWorkspaceSize, aclnnInplaceCopy, part.handle, view.handle));
    assert_eq!(part.values::<i32>(), [2, 5, 3, 6]);
    let floats = Tensor::new::<f32>(&[2, 2]);
    ok(op!(layout, aclnnInplaceCopyGetWorkspaceSize, aclnnInplaceCopy, floats.handle, part.handle));
    assert_eq!(floats.values::<f32>(), [2.0, 5.0, 3.0, 6.0]);
    let outside = joined.view::<i32>(&[2, 2], &[6, 1], 4);
    let code = op!(layout, aclnnInplaceCopyGetWorkspaceSize, aclnnInplaceCopy, part.handle, outside.handle);
    assert_eq!(code, 361_001, "the view leaves its memory");
}

#[test]
fn constants_and_ranges() {
    let _sim = sim(PLAIN);
    let x = Tensor::new::<f32>(&[3]);
    ok(op!(fill, aclnnInplaceZeroGetWorkspaceSize, aclnnInplaceZero, x.handle));
    assert_eq!(x.values::<f32>(), [0.0; 3]);
    ok(op!(fill, aclnnInplaceFillScalarGetWorkspaceSize, aclnnInplaceFillScalar, x.handle, scalar(2i64)));
    assert_eq!(x.values::<f32>(), [2.0; 3]);
    let (start, end, step) = (scalar(1i64), scalar(6i64), scalar(2i64));
    let places = Tensor::new::<i64>(&[3]);
    ok(op!(fill, aclnnArangeGetWorkspaceSize, aclnnArange, start, end, step, places.handle));
    assert_eq!(places.values::<i64>(), [1, 3, 5]);
    let short = Tensor::new::<i64>(&[2]);
    assert_eq!(op!(fill, aclnnArangeGetWorkspaceSize, aclnnArange, start, end, step, short.handle), 161_002);
    let choice = Tensor::of(&[3], &[true, false, true]);
    let out = Tensor::new::<i64>(&[3]);
    let other = Tensor::of(&[1], &[9i64]);
    ok(op!(
        arithmetic,
        aclnnSWhereGetWorkspaceSize,
        aclnnSWhere,
        choice.handle,
        places.handle,
        other.handle,
        out.handle
    ));
    assert_eq!(out.values::<i64>(), [1, 9, 5]);
}

/// A product by the definition, in f64.
fn product(a: &[f32], b: &[f32], m: usize, k: usize, n: usize) -> Vec<f32> {
    let at = |i: usize| {
        (0..k).map(|l| f64::from(a[i / n * k + l]) * f64::from(b[l * n + i % n])).sum::<f64>() as f32
    };
    (0..m * n).map(at).collect()
}

#[test]
fn products() {
    let _sim = sim(PLAIN);
    let (m, k, n) = (3, 50, 4);
    let (a, b) = (noise(m * k, 1), noise(k * n, 2));
    let expected = product(&a, &b, m, k, n);
    let (x, y) = (Tensor::of(&[3, 50], &a), Tensor::of(&[50, 4], &b));
    let out = Tensor::new::<f32>(&[3, 4]);
    ok(op!(matmul, aclnnMmGetWorkspaceSize, aclnnMm, x.handle, y.handle, out.handle, 0));
    near(&out.values::<f32>(), &expected, 1e-5);
    // HF32 keeps 10 bits of mantissa: what is beyond is rounded away
    let (fine, one) = (Tensor::of(&[1, 1], &[1.0f32 + 1.0 / 4096.0]), Tensor::of(&[1, 1], &[1.0f32]));
    let seen = Tensor::new::<f32>(&[1, 1]);
    for (kind, expected) in [(0, 1.0 + 1.0 / 4096.0), (1, 1.0), (2, 1.0), (3, 1.0)] {
        ok(op!(matmul, aclnnMmGetWorkspaceSize, aclnnMm, fine.handle, one.handle, seen.handle, kind));
        assert_eq!(seen.values::<f32>(), [expected], "cubeMathType {kind}");
    }
    // a transposed weight is a strided view
    let turned: Vec<f32> = (0..k * n).map(|i| b[i % k * n + i / k]).collect();
    let memory = Tensor::of(&[4, 50], &turned);
    let view = memory.view::<f32>(&[50, 4], &[1, 50], 0);
    ok(op!(matmul, aclnnMatmulGetWorkspaceSize, aclnnMatmul, x.handle, view.handle, out.handle, 0));
    near(&out.values::<f32>(), &expected, 1e-5);
    // batches broadcast, and a vector loses its axis
    let batch = Tensor::of(&[2, 3, 50], &[a.clone(), a.iter().map(|x| -x).collect()].concat());
    let many = Tensor::new::<f32>(&[2, 3, 4]);
    ok(op!(matmul, aclnnMatmulGetWorkspaceSize, aclnnMatmul, batch.handle, y.handle, many.handle, 0));
    near(&many.values::<f32>()[12..], &expected.iter().map(|x| -x).collect::<Vec<_>>(), 1e-5);
    let row = Tensor::of(&[50], &a[..50]);
    let short = Tensor::new::<f32>(&[4]);
    ok(op!(matmul, aclnnMatmulGetWorkspaceSize, aclnnMatmul, row.handle, y.handle, short.handle, 0));
    near(&short.values::<f32>(), &expected[..4], 1e-5);
    let code = op!(
        matmul,
        aclnnBatchMatMulGetWorkspaceSize,
        aclnnBatchMatMul,
        batch.handle,
        y.handle,
        many.handle,
        0
    );
    assert_eq!(code, 161_002, "BatchMatMul takes batches of both");
    // types
    let (p, q) = (Tensor::of(&[3, 50], &bf(&a)), Tensor::of(&[50, 4], &bf(&b)));
    let halves = Tensor::new::<bf16>(&[3, 4]);
    ok(op!(matmul, aclnnMmGetWorkspaceSize, aclnnMm, p.handle, q.handle, halves.handle, 0));
    let got: Vec<f32> = halves.values::<bf16>().into_iter().map(bf16::to_f32).collect();
    near(&got, &expected, 4e-2);
    assert_eq!(op!(matmul, aclnnMmGetWorkspaceSize, aclnnMm, p.handle, q.handle, halves.handle, 2), 161_002);
    assert_eq!(
        op!(matmul, aclnnMmGetWorkspaceSize, aclnnMm, p.handle, y.handle, out.handle, 0),
        161_002,
        "BF16 by FP32"
    );
}

#[test]
fn grouped_products() {
    let _sim = sim(PLAIN);
    let (m, k, n, e) = (5usize, 6, 4, 3);
    let (x, w) = (noise(m * k, 3), noise(e * k * n, 4));
    let rows = [0, 2, 2];
    // expert 0: 2 rows, expert 1: none, expert 2: 2 rows; the last row is nobody's
    let owner = |row: usize| {
        if row < 2 {
            Some(0)
        } else if row < 4 {
            Some(2)
        } else {
            None
        }
    };
    let _ = rows;
    for (kind, shape, groups) in
        [(0, vec![3], vec![2i64, 2, 4]), (1, vec![3], vec![2, 0, 2]), (2, vec![3, 2], vec![0, 2, 2, 2, 0, 0])]
    {
        let (a, b) = (Tensor::of(&[5, 6], &bf(&x)), Tensor::of(&[3, 6, 4], &bf(&w)));
        let out = Tensor::of(&[5, 4], &bf(&[7.0; 20]));
        let groups = Tensor::of(&shape, &groups);
        let (xs, ws, outs) = (list(&[&a]), list(&[&b]), list(&[&out]));
        ok(op!(
            grouped,
            aclnnGroupedMatmulV5GetWorkspaceSize,
            aclnnGroupedMatmulV5,
            xs,
            ws,
            NULL,
            NULL,
            NULL,
            NULL,
            NULL,
            NULL,
            groups.handle,
            NULL,
            NULL,
            NULL,
            3,
            0,
            kind,
            0,
            NULL,
            outs,
            NULL,
            NULL
        ));
        let got: Vec<f32> = out.values::<bf16>().into_iter().map(bf16::to_f32).collect();
        for row in 0..m {
            let expected = match owner(row) {
                Some(expert) => {
                    product(&x[row * k..(row + 1) * k], &w[expert * k * n..(expert + 1) * k * n], 1, k, n)
                }
                None => vec![7.0; n],
            };
            near(&got[row * n..(row + 1) * n], &expected, 3e-2);
        }
        // a list destroys its members
        // SAFETY: handles are looked up.
        ok(unsafe { aclDestroyTensorList(xs) });
        // SAFETY: handles are looked up.
        assert_eq!(unsafe { aclDestroyTensor(a.handle) }, 161_002);
    }
}

#[test]
fn grouped_products_of_int8() {
    let _sim = sim(PLAIN);
    let x = Tensor::of(&[3, 2], &[1i8, 2, 3, 4, -5, 6]);
    let w = Tensor::of(&[2, 2, 2], &[1i8, 2, 3, 4, 5, 6, 7, 8]);
    let scale = Tensor::of(&[2, 2], &[0.5f32, 1.0, 2.0, 0.25]);
    let halves = Tensor::of(&[2, 2], &bf(&[0.5, 1.0, 2.0, 0.25]));
    let token = Tensor::of(&[3], &[1.0f32, 0.5, 2.0]);
    let groups = Tensor::of(&[2], &[1i64, 3]);
    let out = Tensor::new::<f16>(&[3, 2]);
    let lists = [&x, &w, &scale, &token, &out].map(|tensor| list(&[tensor]));
    let run = |scale| {
        op!(
            grouped,
            aclnnGroupedMatmulV5GetWorkspaceSize,
            aclnnGroupedMatmulV5,
            lists[0],
            lists[1],
            NULL,
            scale,
            NULL,
            NULL,
            NULL,
            lists[3],
            groups.handle,
            NULL,
            NULL,
            NULL,
            3,
            0,
            0,
            0,
            NULL,
            lists[4],
            NULL,
            NULL
        )
    };
    ok(run(lists[2]));
    let got: Vec<f32> = out.values::<f16>().into_iter().map(f16::to_f32).collect();
    // row 0 by expert 0: [7, 10]; rows 1 and 2 by expert 1: [43, 50] and [17, 18]
    assert_eq!(got, [3.5, 10.0, 43.0, 6.25, 68.0, 9.0]);
    assert_eq!(run(NULL), 161_002, "INT8 needs a scale");
    assert_eq!(run(list(&[&halves])), 161_002, "a BF16 scale goes with a BF16 result");
}

#[test]
fn grouped_products_of_int4() {
    let _sim = sim(PLAIN);
    let (m, k, n, e) = (3usize, 512, 8, 2);
    let whole = |seed, n, top: f32| noise(n, seed).into_iter().map(|x| (x * top) as i64).collect::<Vec<_>>();
    let (x, w) = (whole(7, m * k, 127.0), whole(8, e * k * n, 7.9));
    let scales = noise(e * 2 * n, 9);
    // two weights to a byte, the low half first
    let packed: Vec<u8> = w.chunks(2).map(|pair| (pair[0] & 15 | (pair[1] & 15) << 4) as u8).collect();
    let memory = Tensor::of(&[packed.len() as i64], &packed);
    let weight = tensor(29, &[2, 512, 8], None, 0, memory.memory);
    let bits: Vec<i64> = scales.iter().map(|scale| i64::from(scale.to_bits())).collect();
    let bits = Tensor::of(&[2, 2, 8], &bits);
    let scale = tensor(10, &[2, 2, 8], None, 0, bits.memory);
    let at = |expert: usize, l: usize, column: usize| {
        w[(expert * k + l) * n + column] as f32 * scales[(expert * 2 + l / 256) * n + column]
    };
    // what each column's weights sum up to, times 8
    let bias: Vec<f32> = (0..e * n).map(|i| 8.0 * (0..k).map(|l| at(i / n, l, i % n)).sum::<f32>()).collect();
    let bias = Tensor::of(&[2, 8], &bias);
    let x8 = Tensor::of(&[3, 512], &x.iter().map(|x| *x as i8).collect::<Vec<_>>());
    let token = Tensor::of(&[3], &[1.0f32, 0.5, 0.01]);
    let groups = Tensor::of(&[2], &[1i64, 2]);
    let out = Tensor::new::<bf16>(&[3, 8]);
    let (weight, scale) = (Tensor::wrap(weight, memory.memory), Tensor::wrap(scale, bits.memory));
    let lists =
        [list(&[&x8]), list(&[&weight]), list(&[&bias]), list(&[&scale]), list(&[&token]), list(&[&out])];
    let run = |kind, bias| {
        op!(
            grouped,
            aclnnGroupedMatmulV5GetWorkspaceSize,
            aclnnGroupedMatmulV5,
            lists[0],
            lists[1],
            bias,
            lists[3],
            NULL,
            NULL,
            NULL,
            lists[4],
            groups.handle,
            NULL,
            NULL,
            NULL,
            3,
            0,
            kind,
            0,
            NULL,
            lists[5],
            NULL,
            NULL
        )
    };
    ok(run(1, lists[2]));
    let got: Vec<f32> = out.values::<bf16>().into_iter().map(bf16::to_f32).collect();
    for (i, got) in got.iter().enumerate() {
        let (row, column) = (i / n, i % n);
        let expert = usize::from(row > 0);
        let sum: f32 = (0..k).map(|l| x[row * k + l] as f32 * at(expert, l, column)).sum();
        let expected = sum * [1.0, 0.5, 0.01][row];
        assert!((got - expected).abs() <= 0.01 * expected.abs() + 0.5, "at {i}: {got}, expected {expected}");
    }
    assert_eq!(run(0, lists[2]), 161_002, "counts are asked for");
    assert_eq!(run(1, NULL), 161_002, "the bias is asked for");
}

#[test]
fn norms() {
    let _sim = sim(PLAIN);
    let (x, y) = (noise(12, 5), noise(12, 6));
    let gamma = [1.0f32, 2.0, 0.5, -1.0];
    let (a, b, g) = (Tensor::of(&[3, 4], &x), Tensor::of(&[3, 4], &y), Tensor::of(&[4], &gamma));
    let (out, rstd, sum) =
        (Tensor::new::<f32>(&[3, 4]), Tensor::new::<f32>(&[3, 1]), Tensor::new::<f32>(&[3, 4]));
    let check = |values: &[f32]| {
        let expected: Vec<f32> = (0..12)
            .map(|i| {
                let row = &values[i / 4 * 4..i / 4 * 4 + 4];
                let mean = row.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>() / 4.0;
                (f64::from(values[i]) / (mean + 1e-3).sqrt()) as f32 * gamma[i % 4]
            })
            .collect();
        near(&out.values::<f32>(), &expected, 1e-5);
    };
    ok(op!(
        norm,
        aclnnRmsNormGetWorkspaceSize,
        aclnnRmsNorm,
        a.handle,
        g.handle,
        1e-3,
        out.handle,
        rstd.handle
    ));
    check(&x);
    let mean = x[..4].iter().map(|v| v * v).sum::<f32>() / 4.0;
    near(&rstd.values::<f32>()[..1], &[1.0 / (mean + 1e-3).sqrt()], 1e-5);
    ok(op!(
        norm,
        aclnnAddRmsNormGetWorkspaceSize,
        aclnnAddRmsNorm,
        a.handle,
        b.handle,
        g.handle,
        1e-3,
        out.handle,
        rstd.handle,
        sum.handle
    ));
    let sums: Vec<f32> = x.iter().zip(&y).map(|(x, y)| x + y).collect();
    check(&sums);
    assert_eq!(sum.values::<f32>(), sums);
    let flat = Tensor::new::<f32>(&[3]);
    let code = op!(
        norm,
        aclnnRmsNormGetWorkspaceSize,
        aclnnRmsNorm,
        a.handle,
        g.handle,
        1e-3,
        out.handle,
        flat.handle
    );
    assert_eq!(code, 161_002, "rstd keeps the axes");
}

#[test]
fn gated_activations() {
    let _sim = sim(PLAIN);
    let x = Tensor::of(&[2, 4], &[1.0f32, -2.0, 3.0, 4.0, 20.0, 0.5, -30.0, 2.0]);
    let out = Tensor::new::<f32>(&[2, 2]);
    let silu = |x: f32| x / (1.0 + (-x).exp());
    ok(op!(activation, aclnnSwiGluGetWorkspaceSize, aclnnSwiGlu, x.handle, -1, out.handle));
    near(
        &out.values::<f32>(),
        &[silu(1.0) * 3.0, silu(-2.0) * 4.0, silu(20.0) * -30.0, silu(0.5) * 2.0],
        1e-6,
    );
    ok(op!(
        activation,
        aclnnClippedSwigluGetWorkspaceSize,
        aclnnClippedSwiglu,
        x.handle,
        NULL,
        -1,
        1.0,
        10.0,
        0.0,
        false,
        out.handle
    ));
    near(
        &out.values::<f32>(),
        &[silu(1.0) * 3.0, silu(-2.0) * 4.0, silu(10.0) * -10.0, silu(0.5) * 2.0],
        1e-6,
    );
    ok(op!(
        activation,
        aclnnClippedSwigluGetWorkspaceSize,
        aclnnClippedSwiglu,
        x.handle,
        NULL,
        -1,
        1.0,
        10.0,
        1.0,
        true,
        out.handle
    ));
    near(&out.values::<f32>(), &[-silu(1.0), silu(3.0) * 5.0, silu(10.0) * 1.5, silu(-30.0) * 3.0], 1e-6);
    let groups = Tensor::of(&[2], &[1i64, 0]);
    ok(op!(fill, aclnnInplaceZeroGetWorkspaceSize, aclnnInplaceZero, out.handle));
    ok(op!(
        activation,
        aclnnClippedSwigluGetWorkspaceSize,
        aclnnClippedSwiglu,
        x.handle,
        groups.handle,
        -1,
        1.0,
        10.0,
        0.0,
        false,
        out.handle
    ));
    assert_eq!(out.values::<f32>()[2..], [0.0; 2], "rows of no group are left");
}

#[test]
fn rotary_positions() {
    let _sim = sim(PLAIN);
    let x = Tensor::of(&[1, 1, 2, 4], &[1.0f32, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]);
    let cos = Tensor::of(&[1, 1, 1, 4], &[0.0f32, 0.0, 1.0, 1.0]);
    let sin = Tensor::of(&[1, 1, 1, 4], &[1.0f32, 1.0, 0.0, 0.0]);
    let out = Tensor::new::<f32>(&[1, 1, 2, 4]);
    let run = |mode, expected: [f32; 8]| {
        ok(op!(
            activation,
            aclnnRotaryPositionEmbeddingGetWorkspaceSize,
            aclnnRotaryPositionEmbedding,
            x.handle,
            cos.handle,
            sin.handle,
            mode,
            out.handle
        ));
        assert_eq!(out.values::<f32>(), expected, "mode {mode}");
    };
    run(0, [-3.0, -4.0, 3.0, 4.0, -7.0, -8.0, 7.0, 8.0]);
    run(1, [-2.0, 1.0, 3.0, 4.0, -6.0, 5.0, 7.0, 8.0]);
    run(2, [-2.0, 1.0, 3.0, 4.0, -6.0, 5.0, 7.0, 8.0]);
    run(3, [-2.0, -4.0, 2.0, 4.0, -6.0, -8.0, 6.0, 8.0]);
    let code = op!(
        activation,
        aclnnRotaryPositionEmbeddingGetWorkspaceSize,
        aclnnRotaryPositionEmbedding,
        x.handle,
        cos.handle,
        sin.handle,
        4,
        out.handle
    );
    assert_eq!(code, 561_002);
}

#[test]
fn interleaved_positions_lie_along_one_axis() {
    for (config, code) in [(PLAIN, 561_002), (PR950, 0)] {
        let _sim = sim(config);
        let x = Tensor::of(&[2, 3, 1, 2], &[1.0f32; 12]);
        let run = |shape: &[i64]| {
            let values = vec![0.5f32; shape.iter().product::<i64>() as usize];
            let (cos, sin, out) =
                (Tensor::of(shape, &values), Tensor::of(shape, &values), Tensor::new::<f32>(&[2, 3, 1, 2]));
            op!(
                activation,
                aclnnRotaryPositionEmbeddingGetWorkspaceSize,
                aclnnRotaryPositionEmbedding,
                x.handle,
                cos.handle,
                sin.handle,
                1,
                out.handle
            )
        };
        ok(run(&[1, 3, 1, 2]));
        ok(run(&[2, 1, 1, 2]));
        assert_eq!(run(&[2, 3, 1, 2]), code, "{config}");
        assert_eq!(run(&[1, 2, 1, 2]), 561_002);
    }
}

#[test]
fn gathers_and_scatters() {
    let _sim = sim(PLAIN);
    let x = Tensor::of(&[3, 2], &bf(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]));
    let index = Tensor::of(&[2], &[2i32, 0]);
    let out = Tensor::new::<bf16>(&[2, 2]);
    ok(op!(index, aclnnIndexSelectGetWorkspaceSize, aclnnIndexSelect, x.handle, 0, index.handle, out.handle));
    assert_eq!(out.values::<bf16>(), bf(&[5.0, 6.0, 1.0, 2.0]));
    ok(op!(index, aclnnGatherV2GetWorkspaceSize, aclnnGatherV2, x.handle, 0, index.handle, out.handle));
    assert_eq!(out.values::<bf16>(), bf(&[5.0, 6.0, 1.0, 2.0]));
    let table = Tensor::of(&[1, 2], &[1i64, 1]);
    let rows = Tensor::new::<bf16>(&[1, 2, 2]);
    ok(op!(index, aclnnEmbeddingGetWorkspaceSize, aclnnEmbedding, x.handle, table.handle, rows.handle));
    assert_eq!(rows.values::<bf16>(), bf(&[3.0, 4.0, 3.0, 4.0]));
    let places = Tensor::of(&[2, 2], &[1i64, 0, 2, 1]);
    ok(op!(index, aclnnGatherGetWorkspaceSize, aclnnGather, x.handle, 0, places.handle, out.handle));
    assert_eq!(out.values::<bf16>(), bf(&[3.0, 2.0, 5.0, 4.0]));
    let bad = Tensor::of(&[2], &[3i32, 0]);
    let code =
        op!(index, aclnnIndexSelectGetWorkspaceSize, aclnnIndexSelect, x.handle, 0, bad.handle, out.handle);
    assert_eq!(code, 507_015, "an index out of range is seen on the device");
    let source = Tensor::of(&[2, 2], &bf(&[10.0, 20.0, 30.0, 40.0]));
    let whole = Tensor::new::<bf16>(&[3, 2]);
    for (reduce, expected) in [
        (0, [1.0, 20.0, 10.0, 40.0, 30.0, 6.0]),
        (1, [1.0, 22.0, 13.0, 44.0, 35.0, 6.0]),
        (2, [1.0, 40.0, 30.0, 160.0, 150.0, 6.0]),
    ] {
        ok(op!(
            index,
            aclnnScatterGetWorkspaceSize,
            aclnnScatter,
            x.handle,
            0,
            places.handle,
            source.handle,
            reduce,
            whole.handle
        ));
        assert_eq!(whole.values::<bf16>(), bf(&expected), "reduce {reduce}");
    }
}

#[test]
fn updates_at_places_of_an_axis() {
    let _sim = sim(PLAIN);
    let data = Tensor::of(&[2, 3, 2], &[0i32; 12]);
    let updates = Tensor::of(&[2, 1, 2], &[1i32, 2, 3, 4]);
    let places = Tensor::of(&[2], &[2i64, 0]);
    let run = |places: &Tensor, axis| {
        op!(
            index,
            aclnnInplaceScatterUpdateGetWorkspaceSize,
            aclnnInplaceScatterUpdate,
            data.handle,
            places.handle,
            updates.handle,
            axis
        )
    };
    ok(run(&places, -2));
    assert_eq!(data.values::<i32>(), [0, 0, 0, 0, 1, 2, 3, 4, 0, 0, 0, 0]);
    // two columns: the place on the first axis and on the axis
    let pairs = Tensor::of(&[2, 2], &[1i64, 1, 0, 0]);
    ok(run(&pairs, -2));
    assert_eq!(data.values::<i32>(), [3, 4, 0, 0, 1, 2, 3, 4, 1, 2, 0, 0]);
    let same = Tensor::of(&[2, 3, 2], &[1i32; 12]);
    let zeros = Tensor::of(&[2], &[0i64, 0]);
    let code = op!(
        index,
        aclnnInplaceScatterUpdateGetWorkspaceSize,
        aclnnInplaceScatterUpdate,
        data.handle,
        zeros.handle,
        same.handle,
        0
    );
    assert_eq!(code, 161_002, "not the first axis");
    assert!(message().contains("axis 0"));
    let bad = Tensor::of(&[2], &[3i64, 0]);
    assert_eq!(run(&bad, -2), 507_015);
}

#[test]
fn quantisation() {
    let _sim = sim(PLAIN);
    let x = Tensor::of(&[2, 3], &bf(&[1.0, -2.0, 0.5, 0.0, 0.0, 0.0]));
    let (y, scale) = (Tensor::new::<i8>(&[2, 3]), Tensor::new::<f32>(&[2]));
    ok(op!(
        quant,
        aclnnDynamicQuantGetWorkspaceSize,
        aclnnDynamicQuant,
        x.handle,
        NULL,
        y.handle,
        scale.handle
    ));
    // 63.5 goes to the even 64
    assert_eq!(y.values::<i8>(), [64, -127, 32, 0, 0, 0]);
    near(&scale.values::<f32>(), &[2.0 / 127.0, 0.0], 1e-9);
    let floats = Tensor::of(&[2, 3], &[1.0f32; 6]);
    let code = op!(
        quant,
        aclnnDynamicQuantGetWorkspaceSize,
        aclnnDynamicQuant,
        floats.handle,
        NULL,
        y.handle,
        scale.handle
    );
    assert_eq!(code, 161_002, "FP32 is not taken");
}

#[test]
fn socs_lack_ops_and_types() {
    for (config, there) in [(PLAIN, true), (A3, true), (PR950, false)] {
        let _sim = sim(config);
        let x = Tensor::of(&[2], &[1.0f32, 2.0]);
        let out = Tensor::new::<f32>(&[2]);
        let one = scalar(1.0f32);
        let code =
            op!(activation, aclnnSoftplusGetWorkspaceSize, aclnnSoftplus, x.handle, one, one, out.handle);
        assert_eq!(code, if there { 0 } else { 561_003 });
        // FP8 E4M3: 0x38 is 1, 0x40 is 2, 0xC4 is -3
        let bytes = Tensor::of(&[4], &[0x38u8, 0x40, 0xC4, 0x7F]);
        let small = tensor(36, &[4], None, 0, bytes.memory);
        let wide = Tensor::new::<f32>(&[4]);
        let code = op!(arithmetic, aclnnCastGetWorkspaceSize, aclnnCast, small, 0, wide.handle);
        assert_eq!(code, if there { 161_002 } else { 0 });
        if !there {
            let values = wide.values::<f32>();
            assert_eq!(values[..3], [1.0, 2.0, -3.0]);
            assert!(values[3].is_nan());
        }
        // BF16 with FP32 in a product: only 950
        let (a, b) = (Tensor::of(&[1, 1], &bf(&[2.0])), Tensor::of(&[1, 1], &[3.0f32]));
        let c = Tensor::new::<f32>(&[1, 1]);
        let code = op!(matmul, aclnnMmGetWorkspaceSize, aclnnMm, a.handle, b.handle, c.handle, 0);
        assert_eq!(code, if there { 161_002 } else { 0 });
    }
}

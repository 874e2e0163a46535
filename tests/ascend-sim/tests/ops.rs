//! Element by element, reductions, moving elements, and what SoCs lack: against values worked out by hand.

#![allow(clippy::macro_metavars_in_unsafe, reason = "the arguments of op! are plain values")]

mod common;

use common::*;
use half::bf16;

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

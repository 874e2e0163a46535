//! Norms, activations, rotary positions, gathers and scatters: against formulas written another way.

#![allow(clippy::macro_metavars_in_unsafe, reason = "the arguments of op! are plain values")]

mod common;

use common::*;
use half::bf16;

const PLAIN: &str = r#"{"devices":1,"memory_bytes":16777216}"#;
const PR950: &str = r#"{"soc":"Ascend950PR_9579","devices":1,"memory_bytes":16777216}"#;

fn bf(values: &[f32]) -> Vec<bf16> {
    values.iter().map(|value| bf16::from_f32(*value)).collect()
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

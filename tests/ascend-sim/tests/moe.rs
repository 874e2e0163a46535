//! Routing rows to experts and back.

#![allow(clippy::macro_metavars_in_unsafe, reason = "the arguments of op! are plain values")]

mod common;

use common::*;
use half::bf16;

const PLAIN: &str = r#"{"devices":1,"memory_bytes":1048576}"#;

struct Routed {
    out: Tensor,
    rows: Tensor,
    counts: Tensor,
    scales: Tensor,
}

/// Three rows of two, each for two of four experts.
fn ids() -> Tensor {
    Tensor::of(&[3, 2], &[2i32, 0, 0, 3, 2, 3])
}

#[allow(clippy::too_many_arguments, reason = "the op's own")]
fn route(
    x: &Tensor,
    scale: Handle,
    active: i64,
    kind: i64,
    quant: i64,
    range: Handle,
    row_kind: i64,
    routed: &Routed,
) -> i32 {
    let ids = ids();
    op!(
        moe,
        aclnnMoeInitRoutingV3GetWorkspaceSize,
        aclnnMoeInitRoutingV3,
        x.handle,
        ids.handle,
        scale,
        NULL,
        active,
        0,
        4,
        0,
        kind,
        true,
        quant,
        range,
        row_kind,
        routed.out.handle,
        routed.rows.handle,
        routed.counts.handle,
        routed.scales.handle
    )
}

fn plain_rows() -> Tensor {
    Tensor::of(&[3, 2], &[1.0f32, 2.0, 3.0, 4.0, 5.0, 6.0])
}

fn routed(kept: i64, counts: &[i64]) -> Routed {
    Routed {
        out: Tensor::of(&[kept, 2], &vec![-9.0f32; kept as usize * 2]),
        rows: Tensor::of(&[6], &[-7i32; 6]),
        counts: Tensor::new::<i64>(counts),
        scales: Tensor::of(&[kept], &vec![-9.0f32; kept as usize]),
    }
}

#[test]
fn rows_are_sorted_by_expert() {
    let _sim = sim(PLAIN);
    let x = plain_rows();
    let all = routed(6, &[4]);
    ok(route(&x, NULL, 0, 1, -1, NULL, 0, &all));
    // expert 0: rows 0 and 1; expert 2: rows 0 and 2; expert 3: rows 1 and 2
    assert_eq!(all.out.values::<f32>(), [1.0, 2.0, 3.0, 4.0, 1.0, 2.0, 5.0, 6.0, 3.0, 4.0, 5.0, 6.0]);
    assert_eq!(all.rows.values::<i32>(), [2, 0, 1, 4, 3, 5]);
    assert_eq!(all.counts.values::<i64>(), [2, 0, 2, 2]);
    ok(route(&x, NULL, 0, 0, -1, NULL, 1, &all));
    assert_eq!(all.rows.values::<i32>(), [1, 2, 0, 4, 3, 5]);
    assert_eq!(all.counts.values::<i64>(), [2, 2, 4, 6]);
    let pairs = routed(6, &[4, 2]);
    ok(route(&x, NULL, 0, 2, -1, NULL, 1, &pairs));
    assert_eq!(pairs.counts.values::<i64>(), [0, 2, 2, 2, 3, 2, 0, 0]);
    let few = routed(3, &[4]);
    let weights = Tensor::of(&[3], &[0.5f32, 0.25, 0.125]);
    ok(route(&x, weights.handle, 3, 1, -1, NULL, 0, &few));
    assert_eq!(few.out.values::<f32>(), [1.0, 2.0, 3.0, 4.0, 1.0, 2.0]);
    assert_eq!(few.scales.values::<f32>(), [0.5, 0.25, 0.5]);
    assert_eq!(route(&x, NULL, 0, 1, -1, NULL, 0, &few), 561_002, "all rows need room");
}

#[test]
fn only_the_experts_of_a_range() {
    let _sim = sim(PLAIN);
    let x = plain_rows();
    let some = routed(6, &[2]);
    ok(route(&x, NULL, 0, 1, -1, ints(&[2, 4]), 0, &some));
    assert_eq!(some.out.values::<f32>(), [1.0, 2.0, 5.0, 6.0, 3.0, 4.0, 5.0, 6.0, -9.0, -9.0, -9.0, -9.0]);
    assert_eq!(some.rows.values::<i32>(), [0, -1, -1, 2, 1, 3]);
    assert_eq!(some.counts.values::<i64>(), [2, 2]);
    ok(route(&x, NULL, 0, 1, -1, ints(&[2, 4]), 1, &some));
    assert_eq!(some.rows.values::<i32>()[..4], [0, 4, 3, 5]);
    assert_eq!(route(&x, NULL, 0, 1, -1, ints(&[2, 5]), 0, &some), 561_002);
}

#[test]
fn rows_are_quantised_on_the_way() {
    let _sim = sim(PLAIN);
    let x = Tensor::of(&[3, 2], &[1.0f32, 2.0, 3.0, -4.0, 5.0, 6.0].map(bf16::from_f32));
    let some = Routed { out: Tensor::new::<i8>(&[6, 2]), ..routed(6, &[4]) };
    ok(route(&x, NULL, 0, 1, 1, NULL, 0, &some));
    assert_eq!(some.out.values::<i8>()[..4], [64, 127, 95, -127]);
    near(&some.scales.values::<f32>()[..2], &[2.0 / 127.0, 4.0 / 127.0], 1e-7);
    // expert 0 sees its first column doubled
    let smooth = Tensor::of(&[4, 2], &[2.0f32, 0.5, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]);
    ok(route(&x, smooth.handle, 0, 1, 1, NULL, 0, &some));
    assert_eq!(some.out.values::<i8>()[..6], [127, 64, 127, -42, 64, 127]);
}

#[test]
fn there_and_back() {
    let _sim = sim(PLAIN);
    let x = plain_rows();
    let all = routed(6, &[4]);
    ok(route(&x, NULL, 0, 1, -1, NULL, 0, &all));
    let scales = Tensor::of(&[3, 2], &[0.5f32, 0.25, 1.0, 2.0, 0.0, 1.0]);
    let shared = Tensor::of(&[3, 2], &[100.0f32, 0.0, 0.0, 0.0, 0.0, 7.0]);
    let out = Tensor::new::<f32>(&[3, 2]);
    let run = |rows: &Tensor, bias, experts, mode| {
        op!(
            moe,
            aclnnMoeFinalizeRoutingV2GetWorkspaceSize,
            aclnnMoeFinalizeRoutingV2,
            all.out.handle,
            rows.handle,
            shared.handle,
            NULL,
            bias,
            scales.handle,
            experts,
            mode,
            out.handle
        )
    };
    // every copy of a row is the row: it comes back times the sum of its scales
    ok(run(&all.rows, NULL, NULL, 2));
    assert_eq!(out.values::<f32>(), [100.75, 1.5, 9.0, 12.0, 5.0, 13.0]);
    // by column: the first slots of all rows, then the second
    let by_column = Tensor::of(&[6], &[2i32, 1, 3, 0, 4, 5]);
    ok(run(&by_column, NULL, NULL, 0));
    assert_eq!(out.values::<f32>(), [100.75, 1.5, 9.0, 12.0, 5.0, 13.0]);
    let bias = Tensor::of(&[4, 2], &[1.0f32, 0.0, 0.0, 0.0, 10.0, 0.0, 0.0, 1.0]);
    let ids = ids();
    ok(run(&all.rows, bias.handle, ids.handle, 2));
    // row 0: 0.5·(1 + 10) + 0.25·(1 + 1); row 1: 1·(3 + 1) + 2·3; row 2: 0 + 1·5
    assert_eq!(out.values::<f32>(), [106.0, 1.5, 10.0, 14.0, 5.0, 14.0]);
    assert_eq!(run(&all.rows, bias.handle, NULL, 2), 561_002, "a bias needs the experts");
    assert_eq!(run(&all.rows, NULL, NULL, 1), 561_002);
}

//! Matrix products, dense and grouped, and quantisation: against the definition in f64 and by hand.

#![allow(clippy::macro_metavars_in_unsafe, reason = "the arguments of op! are plain values")]

mod common;

use common::*;
use half::{bf16, f16};

const PLAIN: &str = r#"{"devices":1,"memory_bytes":16777216}"#;

fn bf(values: &[f32]) -> Vec<bf16> {
    values.iter().map(|value| bf16::from_f32(*value)).collect()
}

/// A product by the definition, in f64.
fn product(a: &[f32], b: &[f32], m: usize, k: usize, n: usize) -> Vec<f32> {
    let at = |i: usize| {
        (0..k).map(|l| f64::from(a[i / n * k + l]) * f64::from(b[l * n + i % n])).sum::<f64>() as f32
    };
    (0..m * n).map(at).collect()
}

#[test]
fn sums_are_in_order_to_the_last_bit() {
    let _sim = sim(PLAIN);
    for (m, k, n) in [(1, 9, 1), (4, 33, 8), (7, 65, 21), (13, 3, 40), (2, 1, 17)] {
        let (a, b) = (noise(m * k, 3), noise(k * n, 4));
        let mut expected = vec![0.0f32; m * n];
        for (i, sum) in expected.iter_mut().enumerate() {
            (0..k).for_each(|l| *sum += a[i / n * k + l] * b[l * n + i % n]);
        }
        let (m, k, n) = (m as i64, k as i64, n as i64);
        let (x, y, out) = (Tensor::of(&[m, k], &a), Tensor::of(&[k, n], &b), Tensor::new::<f32>(&[m, n]));
        ok(op!(matmul, aclnnMmGetWorkspaceSize, aclnnMm, x.handle, y.handle, out.handle, 0));
        let bits = |values: Vec<f32>| values.into_iter().map(f32::to_bits).collect::<Vec<_>>();
        assert_eq!(bits(out.values()), bits(expected.clone()), "{m} {k} {n}");
        // and whatever the layout of the weight
        let turned: Vec<f32> = (0..k * n).map(|i| b[(i % k * n + i / k) as usize]).collect();
        let memory = Tensor::of(&[n, k], &turned);
        let view = memory.view::<f32>(&[k, n], &[1, k], 0);
        ok(op!(matmul, aclnnMmGetWorkspaceSize, aclnnMm, x.handle, view.handle, out.handle, 0));
        assert_eq!(bits(out.values()), bits(expected), "{m} {k} {n} transposed");
    }
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

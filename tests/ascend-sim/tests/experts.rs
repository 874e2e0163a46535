//! Rows to the ranks of their experts and back, in one op each.

#![allow(clippy::macro_metavars_in_unsafe, reason = "the arguments of op! are plain values")]
#![allow(clippy::unwrap_used, reason = "test code: a failed step ends the test")]

mod common;

use std::ffi::CString;

use common::ranks::*;
use common::*;
use half::bf16;

const A2: &str = r#"{"devices":8,"memory_bytes":268435456,"soc":"Ascend910B3"}"#;
const A3: &str = r#"{"devices":8,"memory_bytes":268435456,"soc":"Ascend910_9391"}"#;
const DT: &str = r#"{"devices":8,"memory_bytes":268435456,"soc":"Ascend950DT_9571"}"#;

/// A layer's sizes and settings.
#[derive(Clone)]
struct Layer {
    a2: bool,
    ranks: usize,
    experts: usize,
    bs: usize,
    k: usize,
    h: usize,
    global_bs: usize,
    quant: i64,
    kind: i64,
    algorithm: Option<&'static str>,
    tp: [i64; 2],
}

impl Layer {
    fn new(machine: &str, ranks: usize, bs: usize, k: usize) -> Self {
        let a2 = machine == A2;
        Self {
            a2,
            ranks,
            experts: ranks * 2,
            bs,
            k,
            h: if a2 { 64 } else { 1024 },
            global_bs: 0,
            quant: 0,
            kind: 1,
            algorithm: a2.then_some("fullmesh"),
            tp: [0, 0],
        }
    }

    fn room(&self) -> usize {
        let rows = if self.global_bs == 0 { self.bs * self.ranks } else { self.global_bs };
        rows * (self.experts / self.ranks).min(self.k)
    }

    fn local(&self) -> usize {
        self.experts / self.ranks
    }

    fn ids(&self, rank: usize) -> Vec<i32> {
        let mut random = Random::new(rank as u64 + 5);
        // different experts for the slots of a row
        let row =
            |first: u64| (0..self.k).map(move |slot| ((first as usize + slot * 3) % self.experts) as i32);
        (0..self.bs).flat_map(|_| row(random.below(self.experts as u64))).collect()
    }

    fn rows(&self, rank: usize) -> Vec<bf16> {
        noise(self.bs * self.h, rank as u64 + 1).into_iter().map(bf16::from_f32).collect()
    }

    fn weights(&self, rank: usize) -> Vec<f32> {
        noise(self.bs * self.k, rank as u64 + 50).into_iter().map(f32::abs).collect()
    }
}

/// One rank's tensors.
struct Tensors {
    x: Tensor,
    ids: Tensor,
    weights: Tensor,
    out: Tensor,
    out_scales: Tensor,
    assist: Tensor,
    counts: Tensor,
    ep_counts: Tensor,
    tp_counts: Tensor,
    out_weights: Tensor,
}

impl Tensors {
    fn new(layer: &Layer, rank: usize) -> Self {
        let (bs, k, h) = (layer.bs as i64, layer.k as i64, layer.h as i64);
        let room = layer.room() as i64;
        let out =
            if layer.quant == 2 { Tensor::new::<i8>(&[room, h]) } else { Tensor::new::<bf16>(&[room, h]) };
        Self {
            x: Tensor::of(&[bs, h], &layer.rows(rank)),
            ids: Tensor::of(&[bs, k], &layer.ids(rank)),
            weights: Tensor::of(&[bs, k], &layer.weights(rank)),
            out,
            out_scales: Tensor::new::<f32>(&[room]),
            assist: Tensor::new::<i32>(&[room * 128]),
            counts: Tensor::new::<i64>(&[layer.local() as i64]),
            ep_counts: Tensor::new::<i32>(&[(layer.ranks * layer.local()) as i64]),
            tp_counts: Tensor::new::<i32>(&[1]),
            out_weights: Tensor::new::<f32>(&[room]),
        }
    }

    fn dispatch(&self, layer: &Layer, group: &str, rank: usize, scales: Handle, mask: Handle) -> i32 {
        let group = CString::new(group).unwrap();
        let algorithm = layer.algorithm.map(|name| CString::new(name).unwrap());
        let algorithm = algorithm.as_ref().map_or(std::ptr::null(), |name| name.as_ptr());
        op!(
            distribute,
            aclnnMoeDistributeDispatchV2GetWorkspaceSize,
            aclnnMoeDistributeDispatchV2,
            self.x.handle,
            self.ids.handle,
            scales,
            mask,
            self.weights.handle,
            group.as_ptr(),
            layer.ranks as i64,
            rank as i64,
            layer.experts as i64,
            c"".as_ptr(),
            layer.tp[0],
            layer.tp[1],
            0,
            0,
            0,
            layer.quant,
            layer.global_bs as i64,
            layer.kind,
            algorithm,
            self.out.handle,
            self.out_scales.handle,
            self.assist.handle,
            self.counts.handle,
            self.ep_counts.handle,
            self.tp_counts.handle,
            self.out_weights.handle
        )
    }

    #[allow(clippy::too_many_arguments, reason = "the op has more")]
    fn combine(
        &self,
        layer: &Layer,
        group: &str,
        rank: usize,
        rows: &Tensor,
        mask: Handle,
        shared: Handle,
        out: &Tensor,
    ) -> i32 {
        let group = CString::new(group).unwrap();
        let algorithm = layer.algorithm.map(|name| CString::new(name).unwrap());
        let algorithm = algorithm.as_ref().map_or(std::ptr::null(), |name| name.as_ptr());
        op!(
            distribute,
            aclnnMoeDistributeCombineV2GetWorkspaceSize,
            aclnnMoeDistributeCombineV2,
            rows.handle,
            self.ids.handle,
            self.assist.handle,
            self.ep_counts.handle,
            self.weights.handle,
            NULL,
            mask,
            NULL,
            NULL,
            NULL,
            if layer.a2 { self.out_weights.handle } else { NULL },
            shared,
            group.as_ptr(),
            layer.ranks as i64,
            rank as i64,
            layer.experts as i64,
            std::ptr::null(),
            layer.tp[0],
            layer.tp[1],
            0,
            0,
            0,
            layer.global_bs as i64,
            0,
            0,
            0,
            algorithm,
            out.handle
        )
    }
}

/// The (rank, row, slot) of all rows that a rank gets, in order.
fn expected(layer: &Layer, rank: usize, bs: impl Fn(usize) -> usize) -> Vec<(usize, usize, usize, usize)> {
    let mut rows = Vec::new();
    for from in 0..layer.ranks {
        let sender = Layer { bs: bs(from), ..layer.clone() };
        for (at, expert) in sender.ids(from).into_iter().enumerate() {
            if expert as usize / layer.local() == rank {
                rows.push((expert as usize % layer.local(), from, at / layer.k, at % layer.k));
            }
        }
    }
    rows.sort();
    rows
}

/// What the experts make of a row: expert `e` multiplies by `e + 1`.
fn worked(layer: &Layer, rank: usize, tensors: &Tensors) -> Tensor {
    let mut rows = tensors.out.values::<bf16>();
    let counts = tensors.counts.values::<i64>();
    let mut next = 0;
    for (local, count) in counts.iter().enumerate() {
        let factor = (rank * layer.local() + local + 1) as f32;
        for value in &mut rows[next * layer.h..(next + *count as usize) * layer.h] {
            *value = bf16::from_f32(value.to_f32() * factor);
        }
        next += *count as usize;
    }
    Tensor::of(&[layer.room() as i64, layer.h as i64], &rows)
}

fn combined(layer: &Layer, rank: usize, shared: Option<&[f32]>) -> Vec<bf16> {
    let (rows, ids, weights) = (layer.rows(rank), layer.ids(rank), layer.weights(rank));
    (0..layer.bs * layer.h)
        .map(|at| {
            let (row, column) = (at / layer.h, at % layer.h);
            let mut sum = 0.0f32;
            for slot in row * layer.k..(row + 1) * layer.k {
                let value = rows[row * layer.h + column].to_f32() * (ids[slot] + 1) as f32;
                sum += weights[slot] * bf16::from_f32(value).to_f32();
            }
            bf16::from_f32(sum + shared.map_or(0.0, |shared| shared[at]))
        })
        .collect()
}

fn there_and_back(layer: &Layer, rank: &Rank, bs: impl Fn(usize) -> usize) {
    let mine = Layer { bs: bs(rank.rank), ..layer.clone() };
    let tensors = Tensors::new(&mine, rank.rank);
    let group = name(rank.comm);
    for round in 0..3 {
        ok(tensors.dispatch(&mine, &group, rank.rank, NULL, NULL));
        let rows = expected(layer, rank.rank, &bs);
        let mut counts = vec![0i64; layer.local()];
        rows.iter().for_each(|(local, ..)| counts[*local] += 1);
        let sums = counts.iter().scan(0, |sum, count| {
            *sum += count;
            Some(*sum)
        });
        let told = if layer.kind == 1 { counts.clone() } else { sums.collect() };
        assert_eq!(tensors.counts.values::<i64>(), told);
        let got = tensors.out.values::<bf16>();
        for (at, (_, from, row, _)) in rows.iter().enumerate() {
            let sender = Layer { bs: bs(*from), ..layer.clone() };
            let sent = &sender.rows(*from)[row * layer.h..(row + 1) * layer.h];
            assert_eq!(&got[at * layer.h..(at + 1) * layer.h], sent, "row {at}");
        }
        assert!(got[rows.len() * layer.h..].iter().all(|value| value.is_nan()), "the rest says nothing");
        if layer.kind == 0 {
            continue;
        }
        let work = worked(&mine, rank.rank, &tensors);
        let out = Tensor::new::<bf16>(&[mine.bs as i64, mine.h as i64]);
        let extra = noise(mine.bs * mine.h, 99);
        let extra: Vec<bf16> = extra.into_iter().map(bf16::from_f32).collect();
        let shared = (!layer.a2 && round > 0).then(|| Tensor::of(&[mine.bs as i64, mine.h as i64], &extra));
        let handle = shared.as_ref().map_or(NULL, |shared| shared.handle);
        ok(tensors.combine(&mine, &group, rank.rank, &work, NULL, handle, &out));
        let extra: Vec<f32> = extra.iter().map(|value| value.to_f32()).collect();
        let expected = combined(&mine, rank.rank, shared.is_some().then_some(&extra));
        assert!(out.values::<bf16>() == expected, "rank {}", rank.rank);
    }
}

#[test]
fn rows_go_to_their_experts_and_back() {
    for (machine, ranks, bs, k) in [(A3, 2, 3, 2), (A3, 4, 5, 3), (DT, 3, 2, 1), (A2, 8, 7, 4), (A2, 5, 9, 6)]
    {
        let _sim = sim(machine);
        let layer = Layer::new(machine, ranks, bs, k);
        group(ranks, |rank| there_and_back(&layer, rank, |_| bs));
        let layer = Layer { kind: 0, ..layer };
        group(ranks, |rank| there_and_back(&layer, rank, |_| bs));
    }
}

#[test]
fn ranks_with_different_numbers_of_rows() {
    let _sim = sim(A3);
    let layer = Layer { global_bs: 12, ..Layer::new(A3, 3, 4, 2) };
    group(3, |rank| there_and_back(&layer, rank, |rank| [4, 1, 2][rank]));
    // what is the same for all must be: without it they disagree
    let layer = Layer::new(A3, 3, 4, 2);
    let codes = group(3, |rank| {
        let mine = Layer { bs: [4, 1, 4][rank.rank], ..layer.clone() };
        Tensors::new(&mine, rank.rank).dispatch(&mine, &name(rank.comm), rank.rank, NULL, NULL)
    });
    assert_eq!(codes, [107_020; 3]);
}

#[test]
fn rows_are_quantised_on_the_way() {
    for machine in [A2, A3] {
        let _sim = sim(machine);
        let layer = Layer { quant: 2, ..Layer::new(machine, 2, 4, 2) };
        group(2, |rank| {
            let tensors = Tensors::new(&layer, rank.rank);
            let smooth: Vec<f32> = (0..layer.experts * layer.h)
                .map(|at| 1.0 + (at / layer.h) as f32 + (at % 3) as f32)
                .collect();
            let scales = Tensor::of(&[layer.experts as i64, layer.h as i64], &smooth);
            for factors in [None, Some(&smooth)] {
                let handle = if factors.is_some() { scales.handle } else { NULL };
                ok(tensors.dispatch(&layer, &name(rank.comm), rank.rank, handle, NULL));
                let (got, row_scales) = (tensors.out.values::<i8>(), tensors.out_scales.values::<f32>());
                let weights = tensors.out_weights.values::<f32>();
                for (at, (local, from, row, slot)) in expected(&layer, rank.rank, |_| 4).iter().enumerate() {
                    let expert = rank.rank * layer.local() + local;
                    let sent: Vec<f32> = (0..layer.h)
                        .map(|column| {
                            let value = layer.rows(*from)[row * layer.h + column].to_f32();
                            value * factors.map_or(1.0, |factors| factors[expert * layer.h + column])
                        })
                        .collect();
                    let top = sent.iter().fold(0.0f32, |top, value| top.max(value.abs()));
                    assert!((row_scales[at] - top / 127.0).abs() < 1e-6 * top);
                    for (got, sent) in got[at * layer.h..].iter().zip(&sent) {
                        let back = f32::from(*got) * row_scales[at];
                        assert!((back - sent).abs() <= row_scales[at] * 0.501, "{back} {sent}");
                    }
                    if layer.a2 {
                        assert_eq!(weights[at], layer.weights(*from)[row * layer.k + slot]);
                    }
                }
            }
        });
    }
}

#[test]
fn rows_that_take_no_part() {
    let _sim = sim(A3);
    let layer = Layer::new(A3, 2, 3, 2);
    let plain = root();
    group(2, |rank| {
        let tensors = Tensors::new(&layer, rank.rank);
        let group = name(rank.comm);
        let comm = join(2, &plain, rank.rank).unwrap();
        let total = |tensors: &Tensors| {
            let here: i64 = tensors.counts.values::<i64>().iter().sum();
            i64::from(sum_on(comm, rank.stream, here as i32).unwrap())
        };
        for (mask, shape, rows) in [
            (vec![true, false, false], vec![3], [true, false, false]),
            (vec![true, false, false, false, false, true], vec![3, 2], [true, false, true]),
            (vec![false; 3], vec![3], [false; 3]),
        ] {
            let pairs = mask.iter().filter(|on| **on).count() * if shape.len() == 1 { 2 } else { 1 };
            let mask = Tensor::of(&shape, &mask);
            ok(tensors.dispatch(&layer, &group, rank.rank, NULL, mask.handle));
            assert_eq!(total(&tensors), 2 * pairs as i64);
            let work = worked(&layer, rank.rank, &tensors);
            let out = Tensor::of(&[3, 1024], &vec![bf16::from_f32(-7.0); 3 * 1024]);
            ok(tensors.combine(&layer, &group, rank.rank, &work, mask.handle, NULL, &out));
            let (got, whole) = (out.values::<bf16>(), combined(&layer, rank.rank, None));
            for (row, on) in rows.iter().enumerate() {
                let got = &got[row * 1024..(row + 1) * 1024];
                if !on {
                    assert!(got.iter().all(|value| value.to_f32() == -7.0), "row {row} stays");
                } else if shape.len() == 1 {
                    assert_eq!(got, &whole[row * 1024..(row + 1) * 1024]);
                } else {
                    assert!(got.iter().all(|value| value.to_f32() != -7.0), "row {row} is written");
                }
            }
        }
        // SAFETY: handles are looked up.
        ok(unsafe { HcclCommDestroy(comm) });
        let mask = Tensor::of(&[3], &[false, true, true]);
        // all ranks do the same, and none of them gets to its peers
        let code = tensors.dispatch(&layer, &group, rank.rank, NULL, mask.handle);
        assert!(matches!(code, 507_015 | 507_057), "{code}: true rows come first");
    });
}

#[test]
fn arguments_are_checked() {
    let _sim = sim(A3);
    let layer = Layer::new(A3, 2, 2, 2);
    group(2, |rank| {
        let group = name(rank.comm);
        let tensors = Tensors::new(&layer, rank.rank);
        let refused = |layer: &Layer, group: &str, number: usize| {
            Tensors::new(layer, rank.rank).dispatch(layer, group, number, NULL, NULL)
        };
        let with = |change: fn(&mut Layer)| {
            let mut layer = layer.clone();
            change(&mut layer);
            refused(&layer, &group, rank.rank)
        };
        assert_eq!(refused(&layer, "no such group", rank.rank), 561_002);
        assert_eq!(refused(&layer, "", rank.rank), 561_002);
        assert_eq!(refused(&layer, &group, 1 - rank.rank), 561_002, "another rank");
        assert_eq!(with(|layer| layer.h = 512), 561_002, "rows too short");
        assert_eq!(with(|layer| layer.bs = 513), 561_002, "too many rows");
        assert_eq!(with(|layer| layer.k = 17), 561_002);
        assert_eq!(with(|layer| layer.experts = 3), 561_002, "not the same for all ranks");
        assert_eq!(with(|layer| layer.experts = 1026), 561_002);
        assert_eq!(with(|layer| layer.quant = 1), 561_002);
        assert_eq!(with(|layer| layer.kind = 2), 561_002);
        assert_eq!(with(|layer| layer.algorithm = Some("fullmesh")), 561_002, "for A2 only");
        assert_eq!(with(|layer| layer.tp = [2, 0]), 561_002);
        assert_eq!(with(|layer| layer.global_bs = 3), 561_002, "not for all ranks");
        assert_eq!(with(|layer| (layer.bs, layer.k, layer.experts) = (512, 16, 512)), 561_002, "200 MB");
        assert!(message().contains("HCCL_BUFFSIZE"), "{}", message());
        let smooth = Tensor::new::<f32>(&[4, 1024]);
        assert_eq!(tensors.dispatch(&layer, &group, rank.rank, smooth.handle, NULL), 561_002);
        let mask = Tensor::new::<bool>(&[3]);
        assert_eq!(tensors.dispatch(&layer, &group, rank.rank, NULL, mask.handle), 561_002);
        let short = Tensors { out: Tensor::new::<bf16>(&[7, 1024]), ..Tensors::new(&layer, rank.rank) };
        assert_eq!(short.dispatch(&layer, &group, rank.rank, NULL, NULL), 561_002, "room for 8 is needed");
        let none = Tensors { tp_counts: Tensor::wrap(NULL, NULL), ..Tensors::new(&layer, rank.rank) };
        assert_eq!(none.dispatch(&layer, &group, rank.rank, NULL, NULL), 161_001);
        let wrong = Tensors { ids: Tensor::new::<i64>(&[2, 2]), ..Tensors::new(&layer, rank.rank) };
        assert_eq!(wrong.dispatch(&layer, &group, rank.rank, NULL, NULL), 161_002);
        let out = Tensor::new::<bf16>(&[2, 1024]);
        let rows = Tensor::new::<bf16>(&[8, 1024]);
        assert_eq!(tensors.combine(&layer, &group, rank.rank, &out, NULL, NULL, &out), 561_002, "too short");
        assert_eq!(tensors.combine(&layer, &group, 1 - rank.rank, &rows, NULL, NULL, &out), 561_002);
        // nothing of this was more than a check: the group still works
        ok(tensors.dispatch(&layer, &group, rank.rank, NULL, NULL));
        assert_eq!(rank.sum(1), Err(1), "no other op on this communicator");
    });
    group(2, |rank| {
        assert_eq!(rank.sum(1), Ok(2));
        let tensors = Tensors::new(&layer, rank.rank);
        assert_eq!(tensors.dispatch(&layer, &name(rank.comm), rank.rank, NULL, NULL), 561_002);
    });
}

#[test]
fn what_is_told_wrong_fails_on_the_device() {
    let _sim = sim(A3);
    let layer = Layer::new(A3, 2, 2, 2);
    let codes = group(2, |rank| {
        let mut tensors = Tensors::new(&layer, rank.rank);
        if rank.rank == 1 {
            tensors.ids = Tensor::of(&[2, 2], &[0i32, 4, 1, 2]);
        }
        tensors.dispatch(&layer, &name(rank.comm), rank.rank, NULL, NULL)
    });
    assert_eq!(codes, [507_057, 507_015], "there is no expert 4");
    let codes = group(2, |rank| {
        let tensors = Tensors::new(&layer, rank.rank);
        let group = name(rank.comm);
        ok(tensors.dispatch(&layer, &group, rank.rank, NULL, NULL));
        let work = worked(&layer, rank.rank, &tensors);
        if rank.rank == 0 {
            upload(tensors.assist.memory, &[0xFF; 128 * 4 * 8]);
        }
        let out = Tensor::new::<bf16>(&[2, 1024]);
        tensors.combine(&layer, &group, rank.rank, &work, NULL, NULL, &out)
    });
    assert_eq!(codes, [507_015, 507_057]);
}

#[test]
fn a_rank_is_lost() {
    let _sim = sim(A3);
    let layer = Layer::new(A3, 3, 2, 2);
    let infos = [root(), root()];
    devices(3, |rank| {
        let comm = join(3, &infos[0], rank).unwrap();
        let tensors = Tensors::new(&layer, rank);
        if rank == 2 {
            std::thread::sleep(std::time::Duration::from_millis(50));
            assert_eq!(belaySimLoseDevice(2, 507_053), 0);
        } else {
            assert_eq!(tensors.dispatch(&layer, &name(comm), rank, NULL, NULL), 507_057);
            let next = Layer { ranks: 2, ..layer.clone() };
            let rank = Rank { rank, size: 2, comm: join(2, &infos[1], rank).unwrap(), stream: stream() };
            there_and_back(&next, &rank, |_| 2);
            // SAFETY: handles are looked up.
            unsafe {
                ok(HcclCommDestroy(rank.comm));
                ok(aclrtDestroyStream(rank.stream));
            }
        }
        // SAFETY: handles are looked up.
        ok(unsafe { HcclCommDestroy(comm) });
        belaySimHealDevice(2);
    });
}

#[test]
fn no_kernel_on_950pr() {
    let _sim = sim(r#"{"devices":2,"memory_bytes":16777216,"soc":"Ascend950PR_9589"}"#);
    let layer = Layer::new(DT, 2, 2, 2);
    group(2, |rank| {
        let (group, tensors) = (name(rank.comm), Tensors::new(&layer, rank.rank));
        assert_eq!(tensors.dispatch(&layer, &group, rank.rank, NULL, NULL), 561_003);
        let (rows, out) = (Tensor::new::<bf16>(&[8, 1024]), Tensor::new::<bf16>(&[2, 1024]));
        assert_eq!(tensors.combine(&layer, &group, rank.rank, &rows, NULL, NULL, &out), 561_003);
    });
}

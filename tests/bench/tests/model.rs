//! A generated model is a checkpoint that loads and generates, and the same bytes every time.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use belay_bench::model::{Preset, cached, shards, write};
use belay_cpu::CpuBackend;
use belay_model::{
    CacheOptions, Checkpoint, ExpertBank, LocalExperts, Logits, Model, Numerics, Scratch, Segment,
};

fn files(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    std::fs::read_dir(dir)
        .unwrap()
        .map(|entry| {
            let entry = entry.unwrap();
            (entry.file_name().into_string().unwrap(), std::fs::read(entry.path()).unwrap())
        })
        .collect()
}

#[test]
fn the_same_seed_gives_the_same_bytes_and_another_one_others() {
    let root = tempfile::tempdir().unwrap();
    let made = |name: &str, seed| {
        write(&Preset::TINY, seed, &root.path().join(name)).unwrap();
        files(&root.path().join(name))
    };
    let (first, again, other) = (made("a", 1), made("b", 1), made("c", 2));
    assert_eq!(first, again);
    assert!(first.keys().eq(other.keys()));
    for (name, bytes) in &first {
        let has_values = name.ends_with(".safetensors");
        assert_eq!(*bytes != other[name], has_values, "{name}");
    }
    assert!(write(&Preset::TINY, 1, &root.path().join("a")).is_err(), "nothing is overwritten");
    assert_eq!(std::fs::read_dir(root.path()).unwrap().count(), 3, "nothing is left over");
}

#[test]
fn the_cache_makes_a_model_once() {
    let root = tempfile::tempdir().unwrap();
    let dir = cached(&Preset::TINY, 5, root.path()).unwrap();
    let made = std::fs::metadata(&dir).unwrap().modified().unwrap();
    assert_eq!(cached(&Preset::TINY, 5, root.path()).unwrap(), dir);
    assert_eq!(std::fs::metadata(&dir).unwrap().modified().unwrap(), made);
    assert_ne!(cached(&Preset::TINY, 6, root.path()).unwrap(), dir);
}

#[test]
fn it_loads_and_its_logits_are_sane() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("model");
    write(&Preset::TINY, 3, &dir).unwrap();
    let checkpoint = Arc::new(Checkpoint::open(&dir).unwrap());
    let backend = Arc::new(CpuBackend::detect());
    let cache = CacheOptions::default();
    let model =
        Model::load(Arc::clone(&backend), &checkpoint, Numerics::EXACT, cache, &mut |_, _| {}).unwrap();
    let bank = ExpertBank::new(backend, Arc::clone(&checkpoint), Numerics::EXACT);
    let (layers, experts) = (checkpoint.card().layers, checkpoint.card().experts);
    bank.load((0..layers).flat_map(|layer| (0..experts).map(move |expert| (layer, expert))), &mut |_, _| {})
        .unwrap();
    let fabric = LocalExperts::new(Arc::new(bank));

    let tokens: Vec<u32> = (0..300).map(|position| position * 7 % 2048).collect();
    let mut state = model.new_state();
    model.reserve(&mut state, tokens.len()).unwrap();
    let mut logits = Vec::new();
    let mut segments =
        [Segment { state: &mut state, tokens: &tokens, logits: Logits::All, rewindable: false }];
    model.forward(&mut Scratch::default(), &mut segments, &fabric, &mut logits).unwrap();

    assert_eq!(logits.len(), 300 * 2048);
    let mut favourites = std::collections::HashSet::new();
    for row in logits.chunks_exact(2048) {
        assert!(row.iter().all(|logit| logit.is_finite()));
        let mean = row.iter().sum::<f32>() / 2048.0;
        let deviation = (row.iter().map(|logit| (logit - mean).powi(2)).sum::<f32>() / 2048.0).sqrt();
        assert!((1.0..10.0).contains(&deviation), "{deviation}");
        let best = (0..2048).max_by(|&a, &b| row[a].total_cmp(&row[b])).unwrap();
        favourites.insert(best);
    }
    // a forward that forgot its input would always say the same
    assert!(favourites.len() > 100, "{}", favourites.len());
}

#[test]
fn the_large_preset_has_a_billion_parameters_in_mxfp4() {
    assert!(Preset::B1.expert_parameters() >= 1_000_000_000);
    let bytes: usize = shards(&Preset::B1).iter().flatten().map(|tensor| tensor.bytes()).sum();
    assert!((600 << 20..800 << 20).contains(&bytes), "{bytes} bytes");
}

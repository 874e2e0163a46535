//! Golden hashes: if one of these changes, an upgrade of the operator restarts the pods of every deployment.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs, reason = "test code")]
#![allow(dead_code, reason = "each test takes what it needs of the common part")]
mod common;

use belay_crds::{
    CacheFormat, CacheSpec, ChatEncoding, ChatSpec, FabricSpec, ModelDeploymentSpec, RowFormat,
    SpeculationSpec, Switch,
};
use belay_operator::revision::{Data, Record, choose};
use common::{IMAGE, fixture, record, validated};
use proptest::prelude::*;

#[test]
fn hashes_of_specs_never_change() {
    let hashes = ["harbour", "schooner", "skiff", "tanker"]
        .map(|name| (name, validated(name).content.hash(0).unwrap()));
    let golden =
        [("harbour", "dcd10987"), ("schooner", "b3908cef"), ("skiff", "302526c3"), ("tanker", "c8b57b60")];
    assert_eq!(hashes, golden.map(|(name, hash)| (name, hash.to_owned())));
}

#[test]
fn what_does_not_reach_pods_makes_no_revision() {
    let before = record("harbour").revision;
    let mut changed = fixture("harbour");
    changed.spec.replicas = 9;
    changed.spec.rollout.drain_seconds = 1;
    changed.spec.experts.min_copies = 3;
    changed.spec.experts.rebalance.threshold_percent = 150;
    changed.metadata.generation = Some(100);
    changed.metadata.annotations = Some([("a".to_owned(), "b".to_owned())].into());
    let content = belay_operator::reconcile::validate::validate(&changed).unwrap().content;
    assert_eq!(content.hash(0).unwrap(), before);
}

#[test]
fn default_image_is_recorded_and_never_read_again() {
    let content = validated("skiff").content;
    let first = choose(&content, &[], Some(IMAGE)).unwrap();
    assert_eq!(first.data.image, IMAGE);
    let after_upgrade =
        choose(&content, std::slice::from_ref(&first), Some("registry.example/newer:1")).unwrap();
    assert_eq!(after_upgrade, first);
    let without_default = choose(&content, std::slice::from_ref(&first), None).unwrap();
    assert_eq!(without_default, first);
}

#[test]
fn image_of_the_spec_wins() {
    assert_eq!(record("harbour").data.image, "registry.example/worker:1.2");
}

#[test]
fn without_any_image_there_is_no_revision() {
    let error = choose(&validated("skiff").content, &[], None).unwrap_err().to_string();
    assert!(error.contains("spec.group.template.image") && error.contains("--worker-image"), "{error}");
}

#[test]
fn going_back_finds_the_old_revision_and_makes_it_the_newest() {
    let (first, content) = (record("skiff"), validated("skiff").content);
    let mut other = fixture("skiff");
    other.spec.group.template.image = Some("registry.example/other:1".into());
    let other = belay_operator::reconcile::validate::validate(&other).unwrap().content;
    let second = choose(&other, std::slice::from_ref(&first), Some(IMAGE)).unwrap();
    assert_ne!(second.revision, first.revision);
    assert_eq!(second.number, 2);
    let back = choose(&content, &[first.clone(), second], Some("registry.example/newer:1")).unwrap();
    assert_eq!((back.revision, back.number, back.data), (first.revision, 3, first.data));
}

#[test]
fn equal_hash_of_another_content_is_not_taken_for_ours() {
    let (ours, theirs) = (validated("skiff").content, record("harbour").data);
    let squatter = Record { revision: ours.hash(0).unwrap(), number: 5, data: theirs, state: None };
    let chosen = choose(&ours, &[squatter], Some(IMAGE)).unwrap();
    assert_eq!(chosen.revision, ours.hash(1).unwrap());
    assert_eq!(chosen.data.content, ours);
}

#[test]
fn record_is_read_back_as_it_was_written() {
    for name in ["harbour", "schooner", "skiff", "tanker"] {
        let data = record(name).data;
        let text = serde_json::to_string(&data).unwrap();
        assert_eq!(serde_json::from_str::<Data>(&text).unwrap(), data);
    }
}

/// One at a time, so that none shares a hash with another or with the plain spec.
#[test]
fn each_setting_of_the_workers_makes_a_revision_of_its_own() {
    type Change = fn(&mut ModelDeploymentSpec);
    let changes: [Change; 9] = [
        |_| {},
        |spec| {
            spec.model.chat = Some(ChatSpec { encoding: Some(ChatEncoding::V0731), default_thinking: None })
        },
        |spec| spec.model.chat = Some(ChatSpec { encoding: None, default_thinking: Some(Switch::Disabled) }),
        |spec| spec.group.cache = Some(CacheSpec { memory: Some("8Gi".into()), ..CacheSpec::default() }),
        |spec| spec.group.cache = Some(CacheSpec { format: Some(CacheFormat::FP8), ..CacheSpec::default() }),
        |spec| spec.group.cache = Some(CacheSpec { prefix: Some(Switch::Disabled), ..CacheSpec::default() }),
        |spec| spec.group.speculation = Some(SpeculationSpec { draft_tokens: Some(1) }),
        |spec| spec.group.expert_memory = Some("8Gi".into()),
        |spec| spec.group.fabric = Some(FabricSpec { row_format: Some(RowFormat::BF16) }),
    ];
    let hashes: std::collections::BTreeSet<String> = changes
        .iter()
        .map(|change| {
            let mut deployment = fixture("skiff");
            change(&mut deployment.spec);
            let content = belay_operator::reconcile::validate::validate(&deployment).unwrap().content;
            content.hash(0).unwrap()
        })
        .collect();
    assert_eq!(hashes.len(), changes.len());
    assert!(hashes.contains("302526c3"), "what is unset is not in the hash");
}

proptest! {
    #[test]
    fn every_field_that_reaches_pods_is_in_the_hash(workers in 1i32..9, devices in 1i32..9, tokens in 1i32..9) {
        let mut changed = fixture("skiff");
        changed.spec.group.workers = workers;
        changed.spec.group.devices_per_worker = devices;
        changed.spec.model.max_context_tokens = Some(tokens);
        changed.spec.model.chat = Some(ChatSpec { default_thinking: Some(Switch::Disabled), encoding: None });
        let content = belay_operator::reconcile::validate::validate(&changed).unwrap().content;
        let mut again = changed.clone();
        again.spec.group.workers += 1;
        let other = belay_operator::reconcile::validate::validate(&again).unwrap().content;
        prop_assert_ne!(content.hash(0).unwrap(), other.hash(0).unwrap());
        prop_assert_ne!(content.hash(0).unwrap(), validated("skiff").content.hash(0).unwrap());
    }
}

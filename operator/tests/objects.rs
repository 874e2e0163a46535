//! What is built for the fixtures, word for word.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs, reason = "test code")]
#![allow(dead_code, reason = "each test takes what it needs of the common part")]
mod common;

use belay_crds::{FabricSpec, RowFormat};
use belay_operator::reconcile::{
    build::{Prepared, build},
    observe::{Objects, Observed},
    plan::plan,
};
use belay_operator::{group::Group, rollout::Evidence};
use belay_proto::admin::Phase;
use common::{IMAGE, at, group, record, validated};

fn prepared(name: &str, groups: Vec<Group>) -> Prepared {
    let wanted = validated(name);
    let revisions = if groups.is_empty() { vec![] } else { vec![record(name)] };
    let plan = plan(&wanted, &groups, &revisions, Some(IMAGE), &Evidence::default(), at(0)).unwrap();
    let observed = Observed { groups, revisions, objects: Objects::default(), now: at(0) };
    build(&wanted, &observed, &plan).unwrap()
}

#[test]
fn first_objects_of_a_rich_spec() {
    let prepared = prepared("harbour", vec![]);
    assert_eq!((prepared.services.len(), prepared.pods.len()), (2, 6));
    assert!(prepared.budget.is_none(), "nothing serves yet");
    insta::assert_yaml_snapshot!("harbour_revision", prepared.revision);
    insta::assert_yaml_snapshot!("harbour_service", prepared.services[1]);
    insta::assert_yaml_snapshot!("harbour_pod", prepared.pods[5].pod);
    let keys: Vec<&Vec<u8>> = prepared.keys.iter().map(|key| &key.data.as_ref().unwrap()["key"].0).collect();
    assert!(keys.len() == 2 && keys[0] != keys[1] && keys.iter().all(|key| key.len() == 32));
    let mounted = &prepared.pods[5].pod.spec.as_ref().unwrap().volumes.as_ref().unwrap()[2];
    assert_eq!(mounted.secret.as_ref().unwrap().secret_name, prepared.keys[1].metadata.name);
}

#[test]
fn pod_of_a_plain_spec() {
    insta::assert_yaml_snapshot!("skiff_pod", prepared("skiff", vec![]).pods[0].pod);
}

#[test]
fn pod_with_a_checkpoint_image() {
    insta::assert_yaml_snapshot!("tanker_pod", prepared("tanker", vec![]).pods[1].pod);
}

#[test]
fn settings_of_the_engine_are_variables_of_the_worker() {
    let pod = prepared("schooner", vec![]).pods.remove(0).pod;
    let env = pod.spec.unwrap().containers.remove(0).env.unwrap();
    let found = |name: &str| env.iter().find(|variable| variable.name == name)?.value.as_deref();
    assert_eq!(found("BELAY_CHAT_ENCODING"), Some("0731"));
    assert_eq!(found("BELAY_DEFAULT_THINKING"), Some("off"));
    assert_eq!(found("BELAY_KV_MEMORY"), Some("12Gi"));
    assert_eq!(found("BELAY_KV_FORMAT"), Some("fp8"));
    assert_eq!(found("BELAY_PREFIX_CACHE"), Some("off"));
    assert_eq!(found("BELAY_DRAFT_TOKENS"), Some("2"));
    assert_eq!(found("BELAY_EXPERT_MEMORY"), None);
    assert_eq!(found("BELAY_FABRIC_FORMAT"), None);
    assert_eq!(found("BELAY_MAX_CONTEXT_TOKENS"), None, "what is unset is the worker's default");
}

#[test]
fn settings_of_experts_are_variables_of_the_worker() {
    let mut deployment = common::fixture("skiff");
    deployment.spec.group.expert_memory = Some("64Gi".into());
    deployment.spec.group.fabric = Some(FabricSpec { row_format: Some(RowFormat::BF16) });
    let wanted = belay_operator::reconcile::validate::validate(&deployment).unwrap();
    let plan = plan(&wanted, &[], &[], Some(IMAGE), &Evidence::default(), at(0)).unwrap();
    let nothing = Observed { groups: vec![], revisions: vec![], objects: Objects::default(), now: at(0) };
    let pod = build(&wanted, &nothing, &plan).unwrap().pods.remove(0).pod;
    let env = pod.spec.unwrap().containers.remove(0).env.unwrap();
    let found = |name: &str| env.iter().find(|variable| variable.name == name)?.value.as_deref();
    assert_eq!(found("BELAY_EXPERT_MEMORY"), Some("64Gi"));
    assert_eq!(found("BELAY_FABRIC_FORMAT"), Some("bf16"));
    assert_eq!(found("BELAY_FABRIC_KEY_FILE"), Some("/etc/belay/fabric/key"));
}

#[test]
fn objects_of_groups_that_serve() {
    let record = record("harbour");
    let groups: Vec<Group> = (0..2)
        .map(|ordinal| {
            let mut group = group(&record, "harbour", ordinal, Phase::Ready);
            (0..3).for_each(|slot| common::tell(&mut group, slot, |status| common::use_epoch(status, 0)));
            group
        })
        .collect();
    let prepared = prepared("harbour", groups);
    assert!(prepared.pods.is_empty() && prepared.removals.is_empty() && prepared.revision.is_none());
    insta::assert_yaml_snapshot!("harbour_budget", prepared.budget);
    insta::assert_yaml_snapshot!("harbour_placement", prepared.intents[0].config_map.metadata);
    assert!(prepared.intents[0].is_new && prepared.intents[0].config_map.data.as_ref().unwrap().len() == 1);
    insta::assert_yaml_snapshot!("harbour_service_ready", prepared.services[0].metadata.annotations);
}

/// The restricted pod security level, rule by rule (the cluster tests ask Kubernetes itself).
#[test]
fn pods_obey_the_restricted_level() {
    for name in ["harbour", "schooner", "skiff", "tanker"] {
        for new in prepared(name, vec![]).pods {
            let spec = new.pod.spec.unwrap();
            let pod = spec.security_context.unwrap();
            assert_eq!(pod.run_as_non_root, Some(true));
            assert_eq!(pod.seccomp_profile.unwrap().type_, "RuntimeDefault");
            assert_ne!(pod.run_as_user, Some(0));
            assert!(spec.host_network.is_none() && spec.host_pid.is_none() && spec.host_ipc.is_none());
            for container in spec.containers {
                let context = container.security_context.unwrap();
                assert_eq!(context.allow_privilege_escalation, Some(false));
                assert_eq!(context.read_only_root_filesystem, Some(true));
                assert_eq!(context.capabilities.unwrap().drop.unwrap(), ["ALL"]);
                assert!(container.volume_mounts.unwrap().iter().all(|mount| mount.read_only == Some(true)));
            }
        }
    }
}

/// The schema refuses templates that set what the operator sets; the list must be complete.
#[test]
fn every_variable_of_the_operator_is_reserved() {
    for name in ["harbour", "schooner", "skiff", "tanker"] {
        for new in prepared(name, vec![]).pods {
            for variable in new.pod.spec.unwrap().containers.remove(0).env.unwrap() {
                let ours = variable.name.starts_with("BELAY_");
                assert_eq!(
                    ours,
                    belay_crds::RESERVED_ENV.contains(&variable.name.as_str()),
                    "{}",
                    variable.name
                );
            }
        }
    }
}

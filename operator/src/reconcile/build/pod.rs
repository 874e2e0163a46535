//! The pod of a slot.
//!
//! Made from the revision's record alone, so that a lost pod of an old group comes back as it was. The only exception
//! is the drain time, which is not part of a revision: changing it moves no pod.
use std::collections::BTreeMap;

use belay_crds::{ModelSource, labels};
use k8s_openapi::{
    api::core::v1::{
        Affinity, Capabilities, ConfigMapVolumeSource, Container, ContainerPort, EnvVar, EnvVarSource,
        HTTPGetAction, HostPathVolumeSource, ImageVolumeSource, ObjectFieldSelector,
        PersistentVolumeClaimVolumeSource, Pod, PodAffinityTerm, PodAntiAffinity, PodSecurityContext,
        PodSpec, Probe, ResourceRequirements, SeccompProfile, SecretVolumeSource, SecurityContext, Volume,
        VolumeMount, WeightedPodAffinityTerm,
    },
    apimachinery::pkg::{api::resource::Quantity, apis::meta::v1::LabelSelector, util::intstr::IntOrString},
};

use super::{ascend, key::KEY, metadata};
use crate::{
    reconcile::observe::PLACEMENT_KEY,
    reconcile::validate::Validated,
    revision::{Content, Record},
};

/// Ports of a worker.
pub const PORTS: [(&str, i32); 4] = [("grpc", 50051), ("admin", 50052), ("fabric", 50053), ("http", 9090)];

const MODEL_DIR: &str = "/model";
const PLACEMENT_DIR: &str = "/etc/belay/placement";
const FABRIC_DIR: &str = "/etc/belay/fabric";

/// Seconds between the end of the drain time and the kill: the worker closes what is left.
const GRACE_MARGIN: u32 = 30;

/// User and group of the worker's process: "nonroot" in common minimal images.
const NONROOT: i64 = 65532;

/// The pod of one worker of a group.
pub fn pod(wanted: &Validated, record: &Record, group: &str, worker: u32) -> Pod {
    let name = labels::pod_name(group, worker);
    let content = &record.data.content;
    let template = &content.group.template;

    let mut metadata = metadata(wanted, name.clone(), Some(&record.revision), Some(group));
    metadata.labels.get_or_insert_default().insert(labels::WORKER.to_owned(), worker.to_string());
    metadata.annotations = Some(BTreeMap::from([(labels::MODEL.to_owned(), content.model.name.clone())]));

    let mut pod = Pod {
        metadata,
        spec: Some(PodSpec {
            hostname: Some(name),
            subdomain: Some(group.to_owned()),
            restart_policy: Some("Always".to_owned()),
            containers: vec![container(wanted, record, group, worker)],
            volumes: Some(volumes(wanted, &content.model.source, group)),
            security_context: Some(PodSecurityContext {
                run_as_non_root: Some(true),
                run_as_user: Some(NONROOT),
                run_as_group: Some(NONROOT),
                seccomp_profile: Some(SeccompProfile {
                    type_: "RuntimeDefault".to_owned(),
                    localhost_profile: None,
                }),
                ..PodSecurityContext::default()
            }),
            termination_grace_period_seconds: Some(i64::from(wanted.drain_seconds + GRACE_MARGIN)),
            // a worker never talks to the API server, and finds its peers by the placement
            automount_service_account_token: Some(false),
            enable_service_links: Some(false),
            service_account_name: template.service_account_name.clone(),
            image_pull_secrets: none_if_empty(template.image_pull_secrets.iter().map(Into::into).collect()),
            node_selector: (!template.node_selector.is_empty()).then(|| template.node_selector.clone()),
            tolerations: none_if_empty(template.tolerations.clone()),
            affinity: Some(template.affinity.clone().unwrap_or_else(|| spread(group))),
            priority_class_name: template.priority_class_name.clone(),
            ..PodSpec::default()
        }),
        status: None,
    };
    if let Some(spec) = &content.group.ascend {
        ascend::equip(&mut pod, &content.group, spec, group);
    }
    pod
}

fn container(wanted: &Validated, record: &Record, group: &str, worker: u32) -> Container {
    let template = &record.data.content.group.template;
    let mount = |name: &str, path: &str| VolumeMount {
        name: name.to_owned(),
        mount_path: path.to_owned(),
        read_only: Some(true),
        ..VolumeMount::default()
    };
    let ports = PORTS.map(|(name, port)| ContainerPort {
        name: Some(name.to_owned()),
        container_port: port,
        protocol: Some("TCP".to_owned()),
        ..ContainerPort::default()
    });
    Container {
        name: "worker".to_owned(),
        image: Some(record.data.image.clone()),
        image_pull_policy: template.image_pull_policy.map(|policy| policy.as_str().to_owned()),
        args: Some(vec!["serve".to_owned()]),
        env: Some(environment(wanted, record, group, worker)),
        ports: Some(ports.to_vec()),
        resources: Some(template.resources.clone().unwrap_or_else(small_request)),
        volume_mounts: Some(vec![
            mount("model", MODEL_DIR),
            mount("placement", PLACEMENT_DIR),
            mount("fabric", FABRIC_DIR),
        ]),
        readiness_probe: Some(probe("/readyz", 2, 2)),
        liveness_probe: Some(probe("/healthz", 10, 6)),
        security_context: Some(SecurityContext {
            allow_privilege_escalation: Some(false),
            read_only_root_filesystem: Some(true),
            run_as_non_root: Some(true),
            capabilities: Some(Capabilities { drop: Some(vec!["ALL".to_owned()]), add: None }),
            ..SecurityContext::default()
        }),
        // a failing worker's last words belong into the status
        termination_message_policy: Some("FallbackToLogsOnError".to_owned()),
        ..Container::default()
    }
}

fn environment(wanted: &Validated, record: &Record, group: &str, worker: u32) -> Vec<EnvVar> {
    let content = &record.data.content;
    let value =
        |name: &str, value: String| EnvVar { name: name.to_owned(), value: Some(value), ..EnvVar::default() };
    let pod_uid = EnvVar {
        name: "BELAY_POD_UID".to_owned(),
        value_from: Some(EnvVarSource {
            field_ref: Some(ObjectFieldSelector {
                api_version: Some("v1".to_owned()),
                field_path: "metadata.uid".to_owned(),
            }),
            ..EnvVarSource::default()
        }),
        ..EnvVar::default()
    };
    let mut env = vec![
        value("BELAY_MODEL_DIR", model_dir(&content.model.source)),
        value("BELAY_MODEL_NAME", content.model.name.clone()),
        value("BELAY_DEVICE", content.group.device.as_str().to_owned()),
        value("BELAY_DEVICES_PER_WORKER", content.group.devices_per_worker.to_string()),
        value("BELAY_GROUP", group.to_owned()),
        value("BELAY_REVISION", record.revision.clone()),
        value("BELAY_WORKER_INDEX", worker.to_string()),
        value("BELAY_GROUP_WORKERS", content.group.workers.to_string()),
        pod_uid,
        value("BELAY_PLACEMENT_FILE", format!("{PLACEMENT_DIR}/{PLACEMENT_KEY}")),
        value("BELAY_FABRIC_KEY_FILE", format!("{FABRIC_DIR}/{KEY}")),
        value("BELAY_DRAIN_SECONDS", wanted.drain_seconds.to_string()),
    ];
    env.extend(settings(content).into_iter().map(|(name, text)| value(name, text)));
    env.extend(content.group.template.env.iter().cloned());
    env
}

/// What the spec settles of the worker's own defaults.
fn settings(content: &Content) -> Vec<(&'static str, String)> {
    let tokens = content.model.max_context_tokens.map(|tokens| tokens.to_string());
    let chat = content.model.chat.clone().unwrap_or_default();
    let cache = content.group.cache.clone().unwrap_or_default();
    let speculation = content.group.speculation.clone().unwrap_or_default();
    let fabric = content.group.fabric.clone().unwrap_or_default();
    let settings = [
        ("BELAY_MAX_CONTEXT_TOKENS", tokens),
        ("BELAY_CHAT_ENCODING", chat.encoding.map(|encoding| encoding.as_str().to_owned())),
        ("BELAY_DEFAULT_THINKING", chat.default_thinking.map(|switch| switch.as_str().to_owned())),
        ("BELAY_KV_MEMORY", cache.memory),
        ("BELAY_KV_FORMAT", cache.format.map(|format| format.as_str().to_owned())),
        ("BELAY_PREFIX_CACHE", cache.prefix.map(|switch| switch.as_str().to_owned())),
        ("BELAY_DRAFT_TOKENS", speculation.draft_tokens.map(|tokens| tokens.to_string())),
        ("BELAY_EXPERT_MEMORY", content.group.expert_memory.clone()),
        ("BELAY_FABRIC_FORMAT", fabric.row_format.map(|format| format.as_str().to_owned())),
    ];
    settings.into_iter().filter_map(|(name, text)| Some((name, text?))).collect()
}

/// The checkpoint's directory in the container. The volume is mounted whole: a mount of a directory within it that
/// does not exist would make the kubelet create it, where the worker can say that it is missing.
fn model_dir(source: &ModelSource) -> String {
    let claim = source.persistent_volume_claim.as_ref().and_then(|claim| claim.path.as_deref());
    let image = source.image.as_ref().and_then(|image| image.path.as_deref());
    match claim.or(image).map(|path| path.trim_matches('/')) {
        Some(path) if !path.is_empty() => format!("{MODEL_DIR}/{path}"),
        _ => MODEL_DIR.to_owned(),
    }
}

fn volumes(wanted: &Validated, source: &ModelSource, group: &str) -> Vec<Volume> {
    let model = Volume {
        name: "model".to_owned(),
        persistent_volume_claim: source.persistent_volume_claim.as_ref().map(|claim| {
            PersistentVolumeClaimVolumeSource { claim_name: claim.claim_name.clone(), read_only: None }
        }),
        host_path: source.host_path.as_ref().map(|host| HostPathVolumeSource {
            path: host.path.clone(),
            // a missing directory is an error, not something to create
            type_: Some("Directory".to_owned()),
        }),
        image: source.image.as_ref().map(|image| ImageVolumeSource {
            reference: Some(image.reference.clone()),
            pull_policy: image.pull_policy.map(|policy| policy.as_str().to_owned()),
        }),
        ..Volume::default()
    };
    let placement = Volume {
        name: "placement".to_owned(),
        config_map: Some(ConfigMapVolumeSource {
            name: labels::placement_name(group),
            // the first pods of a group start before there is one
            optional: Some(true),
            ..ConfigMapVolumeSource::default()
        }),
        ..Volume::default()
    };
    let fabric = Volume {
        name: "fabric".to_owned(),
        secret: Some(SecretVolumeSource {
            secret_name: Some(labels::fabric_key_name(group, &wanted.owner.uid)),
            // a group that is older than keys goes on without
            optional: Some(true),
            ..SecretVolumeSource::default()
        }),
        ..Volume::default()
    };
    vec![model, placement, fabric]
}

fn probe(path: &str, period_seconds: i32, failures: i32) -> Probe {
    Probe {
        http_get: Some(HTTPGetAction {
            path: Some(path.to_owned()),
            port: IntOrString::String("http".to_owned()),
            ..HTTPGetAction::default()
        }),
        period_seconds: Some(period_seconds),
        timeout_seconds: Some(5),
        failure_threshold: Some(failures),
        ..Probe::default()
    }
}

/// One lost node should cost a group one worker, if there are nodes enough.
fn spread(group: &str) -> Affinity {
    let term = PodAffinityTerm {
        label_selector: Some(LabelSelector {
            match_labels: Some(BTreeMap::from([(labels::GROUP.to_owned(), group.to_owned())])),
            ..LabelSelector::default()
        }),
        topology_key: "kubernetes.io/hostname".to_owned(),
        ..PodAffinityTerm::default()
    };
    Affinity {
        pod_anti_affinity: Some(PodAntiAffinity {
            preferred_during_scheduling_ignored_during_execution: Some(vec![WeightedPodAffinityTerm {
                weight: 100,
                pod_affinity_term: term,
            }]),
            ..PodAntiAffinity::default()
        }),
        ..Affinity::default()
    }
}

fn small_request() -> ResourceRequirements {
    let request = |name: &str, amount: &str| (name.to_owned(), Quantity(amount.to_owned()));
    ResourceRequirements {
        requests: Some(BTreeMap::from([request("cpu", "100m"), request("memory", "256Mi")])),
        ..ResourceRequirements::default()
    }
}

fn none_if_empty<T>(list: Vec<T>) -> Option<Vec<T>> {
    (!list.is_empty()).then_some(list)
}

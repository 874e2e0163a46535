//! What a pod needs to work with Ascend NPUs, on top of what every worker pod has.
//!
//! The conventions are those of Ascend's device plugin, container runtime and Volcano plugin (docs/operations/ascend.md).
use std::collections::BTreeMap;

use belay_crds::{
    AscendChip, AscendRuntime, AscendScheduling, AscendSpec, AscendWeights, GroupSpec, PodNetwork, Scheduler,
    labels,
};
use k8s_openapi::{
    api::core::v1::{
        Affinity, Container, EmptyDirVolumeSource, EnvVar, EnvVarSource, HostPathVolumeSource,
        ObjectFieldSelector, Pod, PodAffinity, PodAffinityTerm, PodResourceClaim, PodSpec, ResourceClaim,
        Volume, VolumeMount, WeightedPodAffinityTerm,
    },
    apimachinery::pkg::{api::resource::Quantity, apis::meta::v1::LabelSelector},
};

/// Size of /dev/shm where the spec names none.
const SHARED_MEMORY: &str = "16Gi";

/// Group of the device files where the spec names none: what the vendor's images expect.
const DEVICE_GROUP: i64 = 1000;

/// Home of the worker's user in the image. CANN writes its logs and caches there.
const HOME: &str = "/home/belay";

/// Seconds that members of a communicator wait for each other. The least that HCCL takes: it is only made once all are there.
const CONNECT_SECONDS: u32 = 120;

/// Seconds after which a collective call gives up. HCCL's own half an hour is longer than anybody waits for a dead peer.
const EXEC_SECONDS: u32 = 120;

/// The resource that is asked for; `None` if devices come by a claim.
pub fn resource<'a>(group: &'a GroupSpec, spec: &AscendSpec) -> Option<&'a str> {
    match spec.resource_claim_template_name {
        Some(_) => None,
        None => Some(group.device_resource.as_deref().unwrap_or(spec.chip.resource())),
    }
}

/// Whether Volcano finds nodes for the pods.
pub fn by_volcano(spec: &AscendSpec) -> Option<&AscendScheduling> {
    spec.scheduling.as_ref().filter(|scheduling| scheduling.scheduler == Scheduler::Volcano)
}

/// Whether a group spans nodes of a superpod.
pub fn spans_superpod(group: &GroupSpec, spec: &AscendSpec) -> bool {
    spec.chip == AscendChip::A3 && group.workers > 1
}

/// How many devices Volcano must find in one superpod, if it is asked for that.
pub fn superpod_block(group: &GroupSpec, spec: &AscendSpec) -> Option<i32> {
    let scheduling = by_volcano(spec)?;
    let whole = spans_superpod(group, spec).then(|| group.workers.saturating_mul(group.devices_per_worker));
    scheduling.super_pod_devices.or(whole)
}

/// Value of [`labels::RING_CONTROLLER`].
pub fn ring_controller(chip: AscendChip) -> &'static str {
    if chip.is_950() { "ascend-npu" } else { "ascend-910b" }
}

/// Gives the pod of a worker what it needs. `name`: of its group.
pub fn equip(pod: &mut Pod, group: &GroupSpec, spec: &AscendSpec, name: &str) {
    let resource = resource(group, spec);
    let volcano = by_volcano(spec).is_some();
    if resource.is_some() {
        let ring = ring_controller(spec.chip).to_owned();
        pod.metadata.labels.get_or_insert_default().insert(labels::RING_CONTROLLER.to_owned(), ring);
    }
    if volcano {
        let annotations = pod.metadata.annotations.get_or_insert_default();
        annotations.insert(labels::POD_GROUP.to_owned(), name.to_owned());
    }
    let Some(pod) = pod.spec.as_mut() else { return };
    if volcano {
        pod.scheduler_name = Some("volcano".to_owned());
    }
    if spec.network == Some(PodNetwork::Host) {
        pod.host_network = Some(true);
        // peers are found by names of the cluster
        pod.dns_policy = Some("ClusterFirstWithHostNet".to_owned());
    }
    if let Some(security) = pod.security_context.as_mut() {
        security.supplemental_groups = Some(vec![spec.device_group_id.unwrap_or(DEVICE_GROUP)]);
    }
    select_nodes(pod, group, spec, name);
    let mounts = mounts(group, spec);
    pod.volumes.get_or_insert_default().extend(mounts.iter().map(Mount::volume));
    if let Some(template) = &spec.resource_claim_template_name {
        pod.resource_claims = Some(vec![PodResourceClaim {
            name: "devices".to_owned(),
            resource_claim_template_name: Some(template.clone()),
            resource_claim_name: None,
        }]);
    }
    for container in &mut pod.containers {
        container.volume_mounts.get_or_insert_default().extend(mounts.iter().map(Mount::mount));
        environment(container, group, spec, resource);
        ask_for_devices(container, group, resource);
    }
}

/// Nodes that have such devices by the labels of Ascend's device plugin, unless another plugin or a claim is to give them;
/// and one superpod for a group on A3, if it has room: a lost worker must come back where there is some.
fn select_nodes(pod: &mut PodSpec, group: &GroupSpec, spec: &AscendSpec, name: &str) {
    if group.device_resource.is_none() && spec.resource_claim_template_name.is_none() {
        let accelerator = if spec.chip.is_950() { "huawei-npu" } else { "huawei-Ascend910" };
        let selector = pod.node_selector.get_or_insert_default();
        selector.entry(labels::ACCELERATOR.to_owned()).or_insert_with(|| accelerator.to_owned());
    }
    if spans_superpod(group, spec) && group.template.affinity.is_none() {
        let term = PodAffinityTerm {
            label_selector: Some(LabelSelector {
                match_labels: Some(BTreeMap::from([(labels::GROUP.to_owned(), name.to_owned())])),
                ..LabelSelector::default()
            }),
            topology_key: labels::SUPERPOD.to_owned(),
            ..PodAffinityTerm::default()
        };
        let affinity: &mut Affinity = pod.affinity.get_or_insert_default();
        affinity.pod_affinity = Some(PodAffinity {
            preferred_during_scheduling_ignored_during_execution: Some(vec![WeightedPodAffinityTerm {
                weight: 100,
                pod_affinity_term: term,
            }]),
            ..PodAffinity::default()
        });
    }
}

/// A place in the container, and what is there.
struct Mount {
    name: &'static str,
    path: &'static str,
    source: Source,
}

enum Source {
    /// A file of the node, at the same path. One that is missing keeps the pod from starting.
    File,
    /// A directory of the node, at the same path.
    Directory,
    /// Memory, so much of it at most.
    Memory(String),
    /// An empty directory that goes with the pod.
    Scratch,
}

impl Mount {
    fn volume(&self) -> Volume {
        let of_node = |kind: &str| {
            Some(HostPathVolumeSource { path: self.path.to_owned(), type_: Some(kind.to_owned()) })
        };
        let mut volume = Volume { name: self.name.to_owned(), ..Volume::default() };
        match &self.source {
            Source::File => volume.host_path = of_node("File"),
            Source::Directory => volume.host_path = of_node("Directory"),
            Source::Memory(limit) => {
                volume.empty_dir = Some(EmptyDirVolumeSource {
                    medium: Some("Memory".to_owned()),
                    size_limit: Some(Quantity(limit.clone())),
                });
            }
            Source::Scratch => volume.empty_dir = Some(EmptyDirVolumeSource::default()),
        }
        volume
    }

    fn mount(&self) -> VolumeMount {
        let of_node = matches!(self.source, Source::File | Source::Directory);
        VolumeMount {
            name: self.name.to_owned(),
            mount_path: self.path.to_owned(),
            read_only: of_node.then_some(true),
            ..VolumeMount::default()
        }
    }
}

fn mounts(group: &GroupSpec, spec: &AscendSpec) -> Vec<Mount> {
    let shared_memory = spec.shared_memory.as_deref().unwrap_or(SHARED_MEMORY).to_owned();
    let mount = |name, path, source| Mount { name, path, source };
    let mut mounts = vec![
        mount("shm", "/dev/shm", Source::Memory(shared_memory)),
        mount("home", HOME, Source::Scratch),
        mount("tmp", "/tmp", Source::Scratch),
    ];
    // addresses of the devices' network interfaces, which the runtime does not mount: without them, groups of several nodes
    // were seen to answer nonsense, so that a node without must not take the pod; 950 has another network
    let several = group.workers > 1 && !spec.chip.is_950();
    if several {
        mounts.push(mount("hccn-conf", "/etc/hccn.conf", Source::File));
    }
    match spec.runtime.unwrap_or_default() {
        AscendRuntime::Ascend if several => {
            mounts.push(mount("hccn-tool", "/usr/local/Ascend/driver/tools/hccn_tool", Source::File));
        }
        AscendRuntime::Ascend => {}
        // the driver's libraries and tools, version.info, and the topology files of 950
        AscendRuntime::Mounts => mounts.extend([
            mount("driver", "/usr/local/Ascend/driver", Source::Directory),
            mount("dcmi", "/usr/local/dcmi", Source::Directory),
            mount("npu-smi", "/usr/local/bin/npu-smi", Source::File),
            mount("install-info", "/etc/ascend_install.info", Source::File),
        ]),
    }
    mounts
}

/// Variables of CANN and the runtime. One that the template sets stays as it is there; ours come before it, the worker's own
/// cannot be in it.
fn environment(container: &mut Container, group: &GroupSpec, spec: &AscendSpec, resource: Option<&str>) {
    let value = |name: &str, value: &str| EnvVar {
        name: name.to_owned(),
        value: Some(value.to_owned()),
        ..EnvVar::default()
    };
    let field = |name: &str, path: String| EnvVar {
        name: name.to_owned(),
        value_from: Some(EnvVarSource {
            field_ref: Some(ObjectFieldSelector { api_version: Some("v1".to_owned()), field_path: path }),
            ..EnvVarSource::default()
        }),
        ..EnvVar::default()
    };
    let mut ours = vec![
        value("BELAY_ASCEND_CHIP", spec.chip.as_str()),
        value("BELAY_ASCEND_PRODUCTS", spec.weights.unwrap_or(AscendWeights::BF16).as_str()),
        value("HOME", HOME),
        field("HCCL_IF_IP", "status.podIP".to_owned()),
        value("HCCL_CONNECT_TIMEOUT", &CONNECT_SECONDS.to_string()),
        value("HCCL_EXEC_TIMEOUT", &EXEC_SECONDS.to_string()),
    ];
    if !spec.chip.is_950() {
        // expanded on the device's vector cores, as everybody serves on these chips; 950 has engines of its own for it
        ours.push(value("HCCL_OP_EXPANSION_MODE", "AIV"));
    }
    // with Volcano, its plugin has picked devices, and the runtime mounts what it is told; else the device plugin tells the
    // runtime itself, and a variable of ours would contradict it
    let runtime = spec.runtime.unwrap_or_default();
    if let (Some(resource), AscendRuntime::Ascend, Some(_)) = (resource, runtime, by_volcano(spec)) {
        ours.push(field("ASCEND_VISIBLE_DEVICES", format!("metadata.annotations['{resource}']")));
    }
    let theirs = &group.template.env;
    ours.retain(|ours| !theirs.iter().any(|theirs| theirs.name == ours.name));
    let env = container.env.get_or_insert_default();
    let first_of_theirs = env.len().saturating_sub(theirs.len());
    env.splice(first_of_theirs..first_of_theirs, ours);
}

fn ask_for_devices(container: &mut Container, group: &GroupSpec, resource: Option<&str>) {
    let resources = container.resources.get_or_insert_default();
    match resource {
        Some(resource) => {
            let count = Quantity(group.devices_per_worker.to_string());
            // an extended resource must be limited to what is requested
            for list in [&mut resources.requests, &mut resources.limits] {
                list.get_or_insert_default().insert(resource.to_owned(), count.clone());
            }
        }
        None => {
            let claim = ResourceClaim { name: "devices".to_owned(), request: None };
            resources.claims.get_or_insert_default().push(claim);
        }
    }
}

//! Keys of labels and annotations, and names made from them. `docs/reference/contracts.md` lists them for readers.

/// Label: `belay-worker` on everything that the operator makes.
pub const NAME: &str = "app.kubernetes.io/name";
/// Label: `belay-operator` on everything that the operator makes.
pub const MANAGED_BY: &str = "app.kubernetes.io/managed-by";
/// Label: name of the ModelDeployment.
pub const MODEL_DEPLOYMENT: &str = "serving.belay.dev/model-deployment";
/// Label: group, on what belongs to a group.
pub const GROUP: &str = "serving.belay.dev/group";
/// Label: revision.
pub const REVISION: &str = "serving.belay.dev/revision";
/// Label: worker index, on pods.
pub const WORKER: &str = "serving.belay.dev/worker";

/// Annotation on pods: served model name.
pub const MODEL: &str = "serving.belay.dev/model";
/// Annotation on pods: `"true"` once the operator wants no new request there.
pub const DRAINING: &str = "serving.belay.dev/draining";
/// Annotation on a group's Service: since when the group drains (RFC 3339). Written before anything else is done
/// about it, so that another leader continues the drain instead of starting it anew.
pub const DRAINING_SINCE: &str = "serving.belay.dev/draining-since";
/// Annotation on a group's Service: when the group was first ready (RFC 3339). Tells a group that starts from one
/// that lost a worker.
pub const FIRST_READY: &str = "serving.belay.dev/first-ready";
/// Annotation on a ModelDeployment: whenever its value changes, load is spread anew once, if that helps.
pub const REBALANCE: &str = "serving.belay.dev/rebalance";
/// Annotation on a group's ConfigMap: what was done about load so far, as JSON. Written together with the operation, so
/// that another leader neither forgets nor repeats a rebalance.
pub const REBALANCES: &str = "serving.belay.dev/rebalances";
/// Annotation on a ModelDeployment: the revision that a person wants promoted, whatever the analysis has seen. What follows a
/// slash makes it another word than last time: only a word that is new counts.
pub const PROMOTE: &str = "serving.belay.dev/promote";
/// Annotation on a ControllerRevision: how far its rollout is, as JSON. Another leader goes on from there.
pub const ROLLOUT: &str = "serving.belay.dev/rollout";
/// Label on pods: `"true"` while the pod may be evicted, since every expert has a live copy without it.
pub const MAY_LEAVE: &str = "serving.belay.dev/may-leave";

/// Label of nodes: the zone.
pub const ZONE: &str = "topology.kubernetes.io/zone";
/// Label of nodes: the superpod of an Ascend node, whose devices are connected much faster than those of two superpods.
pub const SUPERPOD: &str = "huawei.com/topotree.superpodid";

/// Label of nodes: the rack within its superpod.
pub const RACK: &str = "huawei.com/topotree.rackid";
/// Label of nodes: what kind of accelerator Ascend's device plugin has found.
pub const ACCELERATOR: &str = "accelerator";
/// Label of pods and PodGroups: marks those with NPUs for Ascend's device plugin and scheduler.
pub const RING_CONTROLLER: &str = "ring-controller.atlas";
/// Annotation on pods: the PodGroup that they are scheduled with.
pub const POD_GROUP: &str = "scheduling.k8s.io/group-name";
/// Annotation on pods, written by Ascend's device plugin: the devices that it really has mounted.
pub const REAL_DEVICES: &str = "huawei.com/AscendReal";
/// Annotation on PodGroups: how Volcano's Ascend plugin picks devices.
pub const SCHEDULE_POLICY: &str = "huawei.com/schedule_policy";
/// Annotation on PodGroups: how many pods must find a node together.
pub const SCHEDULE_MIN_AVAILABLE: &str = "huawei.com/schedule_minAvailable";
/// Annotation on PodGroups: how many devices must be in one superpod.
pub const SUPERPOD_BLOCK: &str = "sp-block";

/// Value of [`NAME`].
pub const NAME_VALUE: &str = "belay-worker";
/// Value of [`MANAGED_BY`], and the field manager of server-side apply.
pub const OPERATOR: &str = "belay-operator";
/// Field manager of [`MAY_LEAVE`] alone: it comes and goes without regard to what else is applied to a pod.
pub const LEAVE_MANAGER: &str = "belay-operator-leave";

/// Field manager of `spec.replicas` with `spec.autoscaling`.
pub const AUTOSCALER: &str = "belay-autoscaler";

/// Selects everything of one ModelDeployment.
pub fn selector(deployment: &str) -> String {
    format!("{MANAGED_BY}={OPERATOR},{MODEL_DEPLOYMENT}={deployment}")
}

/// Selects one pod of each group: what `/scale` reports.
pub fn scale_selector(deployment: &str) -> String {
    format!("{MODEL_DEPLOYMENT}={deployment},{WORKER}=0")
}

/// Name of a group, and of its headless Service.
pub fn group_name(deployment: &str, revision: &str, ordinal: u32) -> String {
    format!("{deployment}-{revision}-{ordinal}")
}

/// Name of a pod, and its hostname.
pub fn pod_name(group: &str, worker: u32) -> String {
    format!("{group}-{worker}")
}

/// Name of a group's placement ConfigMap.
pub fn placement_name(group: &str) -> String {
    format!("{group}-placement")
}

/// Name of the Secret with the key that the workers of a group know each other by. The end of the owner's UID is in it: a
/// deployment that was deleted and created again never gets hold of an old key that is about to vanish, and so the
/// operator needs no right to read Secrets.
pub fn fabric_key_name(group: &str, owner_uid: &str) -> String {
    let life = owner_uid.get(owner_uid.len().saturating_sub(8)..).unwrap_or_default();
    format!("{group}-fabric-{life}")
}

/// Name of the ControllerRevision of a revision.
pub fn revision_name(deployment: &str, revision: &str) -> String {
    format!("{deployment}-{revision}")
}

/// Ordinal of a group, from its name; `None` if the name is not one of this deployment and revision.
pub fn group_ordinal(deployment: &str, revision: &str, group: &str) -> Option<u32> {
    group.strip_prefix(deployment)?.strip_prefix('-')?.strip_prefix(revision)?.strip_prefix('-')?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{MAX_NAME_LENGTH, MAX_REPLICAS};

    #[test]
    fn longest_names_fit_a_hostname_and_a_label_value() {
        let deployment = "d".repeat(MAX_NAME_LENGTH);
        // spec.replicas + maxSurge groups at most, so the highest ordinal has four digits
        let ordinal = 2 * u32::try_from(MAX_REPLICAS).unwrap() - 1;
        let group = group_name(&deployment, "0123abcd", ordinal);
        assert!(group.len() <= 63, "group {}", group.len());
        assert!(pod_name(&group, 255).len() <= 63, "pod {}", pod_name(&group, 255).len());
    }

    #[test]
    fn ordinal_is_read_back_from_the_name() {
        let group = group_name("a-b", "0123abcd", 17);
        assert_eq!(group_ordinal("a-b", "0123abcd", &group), Some(17));
        assert_eq!(group_ordinal("a", "0123abcd", &group), None);
        assert_eq!(group_ordinal("a-b", "ffffffff", &group), None);
    }
}

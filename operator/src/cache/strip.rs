//! What is kept of the objects that are watched: there may be many thousands.
use k8s_openapi::api::{
    core::v1::{Pod, PodSpec},
    policy::v1::PodDisruptionBudget,
};
use kube::Resource;

/// Who wrote which field is never looked at.
pub fn metadata<K: Resource>(object: &mut K) {
    object.meta_mut().managed_fields = None;
}

/// A pod's spec never changes, and is not compared with anything: the node is all that is looked at. Of its status goes what
/// only repeats the spec or the node.
pub fn pod(pod: &mut Pod) {
    metadata(pod);
    if let Some(spec) = pod.spec.take() {
        pod.spec = Some(PodSpec { node_name: spec.node_name, ..PodSpec::default() });
    }
    if let Some(status) = &mut pod.status {
        (status.host_ips, status.pod_ips, status.init_container_statuses) = (None, None, None);
        for container in status.container_statuses.iter_mut().flatten() {
            (container.volume_mounts, container.allocated_resources, container.resources) =
                (None, None, None);
        }
    }
}

/// A budget's status is counted anew with each change of a pod, which is watched itself.
pub fn budget(budget: &mut PodDisruptionBudget) {
    metadata(budget);
    budget.status = None;
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn pod_keeps_what_is_looked_at() {
        let status = json!({ "phase": "Running", "podIP": "10.0.0.1", "podIPs": [{ "ip": "10.0.0.1" }],
            "containerStatuses": [{ "name": "worker", "image": "i", "imageID": "i", "ready": true,
                "restartCount": 2, "state": { "running": {} }, "lastState": { "terminated": { "exitCode": 1 } } }] });
        let mut whole: Pod = serde_json::from_value(json!({
            "metadata": { "name": "p", "labels": { "a": "b" }, "managedFields": [{ "manager": "m" }] },
            "spec": { "nodeName": "n", "containers": [{ "name": "worker" }] }, "status": status }))
        .unwrap();
        pod(&mut whole);
        assert_eq!(whole.metadata.managed_fields, None);
        assert_eq!(whole.spec.as_ref().unwrap().node_name.as_deref(), Some("n"));
        assert!(whole.spec.as_ref().unwrap().containers.is_empty());
        let kept = serde_json::to_value(whole.status.unwrap()).unwrap();
        for path in ["/phase", "/podIP", "/containerStatuses/0"] {
            assert_eq!(kept.pointer(path), status.pointer(path), "{path}");
        }
    }
}

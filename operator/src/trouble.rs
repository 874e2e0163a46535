//! Why a pod does not run: pure, from the pod and the events about it.
use belay_crds::Reason;
use k8s_openapi::{
    api::core::v1::{ContainerStatus, Event, Pod},
    jiff::Timestamp,
};

use crate::group::Trouble;

/// Events older than this say nothing about now. The kubelet repeats a failing mount at least every two minutes.
const EVENT_SECONDS: i64 = 300;

/// Whether only events can tell why the pod does not start: it has a node, but no container was ever made.
pub fn needs_events(pod: &Pod) -> bool {
    let status = pod.status.as_ref();
    let scheduled = pod.spec.as_ref().is_some_and(|spec| spec.node_name.is_some());
    let pending = status.and_then(|status| status.phase.as_deref()) == Some("Pending");
    scheduled && pending && waiting(pod).is_none_or(|(reason, _)| reason == "ContainerCreating")
}

/// The cause that keeps a pod from running, if there is evidence of one.
pub fn of_pod(pod: &Pod, events: &[Event], now: Timestamp) -> Option<Trouble> {
    unschedulable(pod)
        .or_else(|| container(pod))
        .or_else(|| if needs_events(pod) { from_events(events, now) } else { None })
}

fn unschedulable(pod: &Pod) -> Option<Trouble> {
    let conditions = pod.status.as_ref()?.conditions.as_ref()?;
    let condition = conditions.iter().find(|c| c.type_ == "PodScheduled" && c.status == "False")?;
    let message = condition.message.clone().unwrap_or_default();
    let volume = message.contains("persistentvolumeclaim");
    let reason = if volume { Reason::VolumeUnavailable } else { Reason::PodUnschedulable };
    Some(Trouble { reason, message })
}

fn container(pod: &Pod) -> Option<Trouble> {
    let (reason, message) = waiting(pod)?;
    let kind = match reason {
        "ErrImagePull"
        | "ImagePullBackOff"
        | "InvalidImageName"
        | "ErrImageNeverPull"
        | "ImageInspectError"
        | "RegistryUnavailable" => Reason::ImageUnavailable,
        "CrashLoopBackOff" => return Some(crash(pod)),
        "ContainerCreating" | "PodInitializing" => return None,
        _ => Reason::PodNotStarting,
    };
    let detail = if message.is_empty() { reason.to_owned() } else { format!("{reason}: {message}") };
    Some(Trouble { reason: kind, message: detail })
}

/// What the last life of a crashing container ended with.
fn crash(pod: &Pod) -> Trouble {
    let status = container_status(pod);
    let restarts = status.map_or(0, |status| status.restart_count);
    let last =
        status.and_then(|status| status.last_state.as_ref()).and_then(|state| state.terminated.as_ref());
    let Some(last) = last else {
        return Trouble { reason: Reason::PodCrashing, message: format!("ended {restarts} times") };
    };
    let killed = last.reason.as_deref() == Some("OOMKilled");
    let mut message = format!("ended {restarts} times, last with exit code {}", last.exit_code);
    for detail in [&last.reason, &last.message].into_iter().flatten() {
        if detail != "Error" {
            message.push_str(": ");
            message.push_str(detail.trim());
        }
    }
    Trouble { reason: if killed { Reason::OutOfMemory } else { Reason::PodCrashing }, message }
}

fn from_events(events: &[Event], now: Timestamp) -> Option<Trouble> {
    let at = |event: &Event| {
        let series =
            event.series.as_ref().and_then(|series| series.last_observed_time.as_ref()).map(|time| time.0);
        let last = event.last_timestamp.as_ref().map(|time| time.0);
        series
            .or(last)
            .or(event.event_time.as_ref().map(|time| time.0))
            .or(event.first_timestamp.as_ref().map(|t| t.0))
    };
    let recent = events
        .iter()
        .filter(|event| event.type_.as_deref() == Some("Warning"))
        .filter_map(|event| Some((at(event)?, event)))
        .filter(|(at, _)| now.as_second() - at.as_second() <= EVENT_SECONDS);
    // only what keeps a container from being made: a failing probe, say, is no news about a pod that starts
    let telling = recent.filter_map(|(at, event)| Some((at, kind_of(event.reason.as_deref()?)?, event)));
    let (_, reason, event) = telling.max_by_key(|(at, ..)| *at)?;
    let kind = event.reason.as_deref().unwrap_or_default();
    let message = event.message.as_deref().unwrap_or_default().trim();
    Some(Trouble { reason, message: format!("{kind}: {message}") })
}

/// What kind of trouble an event of the kubelet or a controller tells of, if any.
fn kind_of(event: &str) -> Option<Reason> {
    match event {
        "FailedMount" | "FailedAttachVolume" | "FailedMapVolume" => Some(Reason::VolumeUnavailable),
        "Failed" | "ErrImageNeverPull" | "InspectFailed" => Some(Reason::ImageUnavailable),
        "FailedCreatePodSandBox"
        | "FailedCreatePodContainer"
        | "NetworkNotReady"
        | "OutOfpods"
        | "OutOfcpu"
        | "OutOfmemory"
        | "NodeAffinity"
        | "UnexpectedAdmissionError" => Some(Reason::PodNotStarting),
        _ => None,
    }
}

fn container_status(pod: &Pod) -> Option<&ContainerStatus> {
    pod.status.as_ref()?.container_statuses.as_ref()?.first()
}

/// Reason and message of the worker container's waiting state.
fn waiting(pod: &Pod) -> Option<(&str, &str)> {
    let waiting = container_status(pod)?.state.as_ref()?.waiting.as_ref()?;
    Some((waiting.reason.as_deref()?, waiting.message.as_deref().unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(status: serde_json::Value) -> Pod {
        serde_json::from_value(json!({ "spec": { "nodeName": "n", "containers": [] }, "status": status }))
            .unwrap()
    }

    fn waiting_pod(reason: &str, message: &str) -> Pod {
        let state = json!({ "waiting": { "reason": reason, "message": message } });
        pod(json!({ "phase": "Pending", "containerStatuses": [
            { "name": "worker", "image": "", "imageID": "", "ready": false, "restartCount": 3, "state": state,
              "lastState": { "terminated": { "exitCode": 137, "reason": "OOMKilled" } } } ] }))
    }

    fn event(reason: &str, message: &str, at: i64) -> Event {
        let at = Timestamp::from_second(at).unwrap().to_string();
        serde_json::from_value(
            json!({ "metadata": {}, "involvedObject": {}, "type": "Warning", "reason": reason,
            "message": message, "lastTimestamp": at }),
        )
        .unwrap()
    }

    #[track_caller]
    fn is(trouble: Option<Trouble>, reason: Reason, words: &str) {
        let trouble = trouble.expect("must be named");
        assert_eq!(trouble.reason, reason);
        assert!(trouble.message.contains(words), "{}", trouble.message);
    }

    #[test]
    fn image_that_cannot_be_pulled_is_named() {
        let now = Timestamp::UNIX_EPOCH;
        let pod = waiting_pod("ImagePullBackOff", "Back-off pulling image \"x:1\"");
        is(of_pod(&pod, &[], now), Reason::ImageUnavailable, "x:1");
    }

    #[test]
    fn crash_loop_says_how_the_last_life_ended() {
        is(
            of_pod(&waiting_pod("CrashLoopBackOff", ""), &[], Timestamp::UNIX_EPOCH),
            Reason::OutOfMemory,
            "137",
        );
    }

    #[test]
    fn missing_directory_is_known_from_events_only() {
        let now = Timestamp::from_second(1000).unwrap();
        let pod = waiting_pod("ContainerCreating", "");
        let text = "MountVolume.SetUp failed: hostPath type check failed: /models/nowhere is not a directory";
        is(
            of_pod(&pod, &[event("FailedMount", text, 900)], now),
            Reason::VolumeUnavailable,
            "/models/nowhere",
        );
        assert_eq!(of_pod(&pod, &[event("FailedMount", text, 600)], now), None, "too old to be true");
        assert_eq!(of_pod(&pod, &[], now), None);
        let probe = event("Unhealthy", "Readiness probe failed", 999);
        assert_eq!(of_pod(&pod, std::slice::from_ref(&probe), now), None, "the container is just starting");
        is(
            of_pod(&pod, &[event("FailedMount", text, 900), probe], now),
            Reason::VolumeUnavailable,
            "nowhere",
        );
    }

    #[test]
    fn scheduler_is_quoted() {
        let condition = |message: &str| {
            json!({ "phase": "Pending", "conditions": [
                { "type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message } ] })
        };
        let now = Timestamp::UNIX_EPOCH;
        let full = pod(condition("0/3 nodes are available: 3 Insufficient cpu."));
        is(of_pod(&full, &[], now), Reason::PodUnschedulable, "Insufficient cpu");
        let claim = pod(condition("persistentvolumeclaim \"weights\" not found"));
        is(of_pod(&claim, &[], now), Reason::VolumeUnavailable, "weights");
    }

    #[test]
    fn running_pod_has_no_trouble() {
        let running = pod(json!({ "phase": "Running", "containerStatuses": [
            { "name": "worker", "image": "", "imageID": "", "ready": true, "restartCount": 0,
              "state": { "running": {} } } ] }));
        assert_eq!(of_pod(&running, &[event("FailedMount", "old", 0)], Timestamp::UNIX_EPOCH), None);
    }
}

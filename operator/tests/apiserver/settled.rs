//! What a status says.
use belay_crds::ModelDeploymentStatus;

/// Status, reason and message of a condition.
pub fn condition(status: &ModelDeploymentStatus, kind: &str) -> (String, String, String) {
    let found = status.conditions.iter().find(|condition| condition.type_ == kind);
    found.map(|c| (c.status.clone(), c.reason.clone(), c.message.clone())).unwrap_or_default()
}

/// Whether all is as it should be, with nothing left to do.
pub fn settled(status: &ModelDeploymentStatus) -> bool {
    condition(status, "Progressing").0 == "False"
        && condition(status, "Degraded").0 == "False"
        && condition(status, "Available").0 == "True"
}

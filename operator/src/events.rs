//! Events on the ModelDeployment: what happened, for people.
use belay_crds::{ModelDeployment, Reason};
use k8s_openapi::api::core::v1::ObjectReference;
use kube::{
    Resource as _,
    runtime::events::{Event, EventType, Recorder},
};
use tracing::warn;

/// Something to tell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    warning: bool,
    reason: Reason,
    action: &'static str,
    subject: String,
    text: String,
}

impl Note {
    /// Things go as they should. `subject` is the group or pod that it is about.
    pub fn normal(reason: Reason, action: &'static str, subject: &str, text: String) -> Self {
        Self { warning: false, reason, action, subject: subject.to_owned(), text }
    }

    /// Somebody may want to look at it.
    pub fn warning(reason: Reason, action: &'static str, subject: &str, text: String) -> Self {
        Self { warning: true, reason, action, subject: subject.to_owned(), text }
    }
}

/// Most bytes of an event's note that the API server takes, less a little.
const NOTE_BYTES: usize = 1000;

/// Publishes notes. The recorder joins equal ones (same reason, same subject) into a series. An event that cannot be
/// published is logged: status, not events, is what decisions are made by.
pub async fn publish(recorder: &Recorder, deployment: &ModelDeployment, notes: &[Note]) {
    let regarding = deployment.object_ref(&());
    for note in notes {
        let event = Event {
            type_: if note.warning { EventType::Warning } else { EventType::Normal },
            reason: note.reason.as_str().to_owned(),
            note: Some(shorten(&note.text)),
            action: note.action.to_owned(),
            // keeps events about different groups and pods apart
            secondary: Some(ObjectReference {
                name: Some(note.subject.clone()),
                namespace: regarding.namespace.clone(),
                ..ObjectReference::default()
            }),
        };
        if let Err(error) = recorder.publish(&event, &regarding).await {
            warn!(reason = %note.reason, error = crate::error::describe(&error), "event not published");
        }
    }
}

fn shorten(text: &str) -> String {
    if text.len() <= NOTE_BYTES {
        return text.to_owned();
    }
    let end = (0..=NOTE_BYTES).rev().find(|&end| text.is_char_boundary(end)).unwrap_or(0);
    format!("{}…", text.get(..end).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_notes_fit_an_event() {
        assert!(shorten(&"ä".repeat(2000)).len() <= 1024);
        assert_eq!(shorten("short"), "short");
    }
}

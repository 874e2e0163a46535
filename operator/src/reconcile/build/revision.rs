//! The ControllerRevision of a revision.
use belay_crds::labels;
use k8s_openapi::{api::apps::v1::ControllerRevision, apimachinery::pkg::runtime::RawExtension};

use super::{BuildError, metadata};
use crate::{reconcile::validate::Validated, revision::Record};

/// Keeps what pods of a revision are made from, for as long as there are such pods and a while longer.
pub fn revision(wanted: &Validated, record: &Record) -> Result<ControllerRevision, BuildError> {
    let data = serde_json::to_value(&record.data)
        .map_err(|source| BuildError::Json { what: format!("revision {}", record.revision), source })?;
    let name = labels::revision_name(&wanted.name, &record.revision);
    let mut metadata = metadata(wanted, name, Some(&record.revision), None);
    if let Some(state) = &record.state {
        let text = serde_json::to_string(state).map_err(|source| BuildError::Json {
            what: format!("rollout of revision {}", record.revision),
            source,
        })?;
        metadata.annotations = Some([(labels::ROLLOUT.to_owned(), text)].into());
    }
    Ok(ControllerRevision { metadata, data: Some(RawExtension(data)), revision: record.number })
}

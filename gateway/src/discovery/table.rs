//! The routing table: what discovery found, as plain data.
use std::collections::BTreeMap;

/// Every known model. A model that is here without a ready worker is waited for; one that is not here is unknown.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Table {
    /// By served model name.
    pub models: BTreeMap<String, Model>,
}

/// A served model.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Model {
    /// Creation of the oldest deployment of it, seconds since 1970.
    pub created: i64,
    /// Workers that exist for it, ready or not.
    pub known: usize,
    /// Workers that take requests now, ordered by id.
    pub ready: Vec<Worker>,
}

/// A worker that takes requests.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Worker {
    /// One life of one worker: another id means another process.
    pub id: String,
    /// Name for logs: the pod, or the address.
    pub name: String,
    /// `host:port` of its gRPC service.
    pub address: String,
    /// Revision of its group; empty when unknown.
    pub revision: String,
}

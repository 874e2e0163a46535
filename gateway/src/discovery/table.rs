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
    /// Of the deployment that has the name; empty for workers that were named by flag.
    pub namespace: String,
    /// The deployment that has the name; empty for workers that were named by flag.
    pub deployment: String,
    /// Workers that exist for it, ready or not.
    pub known: usize,
    /// Workers that take requests now, ordered by id.
    pub ready: Vec<Worker>,
    /// What each revision gets of new requests. Empty: every worker is as good as another.
    pub shares: Vec<Share>,
    /// Groups that read their checkpoint.
    pub loading: Vec<Loading>,
}

/// A group that reads its checkpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loading {
    /// Its name.
    pub group: String,
    /// Read so far.
    pub bytes_done: u64,
    /// To be read.
    pub bytes_total: u64,
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

/// What a revision gets of new requests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Share {
    /// The revision.
    pub revision: String,
    /// Relative to the sum of all, which is 100 as a rule.
    pub weight_percent: u32,
    /// What it is in a rollout.
    pub role: Role,
}

/// What a revision is in a rollout.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// What was there before, or what has been promoted.
    Stable,
    /// New, and given a growing share.
    Canary,
    /// New, and reached only by those who ask for it.
    Preview,
}

impl Role {
    /// The role that clients ask for by this name.
    pub fn named(name: &str) -> Option<Self> {
        match name {
            "stable" => Some(Self::Stable),
            "canary" => Some(Self::Canary),
            "preview" => Some(Self::Preview),
            _ => None,
        }
    }

    /// As clients name it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Stable => "stable",
            Self::Canary => "canary",
            Self::Preview => "preview",
        }
    }
}

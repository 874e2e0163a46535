//! What this process wrote and its watches have yet to tell: who decides before that would decide on what is no more.
//!
//! Kept by UID of the deployment, so that one deployment never waits for another.
use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use tokio::time::Instant;

/// The kinds that are watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KindName {
    /// Pods.
    Pod,
    /// Services.
    Service,
    /// ConfigMaps.
    ConfigMap,
    /// ControllerRevisions.
    Revision,
    /// PodDisruptionBudgets.
    Budget,
}

/// What a watch will have told once it has caught up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Expected {
    /// Something of at least this version, or a list that began when more than so many had been begun.
    Version {
        /// What the API server answered.
        version: u64,
        /// Lists of the kind that had been begun by then.
        lists: u64,
    },
    /// That an object is gone or on its way out.
    Gone {
        /// Its name.
        name: String,
        /// Its UID.
        uid: String,
    },
    /// Nobody knows what: a call got no answer. Only the API server can tell.
    Anything,
}

impl Expected {
    /// That an object is gone or on its way out.
    pub fn gone(name: String, uid: String) -> Self {
        Self::Gone { name, uid }
    }
}

/// Own writes that watches have not told yet.
#[derive(Debug, Default)]
pub struct Writes {
    all: Mutex<HashMap<String, Of>>,
}

/// Of one deployment.
#[derive(Debug, Default)]
struct Of {
    open: Vec<(KindName, Expected)>,
    /// Version of the deployment with the last status.
    status: Option<u64>,
    /// Since when somebody waits in vain.
    since: Option<Instant>,
}

impl Writes {
    /// What the watches have yet to tell about what a deployment owns.
    pub fn open(&self, uid: &str) -> Vec<(KindName, Expected)> {
        self.lock().get(uid).map(|of| of.open.clone()).unwrap_or_default()
    }

    /// Replaces what is waited for.
    pub fn set(&self, uid: &str, open: Vec<(KindName, Expected)>) {
        self.lock().entry(uid.to_owned()).or_default().open = open;
    }

    /// One thing more is waited for.
    pub fn add(&self, uid: &str, kind: KindName, expected: Expected) {
        let mut all = self.lock();
        let open = &mut all.entry(uid.to_owned()).or_default().open;
        if !open.contains(&(kind, expected.clone())) {
            open.push((kind, expected));
        }
    }

    /// A status was written: the deployment has this version now.
    pub fn set_status(&self, uid: &str, version: Option<u64>) {
        self.lock().entry(uid.to_owned()).or_default().status = version;
    }

    /// The version that a deployment has at least.
    pub fn status(&self, uid: &str) -> Option<u64> {
        self.lock().get(uid)?.status
    }

    /// Since when somebody waits for this deployment; since `now`, if nobody did yet.
    pub fn waits_since(&self, uid: &str, now: Instant) -> Instant {
        *self.lock().entry(uid.to_owned()).or_default().since.get_or_insert(now)
    }

    /// It was told, or asked for.
    pub fn waits_no_more(&self, uid: &str) {
        if let Some(of) = self.lock().get_mut(uid) {
            of.since = None;
        }
    }

    /// A deployment is gone.
    pub fn forget(&self, uid: &str) {
        self.lock().remove(uid);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Of>> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

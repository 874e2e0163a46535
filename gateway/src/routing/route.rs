//! Where a request may go, and what it will take.
use std::sync::Arc;

use crate::{
    discovery::Role,
    keys::Ticket,
    measure::{ModelMeter, Work},
};

use super::View;

/// What a client asked for: by a model's name, or by that and a header.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Target {
    /// Served model name.
    pub model: String,
    /// Of which revision.
    pub wanted: Wanted,
}

/// Revisions that will do.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub enum Wanted {
    /// Every one: shares decide.
    #[default]
    Any,
    /// `MODEL@stable` and so on: whichever has this role.
    Role(Role),
    /// `MODEL@<revision>`: only that one.
    Revision(String),
}

impl Wanted {
    /// What a role's name or a revision stands for.
    fn named(name: &str) -> Self {
        Role::named(name).map_or_else(|| Self::Revision(name.to_owned()), Self::Role)
    }
}

/// Why there is nothing of what was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unknown {
    /// No deployment serves this model.
    Model,
    /// The model is there, but nothing of that revision.
    Revision {
        /// Served model name.
        model: String,
        /// As it was asked for.
        revision: String,
    },
    /// The name asks for one revision, and the request beside it for another, or the same.
    Twice,
}

impl Unknown {
    /// Nothing is left of what was asked for.
    pub(super) fn of(target: &Target) -> Self {
        let revision = match &target.wanted {
            Wanted::Any => return Self::Model,
            Wanted::Role(role) => role.name().to_owned(),
            Wanted::Revision(revision) => revision.clone(),
        };
        Self::Revision { model: target.model.clone(), revision }
    }
}

impl Target {
    /// Reads a name: that of a model, or `MODEL@REVISION`; `revision` is what the request asks for beside the name. A model
    /// whose own name has an `@` is found by it. Until discovery has looked, a name is taken as it is.
    pub fn read(name: &str, revision: Option<&str>, view: &View) -> Result<Self, Unknown> {
        let (model, wanted) = if !view.synced || view.models.contains_key(name) {
            (name, revision.map(Wanted::named).unwrap_or_default())
        } else {
            let (model, named) = name.rsplit_once('@').ok_or(Unknown::Model)?;
            match revision {
                Some(_) if view.models.contains_key(model) => return Err(Unknown::Twice),
                _ => (model, Wanted::named(named)),
            }
        };
        let target = Self { model: model.to_owned(), wanted };
        match view.models.get(model) {
            Some(state) if !state.has(&target.wanted) => Err(Unknown::of(&target)),
            None if view.synced => Err(Unknown::Model),
            _ => Ok(target),
        }
    }
}

/// See the module.
#[derive(Clone, Debug)]
pub struct Route {
    /// What was asked for.
    pub target: Target,
    /// Of its model.
    pub meter: Arc<ModelMeter>,
    /// What one answer takes.
    pub work: Work,
    /// What it has in common with other requests.
    pub affinity: Affinity,
    /// What it takes of its key, if it has one.
    pub ticket: Option<Arc<Ticket>>,
}

impl Route {
    /// Name of its key; empty if it has none.
    pub fn key(&self) -> Arc<str> {
        self.ticket.as_ref().map_or_else(|| "".into(), |ticket| ticket.key_name())
    }
}

/// What requests can have in common: where one of them went, the others go as well if they may.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Affinity {
    /// Hash of what the client calls its session.
    pub session: Option<u64>,
    /// Hash of how the prompt begins.
    pub prefix: Option<u64>,
}

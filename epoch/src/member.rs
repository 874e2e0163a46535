//! The worker's side: what it was told, what it holds, and what follows from the two. No input or output: the worker's
//! life cycle tells what it was asked and which copies it has loaded or dropped, and does what is asked of it here.
//!
//! In this order, so that a report is never ahead of the truth: [`Member::accept`], load what [`Member::to_load`] names,
//! give [`Member::in_use`] to the fabric, drop what [`Member::to_drop`] names, then report
//! [`Member::prepared_epoch`], the epoch in use and [`Member::retired_epoch`].

use std::{collections::BTreeSet, sync::Arc};

use belay_proto::admin::{Placement, SetPlacementRequest};

use crate::document::{self, Copy, Refusal, Slot};

/// A worker in the protocol, for the life of one process.
#[derive(Clone, Debug, PartialEq)]
pub struct Member {
    slot: Slot,
    /// The newest in force that it was told of.
    in_force: Option<Part>,
    /// What it routes by: `in_force`, or an earlier one while copies of that are missing.
    used: Option<Part>,
    /// Complete here and superseded: others may still ask for its copies.
    earlier: Vec<Part>,
    target: Option<Part>,
    /// Nobody needs a placement before this one.
    retire: u64,
    retired: u64,
    since: u64,
    resident: BTreeSet<Copy>,
}

/// A placement, and this worker's part in it.
#[derive(Clone, Debug, PartialEq)]
struct Part {
    document: Arc<Placement>,
    /// `None`: somebody else has this slot in it, or nobody.
    mine: Option<BTreeSet<Copy>>,
}

impl Part {
    fn new(document: &Placement, slot: &Slot) -> Self {
        let member = document::is_member(document, slot.worker, &slot.uid);
        let mine = member.then(|| document::copies(document, slot.worker));
        Self { document: Arc::new(document.clone()), mine }
    }

    fn epoch(&self) -> u64 {
        self.document.epoch
    }

    fn is_complete(&self, resident: &BTreeSet<Copy>) -> bool {
        self.mine.as_ref().is_some_and(|mine| mine.is_subset(resident))
    }
}

/// What a request changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Change {
    /// Another placement is in force.
    pub in_force: bool,
    /// Another target, or none any more.
    pub target: bool,
    /// More may be retired.
    pub retire: bool,
}

impl Change {
    /// Whether anything is new.
    #[must_use]
    pub fn any(self) -> bool {
        self.in_force || self.target || self.retire
    }
}

impl Member {
    /// A process that begins: it was told nothing and holds nothing.
    #[must_use]
    pub fn new(slot: Slot) -> Self {
        Self {
            slot,
            in_force: None,
            used: None,
            earlier: vec![],
            target: None,
            retire: 0,
            retired: 0,
            since: 0,
            resident: BTreeSet::new(),
        }
    }

    /// Takes what the operator asks. The same again changes nothing. A request without a target leaves the target
    /// as it is: only a later one replaces it, so that a request that was under way for long undoes nothing that was
    /// reported since.
    ///
    /// # Errors
    /// [`Refusal`] naming the field: for another worker, malformed, older than what this worker was told, or another
    /// document of an epoch that it knows. Nothing has changed then.
    pub fn accept(&mut self, request: &SetPlacementRequest) -> Result<Change, Refusal> {
        document::check(request, &self.slot)?;
        let Some(in_force) = &request.in_force else { return Ok(Change::default()) };
        follows(in_force, self.in_force.as_ref(), "in_force")?;
        if let Some(target) = &request.target {
            follows(target, self.target.as_ref(), "target")?;
        }
        let mut change = Change::default();
        if self.in_force.as_ref().is_none_or(|known| known.epoch() < in_force.epoch) {
            self.put_in_force(Part::new(in_force, &self.slot), &mut change);
        }
        if let Some(target) = &request.target
            && self.target.as_ref().is_none_or(|known| known.epoch() < target.epoch)
        {
            // in force is still what it was, so the target before this one never was
            self.target = Some(Part::new(target, &self.slot));
            change.target = true;
        }
        if request.retire_epoch > self.retire {
            self.retire = request.retire_epoch;
            change.retire = true;
        }
        self.settle();
        Ok(change)
    }

    fn put_in_force(&mut self, part: Part, change: &mut Change) {
        let prepared = self
            .target
            .as_ref()
            .is_some_and(|target| target.epoch() == part.epoch() && target.is_complete(&self.resident));
        if !prepared {
            self.since = 0;
        }
        if let Some(target) = self.target.take_if(|target| target.epoch() <= part.epoch()) {
            change.target = true;
            // it may have been in force between what this worker knew and this: others may ask for its copies
            if target.epoch() < part.epoch() && target.is_complete(&self.resident) {
                self.earlier.push(target);
            }
        }
        self.in_force = Some(part);
        change.in_force = true;
    }

    /// Copies that are now on a rank of this worker and stay until [`Self::to_drop`] names them. Copies held for
    /// other reasons (adopted ones) are told only once they were asked for by [`Self::to_load`].
    pub fn loaded(&mut self, copies: impl IntoIterator<Item = Copy>) {
        self.resident.extend(copies);
        self.settle();
    }

    /// Copies that are gone.
    pub fn dropped(&mut self, copies: impl IntoIterator<Item = Copy>) {
        for copy in copies {
            self.resident.remove(&copy);
        }
        self.settle();
    }

    fn settle(&mut self) {
        let in_use = self.used_epoch();
        match &self.in_force {
            Some(part) if part.epoch() > in_use && part.is_complete(&self.resident) => {
                self.earlier.extend(self.used.replace(part.clone()));
            }
            // somebody else has the slot: this worker routes by nothing any more, but can be asked until all know
            Some(part) if part.mine.is_none() => self.earlier.extend(self.used.take()),
            _ => {}
        }
        if self.since == 0 {
            let is_member = self.in_force.as_ref().is_some_and(|part| part.mine.is_some());
            let told = self.in_force.as_ref().map_or(0, Part::epoch);
            self.since = match (is_member, self.used_epoch() == told) {
                (true, false) => 0,
                _ => self.prepared_epoch(),
            };
        }
        self.earlier.retain(|part| part.epoch() >= self.retire);
        let used = self.used_epoch();
        if used > self.retired && self.retire >= used && self.earlier.is_empty() && self.to_drop().is_empty()
        {
            self.retired = used;
        }
    }

    fn used_epoch(&self) -> u64 {
        self.used.as_ref().map_or(0, Part::epoch)
    }

    /// Copies to load for the placement in force, and for the target after that: `(layer, expert)` for each rank
    /// of this worker, as many lists as it has ranks.
    #[must_use]
    pub fn to_load(&self) -> Vec<Vec<(u32, u32)>> {
        let mut lists = vec![vec![]; self.slot.ranks as usize];
        let mut listed = BTreeSet::new();
        for copy in [&self.in_force, &self.target]
            .into_iter()
            .flatten()
            .filter_map(|part| part.mine.as_ref())
            .flatten()
        {
            let rank = copy.rank.wrapping_sub(self.slot.worker * self.slot.ranks) as usize;
            if let Some(list) = lists.get_mut(rank)
                && !self.resident.contains(copy)
                && listed.insert(*copy)
            {
                list.push((copy.layer, copy.expert));
            }
        }
        lists
    }

    /// What to route by: the newest in force whose copies for this worker's ranks are all here. `None` while there is
    /// none, or if somebody else has the slot.
    #[must_use]
    pub fn in_use(&self) -> Option<&Arc<Placement>> {
        self.used.as_ref().map(|part| &part.document)
    }

    /// The newest in force that this worker was told of.
    #[must_use]
    pub fn in_force(&self) -> Option<&Arc<Placement>> {
        self.in_force.as_ref().map(|part| &part.document)
    }

    /// The placement to be prepared.
    #[must_use]
    pub fn target(&self) -> Option<&Arc<Placement>> {
        self.target.as_ref().map(|part| &part.document)
    }

    /// Copies that were told as loaded and not as dropped.
    #[must_use]
    pub fn resident(&self) -> &BTreeSet<Copy> {
        &self.resident
    }

    /// Epoch of the newest placement whose copies are all here, in force or target; 0 for none.
    #[must_use]
    pub fn prepared_epoch(&self) -> u64 {
        let complete = self.target.as_ref().filter(|part| part.is_complete(&self.resident));
        complete.map_or(self.used_epoch(), Part::epoch)
    }

    /// Epoch of the newest placement in use that nothing but its copies is held for; 0 for none.
    #[must_use]
    pub fn retired_epoch(&self) -> u64 {
        self.retired
    }

    /// The highest epoch that this worker was told of, in force or target; 0 for none. Only a later one can mean
    /// something else.
    #[must_use]
    pub fn known_epoch(&self) -> u64 {
        [&self.in_force, &self.target].into_iter().flatten().map(Part::epoch).max().unwrap_or(0)
    }

    /// Placements before this one are needed by nobody, as this worker was told; 0 while it was told nothing.
    #[must_use]
    pub fn retire_epoch(&self) -> u64 {
        self.retire
    }

    /// Since which epoch this process has taken part in every change: it had all copies of that placement and of each
    /// later one before that was in force. 0 for none yet.
    #[must_use]
    pub fn since(&self) -> u64 {
        self.since
    }

    /// Who this worker is.
    #[must_use]
    pub fn slot(&self) -> &Slot {
        &self.slot
    }

    /// Resident copies that may go: no placement needs them that anybody uses or will use.
    #[must_use]
    pub fn to_drop(&self) -> Vec<Copy> {
        if self.retire < self.used_epoch() {
            return vec![];
        }
        let parts = [&self.in_force, &self.used, &self.target].into_iter().flatten().chain(&self.earlier);
        let needed: Vec<&BTreeSet<Copy>> = parts.filter_map(|part| part.mine.as_ref()).collect();
        self.resident.iter().filter(|copy| !needed.iter().any(|mine| mine.contains(copy))).copied().collect()
    }

    /// Placements under which this worker may be asked, since all copies that they give it are here and stay:
    /// the one in use, the target once it is prepared, and earlier ones until they are retired.
    pub fn serves(&self) -> impl Iterator<Item = &Arc<Placement>> {
        let target = self.target.iter().filter(|part| part.is_complete(&self.resident));
        self.earlier.iter().chain(&self.used).chain(target).map(|part| &part.document)
    }
}

/// A later epoch, or the same document again.
fn follows(new: &Placement, known: Option<&Part>, field: &str) -> Result<(), Refusal> {
    match known {
        Some(known) if new.epoch < known.epoch() => {
            let text = format!(
                "{field}.epoch: {} is older than {}, which this worker knows",
                new.epoch,
                known.epoch()
            );
            Err(Refusal::Stale(text))
        }
        Some(known) if new.epoch == known.epoch() && *new != *known.document => {
            let text = format!("{field}.epoch: another placement of epoch {} is known here", new.epoch);
            Err(Refusal::Conflict(text))
        }
        _ => Ok(()),
    }
}

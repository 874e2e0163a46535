//! Who may ask whom. Pure: every mismatch has a reason that the other side can print.

use crate::wire::{Hello, WireIdentity};
use crate::{RowFormat, Table};

/// What a worker is, apart from the placement in force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Group name.
    pub group: String,
    /// Revision of the deployment; groups of different revisions never exchange experts.
    pub revision: String,
    /// Digest of the checkpoint, in hex.
    pub digest: String,
    /// Worker index in the group.
    pub worker: u32,
    /// UID of this pod.
    pub uid: String,
    /// Channels of a row.
    pub hidden: u32,
    /// Form of rows in asks and results.
    pub format: RowFormat,
}

/// The placements that make members.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Members<'a> {
    pub in_force: Option<&'a Table>,
    pub next: Option<&'a Table>,
}

impl<'a> Members<'a> {
    fn tables(&self) -> impl Iterator<Item = &'a Table> {
        self.in_force.into_iter().chain(self.next)
    }

    fn epochs(&self) -> (u64, u64) {
        (self.in_force.map_or(0, Table::epoch), self.next.map_or(0, Table::epoch))
    }

    /// Whether one of the placements has this life of this worker.
    pub(crate) fn include(&self, worker: u32, uid: &str) -> bool {
        self.tables().any(|table| table.names(worker, uid))
    }
}

impl Identity {
    /// This worker on the wire.
    pub(crate) fn on_wire(&self, members: Members<'_>) -> WireIdentity {
        let (epoch, next_epoch) = members.epochs();
        WireIdentity {
            group: self.group.clone(),
            revision: self.revision.clone(),
            digest: self.digest.clone(),
            worker: self.worker,
            uid: self.uid.clone(),
            epoch,
            next_epoch,
            hidden: self.hidden,
            format: self.format as u32,
        }
    }

    /// Whether the server `self` takes asks from `hello`.
    pub(crate) fn admit(&self, members: Members<'_>, hello: &Hello) -> Result<(), String> {
        if hello.to_worker != self.worker || hello.to_uid != self.uid {
            return Err(format!(
                "you look for worker {} with uid {:?}, this is worker {} with uid {:?}",
                hello.to_worker, hello.to_uid, self.worker, self.uid
            ));
        }
        self.same_group(members, &hello.from)
    }

    /// Whether the asker `self`, who dialled `worker` with `uid`, believes the server's welcome.
    pub(crate) fn believe(
        &self,
        members: Members<'_>,
        worker: u32,
        uid: &str,
        welcome: &WireIdentity,
    ) -> Result<(), String> {
        if welcome.worker != worker || welcome.uid != uid {
            return Err(format!(
                "worker {} with uid {:?} answers at the address of worker {worker} with uid {uid:?}",
                welcome.worker, welcome.uid
            ));
        }
        self.same_group(members, welcome)
    }

    fn same_group(&self, members: Members<'_>, other: &WireIdentity) -> Result<(), String> {
        let differs = |what: &str, theirs: &dyn std::fmt::Debug, ours: &dyn std::fmt::Debug| {
            Err(format!("{what} {theirs:?} does not match {ours:?} of worker {}", self.worker))
        };
        if other.group != self.group {
            return differs("group", &other.group, &self.group);
        }
        if other.revision != self.revision {
            return differs("revision", &other.revision, &self.revision);
        }
        if other.digest != self.digest {
            return differs("checkpoint digest", &other.digest, &self.digest);
        }
        if other.hidden != self.hidden {
            return differs("hidden size", &other.hidden, &self.hidden);
        }
        if other.format != self.format as u32 {
            return match RowFormat::from_code(other.format) {
                Some(format) => differs("row format", &format, &self.format),
                None => differs("row format", &other.format, &self.format),
            };
        }
        if other.worker == self.worker {
            return differs("worker index", &other.worker, &"another one");
        }
        let (epoch, next) = members.epochs();
        let common = [other.epoch, other.next_epoch]
            .into_iter()
            .any(|theirs| theirs != 0 && (theirs == epoch || theirs == next));
        if !common {
            return Err(format!(
                "placement epoch {} does not match {} of worker {}",
                epochs(other.epoch, other.next_epoch),
                epochs(epoch, next),
                self.worker
            ));
        }
        if !members.include(other.worker, &other.uid) {
            let known: Vec<&str> = members
                .tables()
                .filter_map(|table| Some(table.workers().get(other.worker as usize)?.uid.as_str()))
                .collect();
            return match known.first() {
                None => Err(format!("worker index {} is not in the placement", other.worker)),
                Some(known) => differs("pod uid", &other.uid, known),
            };
        }
        Ok(())
    }
}

fn epochs(in_force: u64, next: u64) -> String {
    match (in_force, next) {
        (0, 0) => "none".into(),
        (0, next) => format!("(next {next})"),
        (in_force, 0) => in_force.to_string(),
        (in_force, next) => format!("{in_force} (next {next})"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::Purpose;
    use crate::{Placement, WorkerEntry};

    fn identity(worker: u32) -> Identity {
        Identity {
            group: "g".into(),
            revision: "r".into(),
            digest: "d".into(),
            worker,
            uid: format!("u{worker}"),
            hidden: 8,
            format: RowFormat::Bf16,
        }
    }

    fn table(epoch: u64, uids: [&str; 2]) -> Table {
        let worker = |(index, uid): (usize, &str)| WorkerEntry {
            index: index as u32,
            uid: uid.into(),
            ..WorkerEntry::default()
        };
        Table::new(Placement {
            epoch,
            ranks_per_worker: 1,
            workers: uids.into_iter().enumerate().map(worker).collect(),
            layers: vec![vec![vec![0], vec![1]]],
            expert_bytes: 0,
        })
        .unwrap()
    }

    fn members<'a>(in_force: &'a Table, next: Option<&'a Table>) -> Members<'a> {
        Members { in_force: Some(in_force), next }
    }

    fn hello(members: Members<'_>) -> Hello {
        Hello {
            from: identity(1).on_wire(members),
            to_worker: 0,
            to_uid: "u0".into(),
            purpose: Purpose::Asks,
            nonce: [0; 32],
        }
    }

    #[test]
    fn a_peer_of_the_same_placement_is_admitted() {
        let table = table(5, ["u0", "u1"]);
        let members = members(&table, None);
        assert_eq!(identity(0).admit(members, &hello(members)), Ok(()));
        assert_eq!(identity(1).believe(members, 0, "u0", &identity(0).on_wire(members)), Ok(()));
    }

    #[test]
    fn neighbouring_epochs_meet_in_what_they_have_in_common() {
        let (old, new, newer) = (table(5, ["u0", "x"]), table(6, ["u0", "u1"]), table(7, ["u0", "u1"]));
        // worker 1 is only a member of the target, which both prepare
        let both = members(&old, Some(&new));
        assert_eq!(identity(0).admit(both, &hello(both)), Ok(()));
        // one side has committed, the other has not
        assert_eq!(identity(0).admit(members(&new, None), &hello(both)), Ok(()));
        assert_eq!(identity(0).admit(both, &hello(members(&new, None))), Ok(()));
        let refused = identity(0).admit(members(&newer, None), &hello(both)).unwrap_err();
        assert!(refused.contains("placement epoch 5 (next 6) does not match 7"), "{refused}");
        let refused = identity(0).admit(members(&old, None), &hello(both)).unwrap_err();
        assert!(refused.contains("pod uid"), "{refused}");
        let none = Members { in_force: None, next: None };
        assert!(identity(0).admit(none, &hello(none)).unwrap_err().contains("placement epoch none"));
    }

    #[test]
    fn every_mismatch_is_refused_by_name() {
        type Change = fn(&mut Hello);
        let cases: [(&str, Change); 12] = [
            ("group", |h| h.from.group = "other".into()),
            ("revision", |h| h.from.revision = "other".into()),
            ("checkpoint digest", |h| h.from.digest = "other".into()),
            ("hidden size", |h| h.from.hidden = 9),
            ("row format F32", |h| h.from.format = 0),
            ("row format 9", |h| h.from.format = 9),
            ("worker index", |h| h.from.worker = 0),
            ("not in the placement", |h| h.from.worker = 2),
            ("placement epoch", |h| h.from.epoch = 4),
            ("pod uid", |h| h.from.uid = "old".into()),
            ("you look for", |h| h.to_worker = 1),
            ("you look for", |h| h.to_uid = "old".into()),
        ];
        let table = table(5, ["u0", "u1"]);
        let members = members(&table, None);
        for (reason, change) in cases {
            let mut changed = hello(members);
            change(&mut changed);
            let refused = identity(0).admit(members, &changed).unwrap_err();
            assert!(refused.contains(reason), "{reason}: {refused}");
        }
        let mut odd = identity(0).on_wire(members);
        odd.uid = "other".into();
        assert!(identity(1).believe(members, 0, "u0", &odd).unwrap_err().contains("answers at the address"));
    }
}

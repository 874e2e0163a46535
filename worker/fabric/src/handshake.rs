//! Who may ask whom. Pure: every mismatch has a reason that the other side can print.

use crate::Table;
use crate::wire::{Hello, WireIdentity};

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
}

impl Identity {
    /// This worker on the wire, under a placement epoch.
    pub(crate) fn on_wire(&self, epoch: u64) -> WireIdentity {
        WireIdentity {
            group: self.group.clone(),
            revision: self.revision.clone(),
            digest: self.digest.clone(),
            worker: self.worker,
            uid: self.uid.clone(),
            epoch,
            hidden: self.hidden,
        }
    }

    /// Whether the server `self` takes asks from `hello`.
    pub(crate) fn admit(&self, table: Option<&Table>, hello: &Hello) -> Result<(), String> {
        let table = table.ok_or_else(|| format!("worker {} has no placement in force yet", self.worker))?;
        if hello.to_worker != self.worker || hello.to_uid != self.uid {
            return Err(format!(
                "you look for worker {} with uid {:?}, this is worker {} with uid {:?}",
                hello.to_worker, hello.to_uid, self.worker, self.uid
            ));
        }
        self.same_group(table, &hello.from)
    }

    /// Whether the asker `self`, who dialled `worker` with `uid`, believes the server's welcome.
    pub(crate) fn believe(&self, table: &Table, worker: u32, welcome: &WireIdentity) -> Result<(), String> {
        if welcome.worker != worker {
            return Err(format!("worker {} answers at the address of worker {worker}", welcome.worker));
        }
        self.same_group(table, welcome)
    }

    fn same_group(&self, table: &Table, other: &WireIdentity) -> Result<(), String> {
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
        if other.worker == self.worker {
            return differs("worker index", &other.worker, &"another one");
        }
        if other.epoch != table.epoch() {
            return differs("placement epoch", &other.epoch, &table.epoch());
        }
        match table.workers().get(other.worker as usize) {
            None => Err(format!("worker index {} is not in the placement", other.worker)),
            Some(entry) if entry.uid != other.uid => differs("pod uid", &other.uid, &entry.uid),
            Some(_) => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Placement, WorkerEntry};

    fn identity(worker: u32) -> Identity {
        Identity {
            group: "g".into(),
            revision: "r".into(),
            digest: "d".into(),
            worker,
            uid: format!("u{worker}"),
            hidden: 8,
        }
    }

    fn table() -> Table {
        let worker = |index| WorkerEntry { index, address: String::new(), uid: format!("u{index}") };
        Table::new(Placement {
            epoch: 5,
            ranks_per_worker: 1,
            workers: (0..2).map(worker).collect(),
            layers: vec![vec![vec![0], vec![1]]],
        })
        .unwrap()
    }

    fn hello() -> Hello {
        Hello { from: identity(1).on_wire(5), to_worker: 0, to_uid: "u0".into() }
    }

    #[test]
    fn a_peer_of_the_same_placement_is_admitted() {
        assert_eq!(identity(0).admit(Some(&table()), &hello()), Ok(()));
        assert_eq!(identity(1).believe(&table(), 0, &identity(0).on_wire(5)), Ok(()));
    }

    #[test]
    fn every_mismatch_is_refused_by_name() {
        type Change = fn(&mut Hello);
        let cases: [(&str, Change); 10] = [
            ("group", |h| h.from.group = "other".into()),
            ("revision", |h| h.from.revision = "other".into()),
            ("checkpoint digest", |h| h.from.digest = "other".into()),
            ("hidden size", |h| h.from.hidden = 9),
            ("worker index", |h| h.from.worker = 0),
            ("not in the placement", |h| h.from.worker = 2),
            ("placement epoch", |h| h.from.epoch = 4),
            ("pod uid", |h| h.from.uid = "old".into()),
            ("you look for", |h| h.to_worker = 1),
            ("you look for", |h| h.to_uid = "old".into()),
        ];
        for (reason, change) in cases {
            let mut changed = hello();
            change(&mut changed);
            let refused = identity(0).admit(Some(&table()), &changed).unwrap_err();
            assert!(refused.contains(reason), "{reason}: {refused}");
        }
        assert!(identity(0).admit(None, &hello()).unwrap_err().contains("no placement"));
    }
}

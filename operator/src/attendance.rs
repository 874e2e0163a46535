//! Since when the slots of groups have a worker or lack one: what no object in the API server tells.
//!
//! It is only remembered by this process. Another leader counts anew, which makes it more patient and changes nothing else.
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Mutex, PoisonError},
};

use k8s_openapi::jiff::Timestamp;

use crate::group::{Group, WorkerPod};

/// How a slot is, and since when.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seat {
    /// Whether its worker is present: see [`WorkerPod::present`].
    pub present: bool,
    /// Since when that is so of this life of the slot.
    pub since: Timestamp,
    /// Since when its pod need not leave any more: its node takes pods again, its devices are well. For ever if it never had to; in
    /// the future while it has to.
    pub stays_since: Timestamp,
}

/// What is remembered of a slot.
#[derive(Clone, Debug)]
struct Memory {
    uid: String,
    seat: Seat,
}

/// A slot of a group: namespace, group, worker index.
type Key = (String, String, u32);

/// Remembers how the slots of all groups are.
#[derive(Debug, Default)]
pub struct Attendance {
    seats: Mutex<BTreeMap<Key, Memory>>,
}

impl Attendance {
    /// Takes note of all groups of a deployment as they are now, and tells each since when.
    pub fn note(&self, namespace: &str, deployment: &str, groups: &mut [Group], now: Timestamp) {
        let mut seats = self.seats.lock().unwrap_or_else(PoisonError::into_inner);
        let names: BTreeSet<&str> = groups.iter().map(|group| group.name.as_str()).collect();
        let gone = |(space, group, _): &Key| {
            space == namespace && belongs(group, deployment) && !names.contains(group.as_str())
        };
        seats.retain(|key, _| !gone(key));
        for group in groups {
            group.seats = (0u32..)
                .zip(&group.slots)
                .map(|(index, slot)| {
                    let key = (namespace.to_owned(), group.name.clone(), index);
                    let memory = next(seats.get(&key), slot.as_ref(), now);
                    let seat = memory.seat.clone();
                    seats.insert(key, memory);
                    seat
                })
                .collect();
        }
    }
}

/// A group is called `<deployment>-<revision>-<ordinal>`, and neither of the last two has a dash.
fn belongs(group: &str, deployment: &str) -> bool {
    group.rsplitn(3, '-').nth(2) == Some(deployment)
}

fn next(before: Option<&Memory>, pod: Option<&WorkerPod>, now: Timestamp) -> Memory {
    let present = pod.is_some_and(WorkerPod::present);
    let leaving = pod.is_some_and(WorkerPod::leaving);
    let uid = pod.map(|pod| pod.uid.clone()).unwrap_or_default();
    let since = match before {
        Some(memory) if memory.seat.present == present && memory.uid == uid => memory.seat.since,
        _ => now,
    };
    // a cordon is about a pod, not about the slot: the next life of the slot is elsewhere
    let stayed = before.filter(|memory| memory.uid == uid).map(|memory| memory.seat.stays_since);
    let stays_since = match stayed {
        _ if leaving => Timestamp::MAX,
        Some(since) if since == Timestamp::MAX => now,
        Some(since) => since,
        None => Timestamp::UNIX_EPOCH,
    };
    Memory { uid, seat: Seat { present, since, stays_since } }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn group(slots: Vec<Option<WorkerPod>>) -> Vec<Group> {
        vec![Group { name: "nano-0123abcd-0".into(), slots, ..Group::default() }]
    }

    #[test]
    fn absence_is_counted_from_when_it_was_first_seen() {
        let attendance = Attendance::default();
        let mut groups = group(vec![None]);
        let since = |groups: &mut [Group], now| {
            attendance.note("ns", "nano", groups, at(now));
            groups[0].seats[0].since
        };
        assert_eq!(since(&mut groups, 5), at(5));
        assert_eq!(since(&mut groups, 9), at(5));
        // another group of the name in another namespace has another clock
        attendance.note("other", "nano", &mut groups, at(20));
        assert_eq!(groups[0].seats[0].since, at(20));
        assert_eq!(since(&mut groups, 21), at(5));
        // and one that was gone in between begins anew
        attendance.note("ns", "nano", &mut [], at(30));
        assert_eq!(since(&mut groups, 31), at(31));
    }

    #[test]
    fn cordon_is_counted_from_its_end() {
        let attendance = Attendance::default();
        let mut groups = group(vec![Some(WorkerPod { node_leaving: true, ..WorkerPod::default() })]);
        attendance.note("ns", "nano", &mut groups, at(1));
        assert_eq!(groups[0].seats[0].stays_since, Timestamp::MAX);
        groups[0].slots[0].as_mut().unwrap().node_leaving = false;
        for now in [7, 9] {
            attendance.note("ns", "nano", &mut groups, at(now));
            assert_eq!(groups[0].seats[0].stays_since, at(7));
        }
        groups[0].slots[0].as_mut().unwrap().uid = "next".into();
        attendance.note("ns", "nano", &mut groups, at(10));
        assert_eq!(groups[0].seats[0].stays_since, Timestamp::UNIX_EPOCH, "another life of the slot");
    }
}

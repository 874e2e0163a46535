//! The PodGroup of a group: its pods get nodes together.
use std::collections::BTreeMap;

use belay_crds::{AscendChip, AscendScheduling, AscendSpec, GroupSpec, Scheduler, labels};

use super::{ascend, metadata};
use crate::{
    pod_group::{PodGroup, native, volcano},
    reconcile::validate::Validated,
    revision::Record,
};

/// The PodGroup of a group; `None` if its pods are scheduled one by one.
pub fn pod_group(wanted: &Validated, record: &Record, name: &str) -> Option<PodGroup> {
    let group = &record.data.content.group;
    let spec = group.ascend.as_ref()?;
    let scheduling = spec.scheduling.as_ref()?;
    let mut metadata = metadata(wanted, name.to_owned(), Some(&record.revision), Some(name));
    let priority_class_name = group.template.priority_class_name.clone();
    match scheduling.scheduler {
        Scheduler::Default => None,
        Scheduler::Gang => {
            let scheduling_policy =
                native::SchedulingPolicy { gang: native::Gang { min_count: group.workers } };
            let spec = native::PodGroupSpec { scheduling_policy, priority_class_name };
            Some(PodGroup::Native(native::PodGroup { metadata, spec }))
        }
        Scheduler::Volcano => {
            let ring = ascend::ring_controller(spec.chip).to_owned();
            metadata.labels.get_or_insert_default().insert(labels::RING_CONTROLLER.to_owned(), ring);
            metadata.annotations = Some(annotations(group, spec, scheduling));
            let queue = scheduling.queue.clone();
            let spec = volcano::PodGroupSpec { min_member: group.workers, queue, priority_class_name };
            Some(PodGroup::Volcano(volcano::PodGroup { metadata, spec }))
        }
    }
}

fn annotations(
    group: &GroupSpec,
    spec: &AscendSpec,
    scheduling: &AscendScheduling,
) -> BTreeMap<String, String> {
    let policy = scheduling.policy.clone().or_else(|| {
        let default = match spec.chip {
            AscendChip::A2 => "chip8-node8",
            AscendChip::A3 if ascend::spans_superpod(group, spec) => "chip2-node16-sp",
            AscendChip::A3 => "chip2-node16",
            AscendChip::Ascend950PR | AscendChip::Ascend950DT => return None,
        };
        Some(default.to_owned())
    });
    let block = ascend::superpod_block(group, spec);
    let notes = [
        (labels::SCHEDULE_POLICY, policy),
        (labels::SUPERPOD_BLOCK, block.map(|devices| devices.to_string())),
        (labels::SCHEDULE_MIN_AVAILABLE, Some(group.workers.to_string())),
    ];
    notes.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value?))).collect()
}

//! The headless Service of a group: its record, and the names of its pods.
use std::collections::BTreeMap;

use belay_crds::labels;
use k8s_openapi::{
    api::core::v1::{Service, ServicePort, ServiceSpec},
    apimachinery::pkg::util::intstr::IntOrString,
    jiff::Timestamp,
};

use super::{metadata, pod};
use crate::{
    group::Group,
    reconcile::{seconds, validate::Validated},
};

/// The Service of a group. What is under way for the group is written on it.
pub fn service(
    wanted: &Validated,
    group: &Group,
    draining_since: Option<Timestamp>,
    first_ready: Option<Timestamp>,
) -> Service {
    let mut metadata = metadata(wanted, group.name.clone(), Some(&group.revision), Some(&group.name));
    let notes = [(labels::DRAINING_SINCE, draining_since), (labels::FIRST_READY, first_ready)];
    let notes: BTreeMap<String, String> =
        notes.into_iter().filter_map(|(key, time)| Some((key.to_owned(), seconds(time?)))).collect();
    metadata.annotations = (!notes.is_empty()).then_some(notes);
    let port = |(name, port): (&str, i32)| ServicePort {
        name: Some(name.to_owned()),
        port,
        target_port: Some(IntOrString::String(name.to_owned())),
        protocol: Some("TCP".to_owned()),
        ..ServicePort::default()
    };
    Service {
        metadata,
        spec: Some(ServiceSpec {
            cluster_ip: Some("None".to_owned()),
            // workers find each other before they are ready
            publish_not_ready_addresses: Some(true),
            selector: Some(BTreeMap::from([(labels::GROUP.to_owned(), group.name.clone())])),
            ports: Some(pod::PORTS.into_iter().map(port).collect()),
            ..ServiceSpec::default()
        }),
        status: None,
    }
}

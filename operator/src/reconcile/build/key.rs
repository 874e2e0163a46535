//! The key that the workers of a group know each other by.
use std::collections::BTreeMap;

use belay_crds::labels;
use k8s_openapi::{ByteString, api::core::v1::Secret};
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use super::metadata;
use crate::{group::Group, reconcile::validate::Validated};

/// Key within the Secret, and name of the mounted file.
pub const KEY: &str = "key";

/// A Secret with 32 random bytes. It is made once, with the group, and never read by the operator.
pub fn key(wanted: &Validated, group: &Group) -> Secret {
    let name = labels::fabric_key_name(&group.name, &wanted.owner.uid);
    // two random UUIDs have 244 bits of the system's random source
    let mut hasher = Sha256::new();
    hasher.update(Uuid::new_v4().as_bytes());
    hasher.update(Uuid::new_v4().as_bytes());
    Secret {
        metadata: metadata(wanted, name, Some(&group.revision), Some(&group.name)),
        immutable: Some(true),
        data: Some(BTreeMap::from([(KEY.to_owned(), ByteString(hasher.finalize().to_vec()))])),
        ..Secret::default()
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;

    use super::*;

    #[test]
    fn name_of_the_key_belongs_to_one_life_of_the_deployment() {
        let owner = OwnerReference {
            uid: "0e0b7a52-6a0f-4a6e-9a58-7d6f1c1f3a01".into(),
            ..OwnerReference::default()
        };
        assert_eq!(labels::fabric_key_name("nano-0123abcd-0", &owner.uid), "nano-0123abcd-0-fabric-1c1f3a01");
    }
}

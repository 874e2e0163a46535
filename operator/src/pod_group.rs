//! PodGroups: what tells a scheduler which pods get nodes together. There are two kinds, of two schedulers.
pub mod native;
pub mod volcano;

use kube::ResourceExt as _;

/// A PodGroup.
#[derive(Clone, Debug, PartialEq)]
pub enum PodGroup {
    /// Of Volcano; its pods name it in an annotation.
    Volcano(volcano::PodGroup),
    /// Of Kubernetes; its pods name it in their spec.
    Native(native::PodGroup),
}

impl PodGroup {
    /// That of its group.
    pub fn name(&self) -> String {
        match self {
            Self::Volcano(object) => object.name_any(),
            Self::Native(object) => object.name_any(),
        }
    }
}

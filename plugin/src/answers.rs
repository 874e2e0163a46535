//! What the API server and the workers said at one moment. Plain data: nothing is decided here.
use belay_epoch::Operation;
use belay_proto::admin::{ExpertLoad, Placement, ResidentExperts, WorkerStatus};
use jiff::Timestamp;

/// All about one ModelDeployment.
#[derive(Clone, Debug, Default)]
pub struct Answers {
    /// Its name.
    pub deployment: String,
    /// Its namespace.
    pub namespace: String,
    /// Its conditions that tell of trouble, as `Reason: message`.
    pub troubles: Vec<String>,
    /// Its groups, by name.
    pub groups: Vec<GroupAnswers>,
    /// When this was.
    pub taken: Timestamp,
}

/// All about one group.
#[derive(Clone, Debug, Default)]
pub struct GroupAnswers {
    /// Name.
    pub name: String,
    /// Revision.
    pub revision: String,
    /// In force, as the group's ConfigMap has it.
    pub placement: Option<Placement>,
    /// Under way, as the group's ConfigMap has it.
    pub operation: Option<Operation>,
    /// What could not be read of these, for people.
    pub notes: Vec<String>,
    /// Its pods, by worker.
    pub pods: Vec<PodAnswer>,
}

/// A worker's pod.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct WorkerPod {
    /// Name.
    pub name: String,
    /// UID: one life of a slot.
    pub uid: String,
    /// Worker index in the group.
    pub worker: u32,
    /// Node; empty while it has none.
    pub node: String,
    /// Whether it is being deleted.
    pub leaving: bool,
    /// Times that its container was restarted.
    pub restarts: i32,
}

/// A pod, and what its worker said.
#[derive(Clone, Debug)]
pub struct PodAnswer {
    /// The pod.
    pub pod: WorkerPod,
    /// The answer, or why there is none.
    pub worker: Result<WorkerAnswer, String>,
}

/// What a worker said.
#[derive(Clone, Debug)]
pub struct WorkerAnswer {
    /// About itself.
    pub status: WorkerStatus,
    /// What its ranks hold, or why it does not tell.
    pub experts: Result<ResidentExperts, String>,
    /// What it asked for, or why it does not tell.
    pub load: Result<ExpertLoad, String>,
}

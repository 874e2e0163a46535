//! API types of `serving.belay.dev`: spec, status, CEL rules, conditions and reasons, label keys.
//!
//! No client lives here. The doc comments of the API types are what `kubectl explain` prints, so they
//! speak to the person who writes a ModelDeployment.
#![forbid(unsafe_code)]

mod analysis;
mod ascend;
mod autoscaling;
mod cache;
mod conditions;
mod experts;
mod fabric;
mod group;
pub mod labels;
mod model;
mod model_deployment;
mod rollout;
mod status;

pub use self::{
    analysis::{AnalysisPolicy, AnalysisSpec, ParitySpec, QuerySpec},
    ascend::{
        AscendChip, AscendRuntime, AscendScheduling, AscendSpec, AscendWeights, DeviceFaultsSpec,
        FaultAction, PodNetwork, Scheduler,
    },
    autoscaling::{
        AutoscalingMode, AutoscalingSpec, AutoscalingStatus, DuringRollout, ScaleRecord, ScalingBehavior,
        ScalingMetricStatus, ScalingPolicy, ScalingPolicyType, ScalingReason, ScalingRules, ScheduleWindow,
        SelectPolicy, Weekday,
    },
    cache::{CacheFormat, CacheSpec, SpeculationSpec, Switch},
    conditions::{ConditionType, Reason, set_condition},
    experts::{ExpertsSpec, RebalancePolicy, RebalanceSpec},
    fabric::{FabricSpec, RowFormat},
    group::{Device, GroupSpec, ImagePullSecret, PodTemplate, RESERVED_ENV},
    model::{
        ChatEncoding, ChatSpec, HostPathSource, ImageSource, ModelSource, ModelSpec,
        PersistentVolumeClaimSource, PullPolicy,
    },
    model_deployment::{MAX_NAME_LENGTH, MAX_REPLICAS, ModelDeployment, ModelDeploymentSpec},
    rollout::{
        BlueGreenSpec, CanarySpec, CanaryStep, Promotion, RolloutProgress, RolloutSpec, RolloutStrategy,
    },
    status::{
        CheckStatus, ExpertsStatus, GroupExpertsStatus, GroupStatus, LastRebalance, LastRollback,
        LoadingStatus, ModelDeploymentStatus, OperationStatus, RankStatus, RolloutStatus, TrafficRole,
        TrafficStatus,
    },
};

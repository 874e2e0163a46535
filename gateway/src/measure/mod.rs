//! What this gateway has measured: for the operator, which decides about rollouts and scaling with it, and for Prometheus.
mod attempt;
mod exposition;
mod histogram;
mod load;
mod meters;
mod pace;
mod retries;
mod service;
mod work;

pub use attempt::{Attempt, Outcome};
pub use exposition::Attempts;
pub use histogram::Histogram;
pub use load::{Burden, Load};
pub use meters::{Meters, ModelMeter, RevisionMeter};
pub use pace::Pace;
pub use retries::RetryBudget;
pub use service::Measurements;
pub use work::{MOST_EXPECTED_OUTPUT, Work};

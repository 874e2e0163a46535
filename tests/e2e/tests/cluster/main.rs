//! The main job on a real cluster, step by step. Steps run in the order of their names, one at a time
//! (`--test-threads=1`): the first installs the chart, the last uninstalls it.
#![allow(clippy::expect_used, reason = "tests")]

mod step10_install;
mod step20_api;
mod step30_answers;
mod step40_clients;
mod step50_bad_requests;
mod step60_scale_and_rollout;
mod step62_canary;
mod step70_faults;
mod step72_rank_loss;
mod step74_ascend;
mod step80_bad_sources;
mod step90_removal;

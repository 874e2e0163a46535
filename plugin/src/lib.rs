//! `kubectl belay`: looks at ModelDeployments, previews and steers their rollouts, talks with their models, and breaks workers on
//! purpose.
//!
//! [`commands`] has one command a file. [`cluster`] asks the API server, [`workers`] the workers behind it. What commands decide
//! and show is pure, data in, lines out: [`status`] is the tree of a deployment, [`preflight`] what a change would bring,
//! [`picture`] where its experts are (from [`answers`], which [`observe`] collects), [`rank_table`] where its ranks are on NPUs.
//! [`logs`] and [`chat`] carry streams.
//! [`terminal`] shows lines.
#![forbid(unsafe_code)]

pub mod answers;
pub mod chat;
pub mod cli;
pub mod cluster;
pub mod commands;
pub mod error;
pub mod logs;
pub mod observe;
pub mod picture;
pub mod preflight;
pub mod rank_table;
pub mod status;
pub mod terminal;
pub mod workers;

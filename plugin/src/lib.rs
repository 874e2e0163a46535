//! `kubectl belay`: looks at the experts of a ModelDeployment, moves them, and breaks workers on purpose.
//!
//! [`commands`] has one command a file. [`cluster`] asks the API server, [`workers`] the workers behind it;
//! [`observe`] puts both together into [`answers`]. [`picture`] makes of those what people see: pure, data in, lines
//! out. [`terminal`] shows lines.
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
pub mod status;
pub mod terminal;
pub mod workers;

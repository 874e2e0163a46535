//! A conversation with a model: [`talk`] keeps it (pure), [`source`] finds who answers, [`session`] asks,
//! [`show`] writes what comes.

pub mod session;
pub mod show;
pub mod source;
pub mod talk;

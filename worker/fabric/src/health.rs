//! What is known of a peer. Pure.

use std::time::{Duration, Instant};

use crate::Timeouts;

/// How a peer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Health {
    /// Connected, and it answers.
    Live,
    /// Its connections stand, or it was not there yet, and it does not answer: other copies are asked, and where
    /// there is none, it is waited for.
    Suspect,
    /// Not connected, or silent for long: its experts are adopted where they have no other copy.
    Lost,
}

impl Health {
    pub(crate) fn from_code(code: u8) -> Self {
        match code {
            0 => Self::Live,
            1 => Self::Suspect,
            _ => Self::Lost,
        }
    }
}

/// Why a peer could not be reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Unreachable {
    /// It is there, and has no placement yet.
    NotYet(String),
    /// It is not there, or is another one.
    Gone(String),
}

impl Unreachable {
    pub(crate) fn reason(&self) -> &str {
        match self {
            Self::NotYet(reason) | Self::Gone(reason) => reason,
        }
    }
}

/// A peer's health, and what it follows from.
#[derive(Debug)]
pub(crate) struct Condition {
    pub health: Health,
    /// Whether it was live at any time.
    pub was_live: bool,
    /// One of its connections was closed since it last answered.
    doubted: bool,
    since: Instant,
}

impl Condition {
    pub(crate) fn new(now: Instant) -> Self {
        Self { health: Health::Suspect, was_live: false, doubted: false, since: now }
    }

    /// It is connected and answers.
    pub(crate) fn answers(&mut self) {
        self.health = Health::Live;
        self.was_live = true;
        self.doubted = false;
    }

    /// Whether it is suspect for nothing but its silence: it was live, and no connection was closed since. It has what
    /// it had, as far as anybody can tell.
    pub(crate) fn is_only_silent(&self) -> bool {
        self.health == Health::Suspect && self.was_live && !self.doubted
    }

    /// Its connections stand, and it was not heard for this long.
    pub(crate) fn silent(&mut self, silence: Duration, timeouts: &Timeouts) {
        if silence >= timeouts.lost {
            self.health = Health::Lost;
        } else if silence >= timeouts.suspect && self.health == Health::Live {
            self.health = Health::Suspect;
        }
    }

    /// One of its connections was closed; the next attempt to reach it tells more.
    pub(crate) fn doubt(&mut self) {
        self.doubted = true;
        if self.health == Health::Live {
            self.health = Health::Suspect;
        }
    }

    /// Its host acknowledges nothing.
    pub(crate) fn vanished(&mut self) {
        self.health = Health::Lost;
    }

    /// It can't be reached. One that was never live is given time to come: a group's workers start together, and a
    /// start is no loss.
    pub(crate) fn unreachable(&mut self, why: &Unreachable, now: Instant, timeouts: &Timeouts) {
        if matches!(why, Unreachable::NotYet(_)) {
            self.since = now;
        }
        if self.was_live || now.saturating_duration_since(self.since) >= timeouts.lost {
            self.health = Health::Lost;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gone() -> Unreachable {
        Unreachable::Gone("refused".into())
    }

    #[test]
    fn silence_makes_suspect_then_lost_and_an_answer_makes_live_again() {
        let timeouts = Timeouts::default();
        let mut condition = Condition::new(Instant::now());
        condition.answers();
        condition.silent(timeouts.suspect - Duration::from_millis(1), &timeouts);
        assert_eq!(condition.health, Health::Live);
        condition.silent(timeouts.suspect, &timeouts);
        assert_eq!(condition.health, Health::Suspect);
        condition.answers();
        assert_eq!(condition.health, Health::Live);
        condition.silent(timeouts.lost, &timeouts);
        condition.silent(timeouts.suspect, &timeouts);
        condition.doubt();
        assert_eq!(condition.health, Health::Lost, "only an answer brings it back");
    }

    #[test]
    fn silence_alone_is_told_from_a_closed_connection() {
        let timeouts = Timeouts::default();
        let silent = |condition: &mut Condition| condition.silent(timeouts.suspect, &timeouts);
        let mut condition = Condition::new(Instant::now());
        silent(&mut condition);
        assert!(!condition.is_only_silent(), "it never was there");
        condition.answers();
        assert!(!condition.is_only_silent(), "it answers");
        silent(&mut condition);
        assert!(condition.is_only_silent());
        condition.doubt();
        silent(&mut condition);
        assert!(!condition.is_only_silent(), "a connection was closed meanwhile");
        condition.answers();
        condition.doubt();
        silent(&mut condition);
        assert!(!condition.is_only_silent(), "a connection was closed before");
        condition.answers();
        silent(&mut condition);
        assert!(condition.is_only_silent(), "an answer begins anew");
        condition.silent(timeouts.lost, &timeouts);
        assert!(!condition.is_only_silent(), "it is lost");
    }

    #[test]
    fn a_closed_connection_and_a_failed_redial_are_a_loss() {
        let timeouts = Timeouts::default();
        let now = Instant::now();
        let mut condition = Condition::new(now);
        condition.answers();
        condition.doubt();
        assert_eq!(condition.health, Health::Suspect);
        condition.unreachable(&Unreachable::NotYet("loading".into()), now, &timeouts);
        assert_eq!(condition.health, Health::Lost, "it was restarted and holds nothing");
    }

    #[test]
    fn one_that_was_never_there_has_time_to_come() {
        let timeouts = Timeouts::default();
        let now = Instant::now();
        let mut condition = Condition::new(now);
        condition.unreachable(&gone(), now, &timeouts);
        let later = now + timeouts.lost * 9;
        condition.unreachable(&Unreachable::NotYet("loading".into()), later, &timeouts);
        condition.unreachable(&gone(), later + timeouts.lost / 2, &timeouts);
        assert_eq!(condition.health, Health::Suspect);
        condition.unreachable(&gone(), later + timeouts.lost, &timeouts);
        assert_eq!(condition.health, Health::Lost);
    }
}

//! How long the fabric waits for what.

use std::time::Duration;

/// Every threshold of the fabric.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// Opening a connection.
    pub connect: Duration,
    /// Opening a connection again after one was closed, before the peer counts as lost.
    pub redial: Duration,
    /// A whole handshake.
    pub handshake: Duration,
    /// A whole exchange, with everything that is asked again and waited for.
    pub ask: Duration,
    /// Between two pings.
    pub pulse: Duration,
    /// A peer that was not heard for this long is suspect.
    pub suspect: Duration,
    /// A peer that was not heard for this long is lost, although its connections stand.
    pub lost: Duration,
    /// A host that acknowledges nothing for this long is gone.
    pub unacknowledged: Duration,
    /// Shortest pause between two attempts to reach a lost peer; it doubles up to `redial_most`.
    pub redial_least: Duration,
    /// Longest of these pauses.
    pub redial_most: Duration,
    /// An adopted copy stays for this long after one of the placement's own is live again, and after it was last
    /// asked for by a worker that sees no other.
    pub release: Duration,
    /// How soon a read or a wait looks at what happened around it.
    pub tick: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(2),
            redial: Duration::from_millis(500),
            handshake: Duration::from_secs(2),
            ask: Duration::from_secs(20),
            pulse: Duration::from_millis(200),
            suspect: Duration::from_millis(600),
            lost: Duration::from_secs(8),
            unacknowledged: Duration::from_millis(1500),
            redial_least: Duration::from_millis(25),
            redial_most: Duration::from_millis(500),
            release: Duration::from_secs(10),
            tick: Duration::from_millis(50),
        }
    }
}

impl Timeouts {
    /// Pause after the n-th failure in a row, from 1.
    pub(crate) fn backoff(&self, failures: u32) -> Duration {
        let doubled = self.redial_least.saturating_mul(1 << failures.saturating_sub(1).min(16));
        doubled.min(self.redial_most)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_the_longest() {
        let timeouts = Timeouts::default();
        let pauses: Vec<u128> = (1..8).map(|failures| timeouts.backoff(failures).as_millis()).collect();
        assert_eq!(pauses, [25, 50, 100, 200, 400, 500, 500]);
        assert_eq!(timeouts.backoff(u32::MAX), timeouts.redial_most);
    }
}

//! The circuit of one worker: after a failure it rests, then one request probes it, then it is open to all again.
//!
//! Discovery tells what Kubernetes knows, seconds late; the circuit is what this gateway saw itself.
use std::time::{Duration, Instant};

const FIRST_REST: Duration = Duration::from_millis(50);
const LONGEST_REST: Duration = Duration::from_secs(1);

/// Whether a request may go to a worker now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gate {
    /// Yes.
    Open,
    /// Not before this time.
    Resting(Instant),
    /// Another request is finding out.
    Probing,
}

/// See the module. All times are given, so that it can be tested without a clock.
#[derive(Clone, Debug, Default)]
pub struct Circuit {
    failures: u32,
    rest_until: Option<Instant>,
    probing: bool,
    epoch: u64,
}

impl Circuit {
    /// Whether a request may go.
    pub fn gate(&self, now: Instant) -> Gate {
        match self.rest_until {
            Some(until) if now < until => Gate::Resting(until),
            _ if self.probing => Gate::Probing,
            _ => Gate::Open,
        }
    }

    /// A request goes. Its outcome must be told with the returned epoch: news from before a failure don't heal it.
    pub fn take(&mut self) -> u64 {
        self.probing = self.failures > 0;
        self.epoch
    }

    /// The request of `epoch` was accepted: others may follow. True if somebody may wait for that.
    pub fn accepted(&mut self, epoch: u64) -> bool {
        self.epoch == epoch && std::mem::take(&mut self.probing)
    }

    /// The request of `epoch` was served: forget earlier failures.
    pub fn served(&mut self, epoch: u64) {
        if self.epoch == epoch {
            self.failures = 0;
        }
    }

    /// The request of `epoch` failed. Many requests that fail of one cause count once. True if somebody may wait
    /// for the outcome.
    pub fn failed(&mut self, epoch: u64, now: Instant) -> bool {
        if self.epoch != epoch {
            return false;
        }
        let rest = FIRST_REST.saturating_mul(1 << self.failures.min(10)).min(LONGEST_REST);
        self.failures += 1;
        self.rest_until = Some(now + rest);
        self.epoch += 1;
        std::mem::take(&mut self.probing)
    }

    /// The request of `epoch` ended before its outcome was known. True if somebody may wait for that.
    pub fn abandoned(&mut self, epoch: u64) -> bool {
        self.accepted(epoch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rests_after_a_failure_then_lets_one_probe_pass() {
        let start = Instant::now();
        let mut circuit = Circuit::default();
        let epoch = circuit.take();
        assert_eq!(circuit.gate(start), Gate::Open, "healthy workers take any number of requests");
        circuit.failed(epoch, start);
        assert_eq!(circuit.gate(start), Gate::Resting(start + FIRST_REST));
        let later = start + FIRST_REST;
        assert_eq!(circuit.gate(later), Gate::Open);
        let probe = circuit.take();
        assert_eq!(circuit.gate(later), Gate::Probing);
        assert!(circuit.accepted(probe));
        assert_eq!(circuit.gate(later), Gate::Open);
    }

    #[test]
    fn rests_grow_while_probes_fail_and_are_bounded() {
        let mut now = Instant::now();
        let mut circuit = Circuit::default();
        let mut rests = Vec::new();
        for _ in 0..40 {
            let epoch = circuit.take();
            circuit.failed(epoch, now);
            let Gate::Resting(until) = circuit.gate(now) else { panic!("must rest") };
            rests.push(until - now);
            now = until;
        }
        assert!(rests.is_sorted());
        assert_eq!(rests[1], FIRST_REST * 2);
        assert_eq!(rests.last(), Some(&LONGEST_REST));
    }

    #[test]
    fn many_failures_of_one_cause_count_once_and_old_success_heals_nothing() {
        let now = Instant::now();
        let mut circuit = Circuit::default();
        let epoch = circuit.take();
        for _ in 0..32 {
            circuit.failed(epoch, now);
        }
        assert_eq!(circuit.gate(now), Gate::Resting(now + FIRST_REST));
        circuit.served(epoch);
        let later = now + FIRST_REST;
        let probe = circuit.take();
        assert_eq!(circuit.gate(later), Gate::Probing, "the failure is still remembered");
        circuit.accepted(probe);
        circuit.served(probe);
        circuit.take();
        assert_eq!(circuit.gate(later), Gate::Open, "and forgotten after a served request");
    }

    #[test]
    fn an_abandoned_probe_makes_room_for_the_next() {
        let now = Instant::now();
        let mut circuit = Circuit::default();
        let first = circuit.take();
        circuit.failed(first, now);
        let probe = circuit.take();
        assert!(circuit.abandoned(probe));
        assert_eq!(circuit.gate(now + FIRST_REST), Gate::Open);
    }

    #[test]
    fn only_outcomes_of_probes_are_waited_for() {
        let now = Instant::now();
        let mut circuit = Circuit::default();
        let (first, second) = (circuit.take(), circuit.take());
        assert!(!circuit.accepted(first));
        assert!(!circuit.failed(second, now));
        let probe = circuit.take();
        assert!(circuit.failed(probe, now));
        let probe = circuit.take();
        assert!(circuit.accepted(probe));
    }
}

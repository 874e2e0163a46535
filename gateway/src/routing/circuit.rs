//! The circuit of one worker: after a failure it rests, then the gateway asks it how it is, and when it answers it is open again.
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
    /// It has rested, but nobody knows yet how it is: only a request that has no other choice, and one at a time.
    Rested,
    /// Not before this time.
    Resting(Instant),
    /// Another request is finding out.
    Probing,
}

/// Whether the gateway should ask a worker how it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Due {
    /// It is as it should be, or is being asked.
    Not,
    /// At this time.
    At(Instant),
    /// Now; the outcome must be told with this epoch.
    Now(u64),
}

/// See the module. All times are given, so that it can be tested without a clock.
#[derive(Clone, Debug, Default)]
pub struct Circuit {
    failures: u32,
    rest_until: Option<Instant>,
    /// Something was accepted or answered since the last failure.
    answered: bool,
    /// A request is finding out.
    probing: bool,
    /// The gateway is asking.
    asking: bool,
    epoch: u64,
}

impl Circuit {
    /// Whether a request may go.
    pub fn gate(&self, now: Instant) -> Gate {
        match self.rest_until {
            Some(until) if now < until => Gate::Resting(until),
            _ if self.probing => Gate::Probing,
            _ if self.failures > 0 && !self.answered => Gate::Rested,
            _ => Gate::Open,
        }
    }

    /// Whether the gateway has to ask; [`Due::Now`] is said once until the outcome is told.
    pub fn due(&mut self, now: Instant) -> Due {
        match self.rest_until {
            _ if self.failures == 0 || self.answered || self.asking => Due::Not,
            Some(until) if now < until => Due::At(until),
            _ => {
                self.asking = true;
                Due::Now(self.epoch)
            }
        }
    }

    /// It answered the gateway's question of `epoch`: requests may follow.
    pub fn answered(&mut self, epoch: u64) {
        if self.epoch == epoch {
            self.answered = true;
            self.asking = false;
            self.probing = false;
        }
    }

    /// It gave no good answer to the question of `epoch`: it rests again, unless it has accepted a request meanwhile.
    pub fn unanswered(&mut self, epoch: u64, now: Instant) {
        if self.epoch == epoch {
            self.asking = false;
            if !self.answered {
                self.failed(epoch, now);
            }
        }
    }

    /// A request goes. Its outcome must be told with the returned epoch: news from before a failure don't heal it.
    pub fn take(&mut self) -> u64 {
        self.probing = self.failures > 0;
        self.epoch
    }

    /// The request of `epoch` was accepted: others may follow. True if somebody may wait for that.
    pub fn accepted(&mut self, epoch: u64) -> bool {
        self.answered |= self.epoch == epoch;
        self.abandoned(epoch)
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
        self.answered = false;
        self.asking = false;
        self.epoch += 1;
        std::mem::take(&mut self.probing)
    }

    /// The request of `epoch` ended before its outcome was known. True if somebody may wait for that.
    pub fn abandoned(&mut self, epoch: u64) -> bool {
        self.epoch == epoch && std::mem::take(&mut self.probing)
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
        assert_eq!(circuit.gate(later), Gate::Rested);
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
        assert_eq!(circuit.gate(now + FIRST_REST), Gate::Rested);
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

    #[test]
    fn a_worker_that_failed_is_asked_when_it_has_rested_and_is_open_when_it_answers() {
        let now = Instant::now();
        let mut circuit = Circuit::default();
        assert_eq!(circuit.due(now), Due::Not);
        let epoch = circuit.take();
        circuit.failed(epoch, now);
        let rested = now + FIRST_REST;
        assert_eq!(circuit.due(now), Due::At(rested));
        let Due::Now(question) = circuit.due(rested) else { panic!("it has rested") };
        assert_eq!((circuit.due(rested), circuit.gate(rested)), (Due::Not, Gate::Rested), "once");
        circuit.answered(question);
        assert_eq!((circuit.due(rested), circuit.gate(rested)), (Due::Not, Gate::Open));
        let first = circuit.take();
        assert_eq!(circuit.gate(rested), Gate::Probing, "whether it takes requests is yet to be seen");
        circuit.accepted(first);
        assert_eq!(circuit.gate(rested), Gate::Open);
    }

    #[test]
    fn a_worker_that_does_not_answer_rests_longer_each_time() {
        let mut now = Instant::now();
        let mut circuit = Circuit::default();
        let epoch = circuit.take();
        circuit.failed(epoch, now);
        let mut rests = Vec::new();
        for _ in 0..8 {
            let Due::At(until) = circuit.due(now) else { panic!("it rests") };
            rests.push(until - now);
            now = until;
            let Due::Now(question) = circuit.due(now) else { panic!("it has rested") };
            circuit.unanswered(question, now);
        }
        let expected = [50, 100, 200, 400, 800, 1000, 1000, 1000].map(Duration::from_millis);
        assert_eq!(rests, expected);
    }

    #[test]
    fn question_and_request_at_the_same_time_count_once() {
        let now = Instant::now();
        let rested = now + FIRST_REST;
        let both = || {
            let mut circuit = Circuit::default();
            let epoch = circuit.take();
            circuit.failed(epoch, now);
            let Due::Now(question) = circuit.due(rested) else { panic!("it has rested") };
            let request = circuit.take();
            (circuit, question, request)
        };
        let (mut circuit, question, request) = both();
        circuit.unanswered(question, rested);
        assert!(!circuit.failed(request, rested));
        assert_eq!(circuit.gate(rested), Gate::Resting(rested + FIRST_REST * 2));
        let (mut circuit, question, request) = both();
        circuit.failed(request, rested);
        circuit.answered(question);
        assert_eq!(circuit.gate(rested), Gate::Resting(rested + FIRST_REST * 2), "it is old news");
        assert_eq!(circuit.due(rested), Due::At(rested + FIRST_REST * 2));
        let (mut circuit, _, request) = both();
        assert!(circuit.accepted(request));
        assert_eq!(
            (circuit.due(rested), circuit.gate(rested)),
            (Due::Not, Gate::Open),
            "no answer is needed"
        );
    }

    #[test]
    fn a_request_that_found_out_nothing_leaves_it_to_the_question() {
        let now = Instant::now();
        let mut circuit = Circuit::default();
        let first = circuit.take();
        circuit.failed(first, now);
        let rested = now + FIRST_REST;
        let request = circuit.take();
        assert!(circuit.abandoned(request));
        assert!(matches!(circuit.due(rested), Due::Now(_)));
    }
}

//! Groups, a queue and requests in simulated time, under the autoscaler's own code and under what others do.
//!
//! A group takes a while to load. Then it works on up to [`plant::SLOTS`] requests at a time and shares what it can do evenly
//! among them. Requests that no group has a slot for wait in one queue, first come, first served, within the bounds of
//! a gateway.
pub mod others;
pub mod ours;
pub mod plant;
pub mod result;
pub mod trace;

use self::{plant::Plant, result::Outcome, trace::Trace};

/// Length of a step, in seconds.
pub const STEP: f64 = 0.25;

/// Says how many groups there should be.
pub trait Autoscaler {
    /// Its name in tables.
    fn name(&self) -> &'static str;
    /// Groups at the beginning.
    fn start(&self) -> u32;
    /// Looks at everything once in a step; `now` in seconds.
    fn look(&mut self, now: f64, current: u32, plant: &Plant) -> u32;
}

/// Runs a trace to its end, and until its last request is answered or refused.
pub fn run(trace: &Trace, autoscaler: &mut dyn Autoscaler, load_seconds: f64) -> Outcome {
    let mut plant = Plant::new(autoscaler.start(), load_seconds);
    let mut outcome = Outcome::new(trace.name.clone(), autoscaler.name());
    let mut current = autoscaler.start();
    outcome.most = current;
    let mut next = 0;
    let mut step = 0u32;
    loop {
        let now = f64::from(step) * STEP;
        while let Some(request) = trace.requests.get(next).filter(|request| request.arrival <= now) {
            plant.arrive(*request, now);
            next += 1;
        }
        plant.step(now);
        let wanted = autoscaler.look(now, current, &plant);
        if wanted != current {
            outcome.scaled(now, current, wanted);
            current = wanted;
        }
        plant.scale(current, now);
        outcome.group_seconds += f64::from(plant.existing()) * STEP;
        if now >= trace.seconds && next == trace.requests.len() && plant.idle() {
            outcome.finish(plant.records());
            return outcome;
        }
        step += 1;
    }
}

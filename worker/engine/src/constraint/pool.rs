//! Threads for work that must not hold up who asks for it.

use std::panic::{AssertUnwindSafe, catch_unwind};

use crossbeam_channel::{Receiver, Sender, TrySendError, bounded};

/// Grammars come nested, and are worked on recursively. Only what is touched takes memory.
const STACK_BYTES: usize = 256 << 20;

type Job = Box<dyn FnOnce() + Send>;

/// A few threads, and a queue before them.
pub struct Pool {
    jobs: Sender<Job>,
}

impl Pool {
    /// `capacity`: jobs that wait at most.
    pub fn new(name: &str, threads: usize, capacity: usize) -> Self {
        let (jobs, waiting) = bounded::<Job>(capacity);
        for index in 0..threads {
            let waiting = waiting.clone();
            let spawned = std::thread::Builder::new()
                .name(format!("{name}-{index}"))
                .stack_size(STACK_BYTES)
                .spawn(move || waiting.into_iter().for_each(|job| job()));
            if let Err(error) = spawned {
                tracing::error!(%error, name, "cannot start a thread");
            }
        }
        Self { jobs }
    }

    /// Where the result will come; it closes without one if the job panics. `None`: too many are waiting.
    pub fn run<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> Option<Receiver<T>> {
        let (result, receiver) = bounded(1);
        let job: Job = Box::new(move || {
            // Nobody may be waiting any more. A panic was told by the hook; the thread goes on.
            let _ = catch_unwind(AssertUnwindSafe(|| result.send(job())));
        });
        match self.jobs.try_send(job) {
            Ok(()) => {}
            Err(TrySendError::Full(_)) => return None,
            // There are no threads.
            Err(TrySendError::Disconnected(job)) => job(),
        }
        Some(receiver)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_that_panics_takes_nothing_with_it() {
        let pool = Pool::new("test", 1, 4);
        let panics = pool.run(|| panic!("on purpose")).unwrap();
        let works = pool.run(|| 7).unwrap();
        assert!(panics.recv().is_err());
        assert_eq!(works.recv(), Ok(7));
    }

    #[test]
    fn no_more_wait_than_it_has_places() {
        let pool = Pool::new("test", 1, 2);
        let (go, gate) = bounded::<()>(0);
        let (started, has_started) = bounded(0);
        let first = pool.run(move || (started.send(()), gate.recv()));
        has_started.recv().unwrap();
        let others: Vec<_> = (0..3).map(|index| pool.run(move || index)).collect();
        assert!(others[2].is_none());
        go.send(()).unwrap();
        first.unwrap().recv().unwrap().1.unwrap();
        assert_eq!(others.iter().flatten().map(|other| other.recv().unwrap()).collect::<Vec<_>>(), [0, 1]);
    }

    #[test]
    fn without_threads_the_caller_works() {
        assert_eq!(Pool::new("test", 0, 1).run(|| 7).unwrap().recv(), Ok(7));
    }
}

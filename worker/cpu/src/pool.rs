//! A small thread pool: one job at a time, split into numbered tasks.
//!
//! A caller that finds the pool busy does its tasks alone. Results never depend on who runs a task.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How long a thread looks for what it waits for before it sleeps: longer than what lies between two jobs of a step, and shorter
/// than it takes to be woken twice.
const SPIN: Duration = Duration::from_micros(30);
/// Looks between two at the clock.
const LOOKS: usize = 32;

pub(crate) struct Pool {
    shared: Arc<Shared>,
    /// Held by the caller whose job runs.
    caller: Mutex<()>,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    /// A job was posted, or the pool stops.
    posted: Condvar,
    /// The last thread left a job.
    finished: Condvar,
    /// Jobs posted so far; lets a thread see a new one without the lock.
    jobs: AtomicUsize,
    /// Threads that work on the job, to be seen without the lock.
    active: AtomicUsize,
    next_task: AtomicUsize,
    panicked: AtomicBool,
}

#[derive(Default)]
struct State {
    job: Option<Job>,
    /// Threads that work on the job.
    active: usize,
    stop: bool,
}

/// A borrowed closure whose lifetime is erased; valid until the caller has waited for `active` to be zero.
#[derive(Clone, Copy)]
struct Job {
    run: *const (dyn Fn(usize) + Sync),
    tasks: usize,
    number: usize,
}

// SAFETY: the closure behind the pointer is Sync, and `Pool::run` keeps it alive while any thread may call it.
unsafe impl Send for Job {}

impl Pool {
    /// A pool of `threads` in all; the caller is one of them.
    pub(crate) fn new(threads: usize) -> Self {
        let shared = Arc::new(Shared::default());
        let spawn = |index: usize| {
            let shared = Arc::clone(&shared);
            std::thread::Builder::new().name(format!("cpu-{index}")).spawn(move || shared.work())
        };
        // with fewer threads than wished for, the rest do all the work
        let threads = (1..threads).map_while(|index| spawn(index).ok()).collect();
        Self { shared, caller: Mutex::new(()), threads }
    }

    pub(crate) fn threads(&self) -> usize {
        self.threads.len() + 1
    }

    /// Calls `run(0)`, …, `run(tasks − 1)`, each once, in any order and on any thread; returns when all are done.
    pub(crate) fn run(&self, tasks: usize, run: &(dyn Fn(usize) + Sync)) {
        let guard = if tasks > 1 && !self.threads.is_empty() { self.caller.try_lock().ok() } else { None };
        let Some(_guard) = guard else {
            (0..tasks).for_each(run);
            return;
        };
        self.shared.post(run, tasks);
        let mine = catch_unwind(AssertUnwindSafe(|| self.shared.take_tasks(run, tasks)));
        self.shared.wait();
        if let Err(panic) = mine {
            std::panic::resume_unwind(panic);
        }
        assert!(!self.shared.panicked.swap(false, Ordering::Relaxed), "a task of the thread pool panicked");
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.lock().stop = true;
        self.shared.jobs.fetch_add(1, Ordering::Release);
        self.shared.posted.notify_all();
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn post<'a>(&self, run: &'a (dyn Fn(usize) + Sync + 'a), tasks: usize) {
        // SAFETY: only the lifetime changes; `wait` removes the job and outlasts every thread that took it, and
        // `Pool::run` always reaches `wait` before `run` goes out of scope.
        let run: &'static (dyn Fn(usize) + Sync) = unsafe { std::mem::transmute(run) };
        let mut state = self.lock();
        self.next_task.store(0, Ordering::Relaxed);
        let number = self.jobs.fetch_add(1, Ordering::Release) + 1;
        state.job = Some(Job { run, tasks, number });
        drop(state);
        self.posted.notify_all();
    }

    fn take_tasks(&self, run: &(dyn Fn(usize) + Sync), tasks: usize) {
        loop {
            let task = self.next_task.fetch_add(1, Ordering::Relaxed);
            if task >= tasks {
                return;
            }
            run(task);
        }
    }

    /// Takes the job away and waits for the threads that work on it.
    fn wait(&self) {
        let mut state = self.lock();
        state.job = None;
        if state.active > 0 {
            drop(state);
            spin(|| self.active.load(Ordering::Acquire) == 0);
            state = self.lock();
        }
        while state.active > 0 {
            state = self.finished.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn work(&self) {
        let mut seen = 0;
        while let Some(job) = self.next_job(seen) {
            seen = job.number;
            // SAFETY: this thread counts as active, so the caller waits before the closure goes away.
            let run = unsafe { &*job.run };
            if catch_unwind(AssertUnwindSafe(|| self.take_tasks(run, job.tasks))).is_err() {
                self.panicked.store(true, Ordering::Relaxed);
            }
            let mut state = self.lock();
            state.active -= 1;
            self.active.store(state.active, Ordering::Release);
            if state.active == 0 {
                self.finished.notify_all();
            }
        }
    }

    /// Joins the next job after number `seen`; `None` when the pool stops.
    fn next_job(&self, seen: usize) -> Option<Job> {
        spin(|| self.jobs.load(Ordering::Acquire) != seen);
        let mut state = self.lock();
        loop {
            if state.stop {
                return None;
            }
            if let Some(job) = state.job.filter(|job| job.number != seen) {
                state.active += 1;
                self.active.store(state.active, Ordering::Release);
                return Some(job);
            }
            state = self.posted.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// Returns when `done` says so, or after a while.
fn spin(done: impl Fn() -> bool) {
    let began = Instant::now();
    while began.elapsed() < SPIN {
        for _ in 0..LOOKS {
            if done() {
                return;
            }
            std::hint::spin_loop();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_task_runs_once_for_any_number_of_threads() {
        for threads in [1, 2, 5] {
            let pool = Pool::new(threads);
            for tasks in [0, 1, 2, 7, 300] {
                let counts: Vec<AtomicUsize> = (0..tasks).map(|_| AtomicUsize::new(0)).collect();
                pool.run(tasks, &|task| {
                    counts[task].fetch_add(1, Ordering::Relaxed);
                });
                assert!(counts.iter().all(|count| count.load(Ordering::Relaxed) == 1));
            }
        }
    }

    #[test]
    fn callers_do_not_wait_for_each_other() {
        let pool = Pool::new(3);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for round in 1..200 {
                        let sum = AtomicUsize::new(0);
                        pool.run(round, &|task| {
                            sum.fetch_add(task, Ordering::Relaxed);
                        });
                        assert_eq!(sum.into_inner(), round * (round - 1) / 2);
                    }
                });
            }
        });
    }

    #[test]
    fn a_panic_in_a_task_reaches_the_caller_and_the_pool_lives_on() {
        let pool = Pool::new(3);
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            pool.run(50, &|task| assert_ne!(task, 20));
        }));
        assert!(outcome.is_err());
        let count = AtomicUsize::new(0);
        pool.run(10, &|_| {
            count.fetch_add(1, Ordering::Relaxed);
        });
        assert_eq!(count.into_inner(), 10);
    }
}

//! Threads for requests that may block: on a disk, a network peer or the host's window.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

use crate::failure::{Code, Failure};

/// Requests that may be at work at once; each is one blocked thread at worst.
const MAX_THREADS: usize = 512;
/// Threads that are kept for the next request.
const KEPT_IDLE: usize = 4;
/// Enough to follow a path of 4096 bytes part by part, recursively. Only what is used takes memory.
const STACK: usize = 8 << 20;

type Job = Box<dyn FnOnce() + Send>;

/// A pool that grows with its work and shrinks again.
pub struct Workers {
    state: Mutex<State>,
    work: Condvar,
}

#[derive(Default)]
struct State {
    jobs: VecDeque<Job>,
    idle: usize,
    threads: usize,
}

impl Workers {
    /// A pool without threads.
    pub fn new() -> Arc<Workers> {
        Arc::new(Workers { state: Mutex::new(State::default()), work: Condvar::new() })
    }

    /// Runs `job` on a thread of its own.
    ///
    /// # Errors
    /// `limit` when too many are at work.
    pub fn run(self: &Arc<Self>, job: impl FnOnce() + Send + 'static) -> Result<(), Failure> {
        let mut state = self.lock();
        if state.idle > state.jobs.len() {
            state.jobs.push_back(Box::new(job));
            self.work.notify_one();
            return Ok(());
        }
        if state.threads >= MAX_THREADS {
            return Err(Failure::new(Code::Limit, "too many requests at once"));
        }
        let pool = self.clone();
        let first: Job = Box::new(job);
        let spawned = thread::Builder::new()
            .name("worker".into())
            .stack_size(STACK)
            .spawn(move || pool.work(first));
        match spawned {
            Ok(_) => {
                state.threads += 1;
                Ok(())
            }
            Err(error) => Err(Failure::io("cannot start a thread", &error)),
        }
    }

    fn work(&self, first: Job) {
        first();
        let mut state = self.lock();
        while state.idle < KEPT_IDLE {
            state.idle += 1;
            while state.jobs.is_empty() {
                state = self.work.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
            state.idle -= 1;
            let job = state.jobs.pop_front();
            drop(state);
            if let Some(job) = job {
                job();
            }
            state = self.lock();
        }
        state.threads -= 1;
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    #[test]
    fn blocked_jobs_do_not_hold_up_others() {
        let pool = Workers::new();
        let gate = Arc::new(std::sync::Barrier::new(21));
        let (done, finished) = mpsc::channel();
        for _ in 0..20 {
            let (gate, done) = (gate.clone(), done.clone());
            pool.run(move || {
                gate.wait();
                done.send(()).unwrap();
            })
            .unwrap();
        }
        gate.wait();
        (0..20).for_each(|_| finished.recv().unwrap());
    }
}

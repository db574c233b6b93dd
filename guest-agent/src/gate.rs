//! The gate that programs are started through: closed while the workloads are frozen.
//!
//! A program that is half started when a machine is captured would be run by every clone of it, though
//! its caller is only at one of them. So a start waits outside until the workloads run again.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use crate::failure::{Code, Failure};

/// Starts that may wait at once: each holds a thread, of which the thaw needs one as well.
const MAX_WAITING: usize = 64;

/// Lets starts pass, or holds them up.
#[derive(Default)]
pub struct Gate {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    closed: bool,
    inside: usize,
    waiting: usize,
}

/// A start that is under way; the gate cannot be closed before it is dropped.
pub struct Passage<'a> {
    gate: &'a Gate,
    /// Whether it had to wait: the one who asked may be gone meanwhile.
    pub waited: bool,
}

impl Gate {
    /// Passes once the gate is open.
    ///
    /// # Errors
    /// `limit` when too many wait already.
    pub fn pass(&self) -> Result<Passage<'_>, Failure> {
        let mut state = self.lock();
        let waited = state.closed;
        if waited {
            if state.waiting >= MAX_WAITING {
                let message = "too many programs wait for the workloads to be thawed";
                return Err(Failure::new(Code::Limit, message));
            }
            state.waiting += 1;
            while state.closed {
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
            state.waiting -= 1;
        }
        state.inside += 1;
        Ok(Passage { gate: self, waited })
    }

    /// Closes the gate and waits until nobody is inside; false when that is not so by `deadline`.
    pub fn close(&self, deadline: Instant) -> bool {
        let mut state = self.lock();
        state.closed = true;
        while state.inside > 0 {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            let woken = self.changed.wait_timeout(state, left);
            state = woken.unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }

    /// Opens the gate; that it was open does not matter.
    pub fn open(&self) {
        self.lock().closed = false;
        self.changed.notify_all();
    }

    /// Whether starts have to wait.
    pub fn is_closed(&self) -> bool {
        self.lock().closed
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Passage<'_> {
    fn drop(&mut self) {
        self.gate.lock().inside -= 1;
        self.gate.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{mpsc, Arc};
    use std::thread;
    use std::time::Duration;

    #[test]
    fn a_closed_gate_holds_starts_up_until_it_opens() {
        let gate = Arc::new(Gate::default());
        assert!(!gate.pass().unwrap().waited);
        assert!(gate.close(Instant::now()));
        assert!(gate.close(Instant::now()), "closing twice is closing once");
        let (passed, asked) = mpsc::channel();
        let starter = gate.clone();
        let thread = thread::spawn(move || {
            passed.send(starter.pass().unwrap().waited).unwrap();
        });
        while gate.lock().waiting == 0 {
            thread::yield_now();
        }
        assert!(asked.try_recv().is_err());
        gate.open();
        assert!(asked.recv().unwrap());
        thread.join().unwrap();
    }

    #[test]
    fn closing_waits_for_a_start_that_is_under_way() {
        let gate = Arc::new(Gate::default());
        let passage = gate.pass().unwrap();
        assert!(!gate.close(Instant::now()));
        let closer = gate.clone();
        let long = Instant::now() + Duration::from_secs(60);
        let closing = thread::spawn(move || closer.close(long));
        drop(passage);
        assert!(closing.join().unwrap());
        assert!(gate.is_closed());
        gate.open();
        assert!(!gate.is_closed());
    }

    #[test]
    fn not_all_threads_may_wait_at_the_gate() {
        let gate = Gate::default();
        gate.close(Instant::now());
        gate.lock().waiting = MAX_WAITING;
        assert!(gate.pass().is_err_and(|failure| failure.code == Code::Limit));
    }
}

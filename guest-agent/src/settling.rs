//! What of an identity is still to be done after its reply: files, which no other request may see as
//! they were before.
//!
//! The host hears as soon as the machine is one of its own, and goes on meanwhile; whoever needs the
//! files waits here, and fails where they could not be written.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use crate::failure::{Code, Failure};

/// Whether the machine's files say who it is.
#[derive(Default)]
pub struct Settling {
    state: Mutex<State>,
    done: Condvar,
}

#[derive(Default)]
struct State {
    under_way: bool,
    /// Why the last attempt has failed.
    failure: Option<(Code, String)>,
}

impl Settling {
    /// From now on everyone waits.
    pub fn begin(&self) {
        self.lock().under_way = true;
    }

    /// Nobody waits any more.
    pub fn end(&self, result: Result<(), Failure>) {
        let mut state = self.lock();
        state.under_way = false;
        state.failure = result.err().map(|failure| (failure.code, failure.message));
        self.done.notify_all();
    }

    /// Waits until it is done.
    ///
    /// # Errors
    /// What it has failed for.
    pub fn wait(&self) -> Result<(), Failure> {
        let mut state = self.lock();
        while state.under_way {
            state = self.done.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        match &state.failure {
            None => Ok(()),
            Some((code, message)) => {
                Err(Failure::new(*code, format!("the machine has no identity yet: {message}")))
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{mpsc, Arc};
    use std::thread;

    #[test]
    fn everyone_waits_and_hears_of_a_failure_until_the_next_attempt() {
        let settling = Arc::new(Settling::default());
        assert!(settling.wait().is_ok());
        settling.begin();
        let (own, (told, asked)) = (settling.clone(), mpsc::channel());
        let waiting = thread::spawn(move || told.send(own.wait().is_err()).unwrap());
        assert!(asked.try_recv().is_err());
        settling.end(Err(Failure::new(Code::NoSpace, "write /etc/hosts")));
        assert!(asked.recv().unwrap());
        waiting.join().unwrap();
        assert!(settling.wait().is_err_and(|failure| failure.code == Code::NoSpace));
        settling.begin();
        settling.end(Ok(()));
        assert!(settling.wait().is_ok());
    }
}

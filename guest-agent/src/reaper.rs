//! The only caller of wait: gives each exec its exit status, and reaps the orphans that PID 1 inherits.
//!
//! A program may end before its starter has told us its pid. While a start is under way, statuses that
//! nobody has asked for are therefore kept.

use std::collections::HashMap;
use std::io;
use std::sync::{Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread;

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ended {
    /// The raw status of wait(2).
    pub status: i32,
    /// Its own processor time and that of the children it waited for.
    pub cpu_ns: u64,
}

impl Ended {
    /// The exit code, when it ended by itself.
    pub fn code(&self) -> Option<i32> {
        libc::WIFEXITED(self.status).then(|| libc::WEXITSTATUS(self.status))
    }

    /// The signal that killed it.
    pub fn signal(&self) -> Option<i32> {
        libc::WIFSIGNALED(self.status).then(|| libc::WTERMSIG(self.status))
    }
}

type Callback = Box<dyn FnOnce(Ended) + Send>;

/// The one reaper of this process.
pub struct Reaper {
    state: Mutex<State>,
    children: Condvar,
}

#[derive(Default)]
struct State {
    awaited: HashMap<i32, Callback>,
    /// Those that nobody asked for, with the number of starts begun before.
    unclaimed: HashMap<i32, (u64, Ended)>,
    /// The numbers of the starts that are under way.
    starting: Vec<u64>,
    begun: u64,
    /// Raised at each start, so that a wait that found no children looks again.
    starts: u64,
}

/// A start that is under way; see [`Reaper::begin`].
pub struct Starting<'a> {
    reaper: &'a Reaper,
    number: u64,
}

impl Starting<'_> {
    /// Calls `ended` once the process that was started has ended, perhaps at once.
    pub fn watch(&self, pid: i32, ended: impl FnOnce(Ended) + Send + 'static) {
        let mut state = self.reaper.lock();
        state.starts += 1;
        self.reaper.children.notify_all();
        match state.unclaimed.remove(&pid) {
            // One from before this start was another process with the same pid.
            Some((begun, status)) if begun >= self.number => {
                drop(state);
                ended(status);
            }
            _ => {
                state.awaited.insert(pid, Box::new(ended));
            }
        }
    }
}

impl Drop for Starting<'_> {
    fn drop(&mut self) {
        let mut state = self.reaper.lock();
        state.starting.retain(|number| *number != self.number);
        // A start can hang for long (a working directory on a dead file system): nothing may pile
        // up meanwhile that only earlier starts could ask for.
        let oldest = state.starting.iter().copied().min().unwrap_or(u64::MAX);
        state.unclaimed.retain(|_, (begun, _)| *begun >= oldest);
    }
}

impl Reaper {
    /// The reaper of this process; its thread starts with the first call.
    pub fn get() -> &'static Reaper {
        static REAPER: OnceLock<Reaper> = OnceLock::new();
        static THREAD: OnceLock<bool> = OnceLock::new();
        let reaper =
            REAPER.get_or_init(|| Reaper { state: Mutex::default(), children: Condvar::new() });
        THREAD.get_or_init(|| {
            let thread = thread::Builder::new().name("reaper".into()).stack_size(64 << 10);
            thread.spawn(|| reaper.reap_for_ever()).is_ok()
        });
        reaper
    }

    /// Announces that a process is about to be started.
    pub fn begin(&self) -> Starting<'_> {
        let mut state = self.lock();
        state.begun += 1;
        let number = state.begun;
        state.starting.push(number);
        Starting { reaper: self, number }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn reap_for_ever(&self) {
        loop {
            let starts = self.lock().starts;
            match wait_any() {
                Ok((pid, ended)) => self.deliver(pid, ended),
                Err(error) if error.raw_os_error() == Some(libc::ECHILD) => {
                    // Orphans come only from descendants of children, so there is nothing to reap
                    // until the next start.
                    let mut state = self.lock();
                    while state.starts == starts {
                        state = self.children.wait(state).unwrap_or_else(PoisonError::into_inner);
                    }
                }
                Err(_) => {}
            }
        }
    }

    fn deliver(&self, pid: i32, ended: Ended) {
        let mut state = self.lock();
        match state.awaited.remove(&pid) {
            Some(callback) => {
                drop(state);
                callback(ended);
            }
            None if !state.starting.is_empty() => {
                let begun = state.begun;
                state.unclaimed.insert(pid, (begun, ended));
            }
            None => {}
        }
    }
}

fn wait_any() -> io::Result<(i32, Ended)> {
    let mut status = 0;
    // SAFETY: rusage is a structure of integers, for which zero is valid; the call fills both.
    let (pid, usage) = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        (crate::sys::check(libc::wait4(-1, &mut status, libc::__WALL, &mut usage))?, usage)
    };
    let nanoseconds =
        |time: libc::timeval| time.tv_sec as u64 * 1_000_000_000 + time.tv_usec as u64 * 1000;
    let cpu_ns = nanoseconds(usage.ru_utime) + nanoseconds(usage.ru_stime);
    Ok((pid, Ended { status, cpu_ns }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    fn ended(code: i32) -> Ended {
        Ended { status: code << 8, cpu_ns: 0 }
    }

    #[test]
    fn a_status_of_before_a_start_is_another_process() {
        let reaper = Reaper { state: Mutex::default(), children: Condvar::new() };
        let hanging = reaper.begin();
        reaper.deliver(77, ended(1));
        let start = reaper.begin();
        let (told, asked) = mpsc::channel();
        start.watch(77, move |ended| told.send(ended).unwrap());
        assert!(asked.try_recv().is_err());
        reaper.deliver(77, ended(2));
        assert_eq!(asked.recv().unwrap(), ended(2));
        // One that ended before its starter could ask is found.
        reaper.deliver(78, ended(3));
        let (told, asked) = mpsc::channel();
        start.watch(78, move |ended| told.send(ended).unwrap());
        assert_eq!(asked.recv().unwrap(), ended(3));
        // Nothing is kept for starts that are over.
        reaper.deliver(79, ended(4));
        drop(hanging);
        assert_eq!(reaper.lock().unclaimed.len(), 1);
        drop(start);
        assert!(reaper.lock().unclaimed.is_empty());
    }
}

//! The one thread that moves the bytes of all execs and keeps their time.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::io;
use std::os::fd::RawFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Instant;

use crate::exec::Exec;
use crate::link::Link;
use crate::sys::{Epoll, Waker};

const WAKE: u64 = u64::MAX;
const ROOM: u64 = u64::MAX - 1;

/// How a channel of an exec is named to epoll.
pub fn token(serial: u64, channel: u64) -> u64 {
    serial << 2 | channel
}

/// What the loop waits for.
pub struct IoLoop {
    epoll: Epoll,
    waker: Waker,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    execs: HashMap<u64, Arc<Exec>>,
    /// Looks that are due; one too many does no harm, so they are never taken back.
    timers: BinaryHeap<Reverse<(Instant, u64)>>,
}

impl IoLoop {
    /// Starts the loop; `link` tells it when there is room to send.
    pub fn start(link: Arc<Link>) -> io::Result<Arc<IoLoop>> {
        let this = Arc::new(IoLoop {
            epoll: Epoll::new()?,
            waker: Waker::new()?,
            state: Mutex::default(),
        });
        this.epoll.add(this.waker.fd(), libc::EPOLLIN, WAKE)?;
        this.epoll.add(link.room_waker.fd(), libc::EPOLLIN, ROOM)?;
        let runner = this.clone();
        thread::Builder::new()
            .name("exec-io".into())
            .stack_size(128 << 10)
            .spawn(move || runner.run(&link))?;
        Ok(this)
    }

    /// Reports events of `exec`'s descriptors to it.
    pub fn register(&self, exec: &Arc<Exec>) {
        self.lock().execs.insert(exec.about.serial, exec.clone());
    }

    /// Forgets an exec whose descriptors are closed.
    pub fn forget(&self, serial: u64) {
        let mut state = self.lock();
        state.execs.remove(&serial);
        // Looks at sessions that are gone may be due in hours.
        if state.timers.len() > 64 + 4 * state.execs.len() {
            let State { execs, timers } = &mut *state;
            timers.retain(|entry| execs.contains_key(&entry.0 .1));
        }
    }

    /// Watches a descriptor. Gives whether it is watched; it is not only when memory is short.
    pub fn watch(&self, fd: RawFd, events: i32, token: u64) -> bool {
        self.epoll.add(fd, events, token).is_ok()
    }

    /// No longer watches it.
    pub fn unwatch(&self, fd: RawFd) {
        self.epoll.remove(fd);
    }

    /// Has the exec look at its deadlines at `at`.
    pub fn set_timer(&self, at: Instant, serial: u64) {
        let mut state = self.lock();
        let entry = Reverse((at, serial));
        if state.timers.peek().is_none_or(|next| next.0 .0 > at) {
            self.waker.wake();
        }
        state.timers.push(entry);
    }

    fn run(&self, link: &Link) {
        loop {
            let next = self.lock().timers.peek().map(|entry| entry.0 .0);
            let timeout = next.map(|at| at.saturating_duration_since(Instant::now()));
            for (token, _) in self.epoll.wait(timeout).unwrap_or_default() {
                match token {
                    WAKE => self.waker.clear(),
                    ROOM => {
                        link.room_waker.clear();
                        let execs: Vec<_> = self.lock().execs.values().cloned().collect();
                        execs.iter().for_each(|exec| exec.resume());
                    }
                    _ => {
                        let exec = self.lock().execs.get(&(token >> 2)).cloned();
                        if let Some(exec) = exec {
                            exec.ready((token & 3) as u8);
                        }
                    }
                }
            }
            for exec in self.due() {
                exec.tick();
            }
        }
    }

    fn due(&self) -> Vec<Arc<Exec>> {
        let mut state = self.lock();
        let now = Instant::now();
        let mut due = Vec::new();
        while let Some(Reverse((at, serial))) = state.timers.peek().copied() {
            if at > now {
                break;
            }
            state.timers.pop();
            due.extend(state.execs.get(&serial).cloned());
        }
        due
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

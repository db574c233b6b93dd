//! The way out: frames of every thread, in order, to a port that may be full or have nobody behind it.
//!
//! A frame is written by the thread that made it when the port takes it; the rest is queued and written
//! by one flushing thread, which sleeps on an edge-triggered epoll. Nothing polls while the host is away.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

use thiserror::Error;

use crate::sys::{self, Epoll, Waker};

/// Senders of data wait while more than this is queued.
const QUEUE_SOFT: usize = 256 << 10;
/// No further request is read while more than this is queued.
const QUEUE_HARD: usize = 4 << 20;

/// The connection that a frame belonged to is no more.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("the connection is gone")]
pub struct Gone;

/// The writing half of the port.
pub struct Link {
    port: Arc<OwnedFd>,
    out: Mutex<Out>,
    /// Signalled when the queue has become shorter or a connection has ended.
    room: Condvar,
    /// Signalled when there is something to flush.
    work: Condvar,
    /// Raised when there is room again after [`Link::has_room`] said no.
    pub room_waker: Waker,
}

struct Out {
    epoch: u64,
    queue: VecDeque<Vec<u8>>,
    /// Bytes of the first frame that have been written.
    written: usize,
    bytes: usize,
    wanted: bool,
    closed: bool,
}

impl Link {
    /// A link that writes to `port` (non-blocking), with its flushing thread.
    ///
    /// # Errors
    /// When the thread or its epoll instance cannot be made.
    pub fn start(port: Arc<OwnedFd>) -> io::Result<Arc<Link>> {
        let epoll = Epoll::new()?;
        epoll.add(port.as_raw_fd(), libc::EPOLLOUT | libc::EPOLLET, 0)?;
        let out = Out {
            epoch: 0,
            queue: VecDeque::new(),
            written: 0,
            bytes: 0,
            wanted: false,
            closed: false,
        };
        let link = Arc::new(Link {
            port,
            out: Mutex::new(out),
            room: Condvar::new(),
            work: Condvar::new(),
            room_waker: Waker::new()?,
        });
        let flusher = link.clone();
        thread::Builder::new()
            .name("flush".into())
            .stack_size(64 << 10)
            .spawn(move || flusher.flush_for_ever(&epoll))?;
        Ok(link)
    }

    /// Begins a connection: what is queued is dropped, `welcome` is the next thing sent.
    /// Gives the new connection's epoch.
    pub fn reset(&self, welcome: Vec<u8>) -> u64 {
        let mut out = self.lock();
        out.epoch += 1;
        out.queue.clear();
        (out.written, out.bytes) = (0, 0);
        self.push(&mut out, welcome);
        self.room.notify_all();
        out.epoch
    }

    /// Sends a frame without ever waiting: for what is small or has been given room before.
    pub fn send_now(&self, epoch: u64, frame: Vec<u8>) {
        let mut out = self.lock();
        if out.epoch == epoch {
            self.push(&mut out, frame);
        }
    }

    /// Sends a frame as soon as the queue is short.
    ///
    /// # Errors
    /// [`Gone`] when the connection of `epoch` has ended.
    pub fn send(&self, epoch: u64, frame: Vec<u8>) -> Result<(), Gone> {
        let mut out = self.lock();
        while out.epoch == epoch && !out.closed && out.bytes > QUEUE_SOFT {
            out = self.room.wait(out).unwrap_or_else(PoisonError::into_inner);
        }
        if out.epoch != epoch || out.closed {
            return Err(Gone);
        }
        self.push(&mut out, frame);
        Ok(())
    }

    /// Whether data may be sent now. After a "no", [`Link::room_waker`] is raised in time.
    pub fn has_room(&self) -> bool {
        let mut out = self.lock();
        let room = out.bytes <= QUEUE_SOFT;
        out.wanted |= !room;
        room
    }

    /// Waits while a host that asks and does not listen has filled the queue.
    pub fn wait_for_listener(&self) {
        let mut out = self.lock();
        while !out.closed && out.bytes > QUEUE_HARD {
            out = self.room.wait(out).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// The port is gone for good: every sender is let go.
    pub fn close(&self) {
        let mut out = self.lock();
        self.shut(&mut out);
    }

    fn lock(&self) -> MutexGuard<'_, Out> {
        self.out.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn shut(&self, out: &mut Out) {
        out.closed = true;
        out.queue.clear();
        (out.written, out.bytes) = (0, 0);
        self.room.notify_all();
        self.work.notify_all();
    }

    fn push(&self, out: &mut Out, frame: Vec<u8>) {
        if out.closed {
            return;
        }
        let was_empty = out.queue.is_empty();
        out.bytes += frame.len();
        out.queue.push_back(frame);
        if was_empty {
            self.drain(out);
            if !out.queue.is_empty() {
                self.work.notify_one();
            }
        }
    }

    /// Writes until the queue is empty or the port takes no more.
    fn drain(&self, out: &mut Out) {
        while let Some(frame) = out.queue.front() {
            match sys::write(self.port.as_raw_fd(), &frame[out.written..]) {
                Ok(count) => {
                    out.written += count;
                    out.bytes -= count;
                    if out.written == frame.len() {
                        out.queue.pop_front();
                        out.written = 0;
                    }
                }
                Err(error) => match error.kind() {
                    io::ErrorKind::Interrupted => {}
                    io::ErrorKind::WouldBlock => return,
                    _ => return self.shut(out),
                },
            }
        }
    }

    fn flush_for_ever(&self, epoll: &Epoll) {
        loop {
            let mut out = self.lock();
            while out.queue.is_empty() && !out.closed {
                out = self.work.wait(out).unwrap_or_else(PoisonError::into_inner);
            }
            if out.closed {
                return;
            }
            self.drain(&mut out);
            if out.bytes <= QUEUE_SOFT {
                self.room.notify_all();
                if std::mem::take(&mut out.wanted) {
                    self.room_waker.wake();
                }
            }
            let waiting = !out.queue.is_empty();
            drop(out);
            // An edge between the write and this wait is kept by epoll, so none is lost.
            if waiting && epoll.wait(None).is_err() {
                return self.close();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::os::unix::net::UnixStream;

    fn link() -> (Arc<Link>, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        (Link::start(Arc::new(ours.into())).unwrap(), theirs)
    }

    #[test]
    fn frames_arrive_in_order_through_a_full_port() {
        let (link, mut host) = link();
        let epoch = link.reset(b"w".to_vec());
        let sender = {
            let link = link.clone();
            thread::spawn(move || {
                (0..200u8).try_for_each(|byte| link.send(epoch, vec![byte; 40_000]))
            })
        };
        let mut bytes = vec![0; 1 + 200 * 40_000];
        host.read_exact(&mut bytes).unwrap();
        sender.join().unwrap().unwrap();
        assert!(bytes[1..]
            .chunks(40_000)
            .zip(0..)
            .all(|(c, n): (_, u8)| c.iter().all(|b| *b == n)));
    }

    #[test]
    fn a_new_connection_drops_what_waited_and_lets_its_senders_go() {
        let (link, mut host) = link();
        let epoch = link.reset(vec![]);
        while link.has_room() {
            link.send(epoch, vec![1; 100_000]).unwrap();
        }
        let blocked = {
            let link = link.clone();
            thread::spawn(move || link.send(epoch, vec![2; 10]))
        };
        link.reset(b"WELCOME".to_vec());
        assert_eq!(blocked.join().unwrap(), Err(Gone));
        let mut bytes = vec![0; 4 << 20];
        let mut have = 0;
        while !bytes[..have].ends_with(b"WELCOME") {
            have += host.read(&mut bytes[have..]).unwrap();
        }
        assert!(!bytes[..have].contains(&2));
    }
}

//! One output channel of an exec, and the attachment that carries it to the host.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;

use crate::exec::io_loop::IoLoop;
use crate::exec::ring::Ring;
use crate::frame::{frame, Kind, DATA_CHUNK, WINDOW};
use crate::stream::Stream;
use crate::sys;

/// Who writes this much at once gets a larger pipe. Most programs never do.
const LARGE: usize = 16 << 10;

/// What a full ring does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Overflow {
    /// Stops reading from the program.
    Block,
    /// Drops the oldest bytes.
    Drop,
}

impl Overflow {
    /// The protocol's word for it.
    pub fn from_name(name: &str) -> Option<Overflow> {
        match name {
            "block" => Some(Overflow::Block),
            "drop" => Some(Overflow::Drop),
            _ => None,
        }
    }
}

/// A channel: the pipe or terminal that it is read from, and the bytes not yet acknowledged.
pub struct Output {
    /// The bytes.
    pub ring: Ring,
    fd: Option<OwnedFd>,
    token: u64,
    watched: bool,
    /// Whether the pipe has as much room as it may have.
    grown: bool,
}

impl Output {
    /// A channel that reads `fd` (non-blocking) and is told to the loop as `token`.
    pub fn new(fd: OwnedFd, token: u64) -> Output {
        Output { ring: Ring::default(), fd: Some(fd), token, watched: false, grown: false }
    }

    /// Whether more may come.
    pub fn is_open(&self) -> bool {
        self.fd.is_some()
    }

    /// Whether it is not being read because its ring is full.
    pub fn is_stalled(&self) -> bool {
        self.fd.is_some() && !self.watched
    }

    /// Reads once. Gives whether anything came.
    pub fn fill(&mut self, overflow: Overflow, io: &IoLoop) -> bool {
        let Some(fd) = self.fd.as_ref().map(AsRawFd::as_raw_fd) else { return false };
        if self.ring.is_full() {
            if overflow == Overflow::Block {
                io.unwatch(fd);
                self.watched = false;
                return false;
            }
            self.ring.drop_oldest();
        }
        match self.ring.fill(fd) {
            Ok(count) if count > 0 => {
                if count >= LARGE && !self.grown {
                    self.grown = true;
                    sys::grow_pipe(fd);
                }
                true
            }
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
                ) =>
            {
                false
            }
            // A terminal whose last user is gone says EIO.
            _ => {
                self.close(io);
                false
            }
        }
    }

    /// Has the loop read it (again) if there is room.
    pub fn rearm(&mut self, overflow: Overflow, io: &IoLoop) {
        let Some(fd) = self.fd.as_ref().filter(|_| !self.watched) else { return };
        if overflow == Overflow::Drop || !self.ring.is_full() {
            self.watched = io.watch(fd.as_raw_fd(), libc::EPOLLIN, self.token);
        }
    }

    /// Nothing more comes.
    pub fn close(&mut self, io: &IoLoop) {
        if let Some(fd) = self.fd.take() {
            io.unwatch(fd.as_raw_fd());
        }
    }
}

/// The stream that carries a session.
pub struct Attachment {
    /// The stream.
    pub stream: Arc<Stream>,
    /// Whether RESULT has been sent.
    pub result_sent: bool,
    /// The next offset to send, per channel.
    sent: [u64; 2],
    /// Sent and not acknowledged, per channel.
    in_flight: [usize; 2],
    ended: [bool; 2],
}

impl Attachment {
    /// An attachment that begins at the given offsets.
    pub fn new(stream: &Arc<Stream>, sent: [u64; 2]) -> Attachment {
        Attachment {
            stream: stream.clone(),
            result_sent: false,
            sent,
            in_flight: [0; 2],
            ended: [false; 2],
        }
    }

    /// The host has consumed `count` bytes more of a channel: the ring may forget them.
    pub fn acknowledge(&mut self, index: usize, count: usize, output: &mut Output) {
        self.in_flight[index] = self.in_flight[index].saturating_sub(count);
        // A GAP within the bytes in flight puts this too far ahead, but only over bytes that the
        // gap says were dropped.
        output.ring.release(self.sent[index] - self.in_flight[index] as u64);
    }

    /// Whether all that was sent has been acknowledged.
    pub fn is_acknowledged(&self) -> bool {
        self.in_flight == [0; 2]
    }

    /// Sends what may be sent of a channel. Gives whether the channel is complete.
    pub fn send(&mut self, index: usize, output: &Output) -> bool {
        let ring = &output.ring;
        let channel = index as u8 + 1;
        let (id, connection) = (self.stream.id, &self.stream.connection);
        loop {
            let gap = ring.first().saturating_sub(self.sent[index]);
            let window = WINDOW - self.in_flight[index];
            let parts = ring.slices(self.sent[index] + gap, window.min(DATA_CHUNK));
            let length = parts[0].len() + parts[1].len();
            // A gap goes out with the bytes after it, so that a host which takes none is not sent
            // one for every drop.
            if length == 0 && (gap == 0 || output.is_open()) {
                break;
            }
            if !connection.link.has_room() {
                return false;
            }
            if gap > 0 {
                self.stream.send_now(frame(Kind::Gap, channel, id, [&gap.to_le_bytes(), &[]]));
                self.sent[index] += gap;
                continue;
            }
            self.stream.send_now(frame(Kind::Data, channel, id, parts));
            self.sent[index] += length as u64;
            self.in_flight[index] += length;
        }
        if output.is_open() || self.sent[index] < ring.last() {
            return false;
        }
        if !self.ended[index] {
            self.ended[index] = true;
            self.stream.send_now(frame(Kind::End, channel, id, [&[], &[]]));
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overflow_names() {
        assert_eq!(Overflow::from_name("block"), Some(Overflow::Block));
        assert_eq!(Overflow::from_name("drop"), Some(Overflow::Drop));
        assert_eq!(Overflow::from_name(""), None);
    }
}

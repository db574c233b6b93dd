//! The standard input of an exec: bytes of the host on their way into a pipe or a terminal.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;

use crate::exec::io_loop::IoLoop;
use crate::stream::Stream;
use crate::sys;

/// What a terminal takes for the end of input.
const EOT: u8 = 4;

/// Input that waits for the program. The window of the stream bounds it.
pub struct Stdin {
    fd: Option<OwnedFd>,
    terminal: bool,
    queue: VecDeque<Piece>,
    written: usize,
    ended: bool,
    watched: bool,
    /// Whether the pipe has as much room as it may have.
    grown: bool,
    /// The stream of the last bytes, which is owed their acknowledgement.
    stream: Option<Arc<Stream>>,
}

struct Piece {
    bytes: Vec<u8>,
    /// Whether the host sent it and gets its window back.
    owed: bool,
}

impl Stdin {
    /// Input into `fd` (non-blocking); without one everything is discarded.
    pub fn new(fd: Option<OwnedFd>, terminal: bool) -> Stdin {
        Stdin {
            fd,
            terminal,
            queue: VecDeque::new(),
            written: 0,
            ended: false,
            watched: false,
            grown: terminal,
            stream: None,
        }
    }

    /// Bytes of the host.
    pub fn push(&mut self, bytes: Vec<u8>, stream: &Arc<Stream>) {
        if !self.stream.as_ref().is_some_and(|known| Arc::ptr_eq(known, stream)) {
            // What an earlier stream sent is still written, but nobody is owed for it.
            self.queue.iter_mut().for_each(|piece| piece.owed = false);
            self.stream = Some(stream.clone());
        }
        self.queue.push_back(Piece { bytes, owed: true });
    }

    /// The host sends no more. A terminal gets EOT and may get more input later.
    pub fn end(&mut self) {
        if self.terminal {
            self.queue.push_back(Piece { bytes: vec![EOT], owed: false });
        } else {
            self.ended = true;
        }
    }

    /// The stream that is owed the acknowledgement of written bytes.
    pub fn stream(&self) -> Option<Arc<Stream>> {
        self.stream.clone()
    }

    /// Nobody is owed anything any more. Gives the stream that was.
    pub fn forget_stream(&mut self) -> Option<Arc<Stream>> {
        self.stream.take()
    }

    /// Writes what the program takes. Gives the bytes that the host gets back.
    pub fn write(&mut self, io: &IoLoop, token: u64) -> usize {
        let mut consumed = 0;
        while let Some(piece) = self.queue.front() {
            let result = match &self.fd {
                Some(fd) => sys::write(fd.as_raw_fd(), &piece.bytes[self.written..]),
                None => Ok(piece.bytes.len() - self.written),
            };
            match result {
                Ok(count) => {
                    self.written += count;
                    if piece.owed {
                        consumed += count;
                    }
                    if self.written == piece.bytes.len() {
                        self.queue.pop_front();
                        self.written = 0;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if let Some(fd) = self.fd.as_ref().filter(|_| !self.grown) {
                        self.grown = true;
                        sys::grow_pipe(fd.as_raw_fd());
                        continue;
                    }
                    if let Some(fd) = self.fd.as_ref().filter(|_| !self.watched) {
                        self.watched = io.watch(fd.as_raw_fd(), libc::EPOLLOUT, token);
                    }
                    return consumed;
                }
                // The program has closed its input: the rest is discarded quietly.
                Err(_) => self.close(io),
            }
        }
        if self.ended {
            self.close(io);
        } else if self.watched {
            if let Some(fd) = &self.fd {
                io.unwatch(fd.as_raw_fd());
            }
            self.watched = false;
        }
        consumed
    }

    /// Closes the program's input; bytes that still come are discarded.
    pub fn close(&mut self, io: &IoLoop) {
        if let Some(fd) = self.fd.take() {
            io.unwatch(fd.as_raw_fd());
        }
        self.watched = false;
    }
}

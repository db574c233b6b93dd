//! Turns the port's bytes into connections and frames, and finds its way back when they make no sense.
//!
//! The magic is looked for in every byte, also inside a frame: a valid HELLO always wins. Whatever is
//! malformed puts the parser into discarding, which only the next HELLO ends.

use std::ops::Range;

use memchr::memchr_iter;

use crate::frame::{Header, HEADER_LEN, MAX_PAYLOAD_IN};
use crate::preamble::{Hello, MAGIC, PREAMBLE_LEN};

/// Room that is offered to each read of the port.
const READ_ROOM: usize = 64 << 10;

/// What the bytes came to.
#[derive(Debug, PartialEq, Eq)]
pub enum Input<'a> {
    /// A new connection begins.
    Hello(Hello),
    /// A frame of the connection. Only its header has been checked.
    Frame(Header, &'a [u8]),
}

/// The bytes received and not yet handed on.
pub struct Parser {
    buffer: Vec<u8>,
    start: usize,
    end: usize,
    /// Bytes before this offset hold no complete magic.
    scanned: usize,
    /// Where a complete magic was found.
    magic: Option<usize>,
    discarding: bool,
}

impl Default for Parser {
    fn default() -> Parser {
        Parser::new()
    }
}

impl Parser {
    /// A parser that waits for the first HELLO.
    pub fn new() -> Parser {
        let buffer = vec![0; 4 * READ_ROOM];
        Parser { buffer, start: 0, end: 0, scanned: 0, magic: None, discarding: true }
    }

    /// Where the next read goes; tell [`Parser::filled`] how much came.
    pub fn room(&mut self) -> &mut [u8] {
        // Bytes already handed on may still be the beginning of a magic.
        let keep = self.start.saturating_sub(MAGIC.len() - 1);
        if keep > 0 && (self.start == self.end || self.buffer.len() - self.end < READ_ROOM) {
            self.buffer.copy_within(keep..self.end, 0);
            self.start -= keep;
            self.end -= keep;
            self.scanned = self.scanned.saturating_sub(keep);
            self.magic = self.magic.map(|at| at - keep);
        }
        if self.buffer.len() - self.end < READ_ROOM {
            // At most one frame is held back, so this ends at 1 MiB and a bit.
            let size = (2 * self.buffer.len()).min(MAX_PAYLOAD_IN + HEADER_LEN + 2 * READ_ROOM);
            self.buffer.resize(size, 0);
        }
        &mut self.buffer[self.end..]
    }

    /// `count` bytes were put into [`Parser::room`].
    pub fn filled(&mut self, count: usize) {
        self.end += count;
        if self.magic.is_none() {
            self.find_magic();
        }
    }

    /// Everything up to the next HELLO is worthless: a payload was malformed.
    pub fn discard(&mut self) {
        self.discarding = true;
    }

    /// The next connection or frame, `None` when more bytes are needed.
    pub fn next_input(&mut self) -> Option<Input<'_>> {
        loop {
            let limit = self.magic.unwrap_or(self.end);
            if self.discarding {
                self.start = limit;
            } else {
                match self.next_frame(limit) {
                    Step::Frame(header, range) => {
                        return Some(Input::Frame(header, &self.buffer[range]))
                    }
                    Step::Malformed => {
                        self.discarding = true;
                        continue;
                    }
                    Step::Incomplete => {}
                }
            }
            let at = self.magic?;
            let bytes = self.buffer.get(at..self.end)?.first_chunk::<PREAMBLE_LEN>().copied()?;
            match Hello::parse(&bytes) {
                Ok(hello) => {
                    self.consume_magic(at + PREAMBLE_LEN);
                    self.discarding = false;
                    return Some(Input::Hello(hello));
                }
                Err(_) => {
                    self.consume_magic(at + MAGIC.len());
                    self.discarding = true;
                }
            }
        }
    }

    fn consume_magic(&mut self, to: usize) {
        self.start = to;
        self.scanned = to;
        self.find_magic();
    }

    fn next_frame(&mut self, limit: usize) -> Step {
        let held = &self.buffer[self.start..limit];
        let Some(header) = held.first_chunk::<HEADER_LEN>() else {
            return Step::Incomplete;
        };
        let Some(header) = Header::parse_inbound(header) else {
            return Step::Malformed;
        };
        let from = self.start + HEADER_LEN;
        let to = from + header.length;
        if to > limit {
            return Step::Incomplete;
        }
        self.start = to;
        Step::Frame(header, from..to)
    }

    fn find_magic(&mut self) {
        // A magic may have begun in the bytes of an earlier read. It cannot overlap another one,
        // since its first byte does not occur in it again.
        let from = self.scanned.saturating_sub(MAGIC.len() - 1);
        self.scanned = self.end;
        let fresh = &self.buffer[from..self.end];
        self.magic = memchr_iter(MAGIC[0], fresh)
            .find(|at| fresh[*at..].starts_with(&MAGIC))
            .map(|at| from + at);
        if let Some(at) = self.magic {
            // Its first bytes may have been taken for the end of a frame.
            self.start = self.start.min(at);
        }
    }
}

enum Step {
    Frame(Header, Range<usize>),
    Malformed,
    Incomplete,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::{frame, Kind};

    fn hello(byte: u8) -> Hello {
        Hello { version: 1, nonce: [byte; 16] }
    }

    fn data(payload: &[u8]) -> Vec<u8> {
        frame(Kind::Data, 0, 5, [payload, &[]])
    }

    /// What a parser makes of `bytes` when they come `step` at a time.
    fn parse(bytes: &[u8], step: usize) -> Vec<String> {
        let mut parser = Parser::new();
        let mut seen = Vec::new();
        for chunk in bytes.chunks(step) {
            parser.room()[..chunk.len()].copy_from_slice(chunk);
            parser.filled(chunk.len());
            while let Some(input) = parser.next_input() {
                seen.push(match input {
                    Input::Hello(hello) => format!("hello {}", hello.nonce[0]),
                    Input::Frame(_, payload) => format!("data {}", payload.len()),
                });
            }
        }
        seen
    }

    #[test]
    fn frames_come_whole_however_they_are_cut() {
        let bytes =
            [&b"left over"[..], &hello(1).encode(), &data(b"abc"), &data(&[7; 3000])].concat();
        for step in [1, 2, 7, 39, 40, 41, 5000] {
            assert_eq!(parse(&bytes, step), ["hello 1", "data 3", "data 3000"], "step {step}");
        }
    }

    #[test]
    fn a_hello_inside_a_frame_wins() {
        let whole = data(&[0xf4; 500]);
        let cut = &whole[..300];
        let bytes = [&hello(1).encode()[..], cut, &hello(2).encode(), &data(b"x")].concat();
        for step in [1, 13, 64, 5000] {
            assert_eq!(parse(&bytes, step), ["hello 1", "hello 2", "data 1"], "step {step}");
        }
    }

    #[test]
    fn a_magic_without_a_hello_leads_to_discarding() {
        let mut broken = hello(9).encode();
        broken[30] ^= 1;
        let bytes = [&hello(1).encode()[..], &broken, &data(b"x"), &hello(2).encode()].concat();
        for step in [1, 33, 5000] {
            assert_eq!(parse(&bytes, step), ["hello 1", "hello 2"], "step {step}");
        }
    }

    #[test]
    fn two_magics_in_a_row_do_not_hide_the_second() {
        let bytes = [&MAGIC[..], &hello(3).encode()].concat();
        assert_eq!(parse(&bytes, 1), ["hello 3"]);
        assert_eq!(parse(&bytes, 5000), ["hello 3"]);
    }

    #[test]
    fn garbage_is_discarded_and_the_largest_frame_fits() {
        let mut bytes = [&hello(1).encode()[..], &[0xff; 40], &data(b"lost")].concat();
        bytes.extend_from_slice(&hello(2).encode());
        bytes.extend_from_slice(&data(&vec![1; MAX_PAYLOAD_IN]));
        bytes.extend_from_slice(&frame(Kind::Data, 0, 5, [&vec![1; MAX_PAYLOAD_IN + 1], &[]]));
        assert_eq!(parse(&bytes, READ_ROOM), ["hello 1", "hello 2", "data 1048576"]);
    }
}

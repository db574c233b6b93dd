//! The bytes of one output channel that the host has not acknowledged, under their stream offsets.
//!
//! Memory is taken as it is needed, from a budget that all rings share: a thousand silent programs
//! cost nothing, and a thousand noisy ones cannot starve PID 1.

use std::io;
use std::os::fd::RawFd;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::frame::WINDOW;
use crate::sys;

/// What every ring may have, whatever the others use.
const FLOOR: usize = 16 << 10;

static USED: AtomicUsize = AtomicUsize::new(0);
static BUDGET: AtomicUsize = AtomicUsize::new(256 << 20);

/// Sets what all rings together may use.
pub fn set_budget(bytes: usize) {
    BUDGET.store(bytes, Ordering::Relaxed);
}

/// What all rings together use now.
pub fn used() -> usize {
    USED.load(Ordering::Relaxed)
}

/// A bounded queue of bytes.
#[derive(Default)]
pub struct Ring {
    /// Its length is zero or a power of two, so offsets become positions by masking.
    buffer: Vec<u8>,
    first: u64,
    last: u64,
}

impl Ring {
    /// The offset of the oldest byte kept.
    pub fn first(&self) -> u64 {
        self.first
    }

    /// The offset after the newest byte.
    pub fn last(&self) -> u64 {
        self.last
    }

    /// Whether nothing more can be taken in without dropping.
    pub fn is_full(&mut self) -> bool {
        self.len() == self.buffer.len() && !self.grow()
    }

    /// Reads from `fd` into the ring, once. The ring must not be full.
    ///
    /// # Errors
    /// Those of read(2).
    pub fn fill(&mut self, fd: RawFd) -> io::Result<usize> {
        if self.len() >= self.buffer.len() / 2 {
            self.grow();
        }
        let (from, to) = self.free_part();
        let count = sys::read(fd, &mut self.buffer[from..to])?;
        self.last += count as u64;
        Ok(count)
    }

    /// Up to `limit` bytes from `offset`, in two parts.
    pub fn slices(&self, offset: u64, limit: usize) -> [&[u8]; 2] {
        if self.buffer.is_empty() || offset < self.first || offset >= self.last {
            return [&[], &[]];
        }
        let length = limit.min((self.last - offset) as usize);
        let from = self.position(offset);
        let head = length.min(self.buffer.len() - from);
        [&self.buffer[from..from + head], &self.buffer[..length - head]]
    }

    /// Forgets the bytes before `offset`; an offset that is past or gone is brought into range.
    pub fn release(&mut self, offset: u64) {
        self.first = offset.clamp(self.first, self.last);
        if self.first == self.last && self.buffer.len() > FLOOR {
            self.resize(0);
        }
    }

    /// Makes room for one more read by forgetting the oldest bytes.
    pub fn drop_oldest(&mut self) {
        let step = (self.buffer.len() / 4).max(1) as u64;
        self.first = (self.first + step).min(self.last);
    }

    fn len(&self) -> usize {
        (self.last - self.first) as usize
    }

    fn position(&self, offset: u64) -> usize {
        offset as usize & (self.buffer.len() - 1)
    }

    /// The free bytes that lie together.
    fn free_part(&self) -> (usize, usize) {
        let from = self.position(self.last);
        let free = self.buffer.len() - self.len();
        (from, (from + free).min(self.buffer.len()))
    }

    fn grow(&mut self) -> bool {
        let size = (2 * self.buffer.len()).max(FLOOR);
        let more = size - self.buffer.len();
        let fits = USED.load(Ordering::Relaxed) + more <= BUDGET.load(Ordering::Relaxed);
        if size > WINDOW || (size > FLOOR && !fits) {
            return false;
        }
        self.resize(size);
        true
    }

    /// `size` must hold what the ring has.
    fn resize(&mut self, size: usize) {
        let mut buffer = vec![0; size];
        let mut offset = self.first;
        while offset < self.last {
            let at = offset as usize & (size - 1);
            let part = self.slices(offset, size - at)[0];
            buffer[at..at + part.len()].copy_from_slice(part);
            offset += part.len() as u64;
        }
        USED.fetch_add(size, Ordering::Relaxed);
        USED.fetch_sub(self.buffer.len(), Ordering::Relaxed);
        self.buffer = buffer;
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        USED.fetch_sub(self.buffer.len(), Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::os::fd::AsRawFd;

    fn feed(ring: &mut Ring, bytes: &[u8]) {
        let (reader, writer) = sys::pipe().unwrap();
        std::fs::File::from(writer).write_all(bytes).unwrap();
        let mut left = bytes.len();
        while left > 0 {
            assert!(!ring.is_full());
            left -= ring.fill(reader.as_raw_fd()).unwrap();
        }
    }

    fn all(ring: &Ring, offset: u64) -> Vec<u8> {
        ring.slices(offset, usize::MAX).concat()
    }

    #[test]
    fn bytes_keep_their_offsets_while_the_ring_turns_and_grows() {
        let mut ring = Ring::default();
        let bytes: Vec<u8> = (0..60_000u32).map(|n| (n % 251) as u8).collect();
        for chunk in 0..40u64 {
            feed(&mut ring, &bytes);
            let end = (chunk + 1) * 60_000;
            assert_eq!(ring.last(), end);
            assert_eq!(all(&ring, end - 60_000), bytes);
            ring.release(end - 500 * (chunk % 3));
        }
        assert_eq!(ring.slices(ring.last(), 10), [&[] as &[u8], &[]]);
    }

    #[test]
    fn a_full_ring_says_so_and_can_drop_its_oldest() {
        let mut ring = Ring::default();
        for _ in 0..WINDOW / 32768 {
            feed(&mut ring, &[7; 32768]);
        }
        assert!(ring.is_full());
        ring.drop_oldest();
        assert!(!ring.is_full());
        assert_eq!(ring.first(), (WINDOW / 4) as u64);
        ring.release(u64::MAX);
        assert_eq!((ring.first(), ring.buffer.len()), (ring.last(), 0));
    }
}

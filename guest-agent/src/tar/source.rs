//! The bytes of channel 0 as a source that can be looked at without copying.

use crate::failure::{Code, Failure};
use crate::stream::{Input, Stream};
use crate::tar::header::{padding, TarError, BLOCK};

/// Names and attributes of one entry may have this many bytes.
const MAX_METADATA: u64 = 1 << 20;

impl From<TarError> for Failure {
    fn from(error: TarError) -> Failure {
        let code = match error {
            TarError::Type(_) => Code::Unsupported,
            TarError::TooLarge => Code::TooLarge,
            _ => Code::BadRequest,
        };
        Failure::new(code, error.to_string())
    }
}

/// What the host sends.
pub struct Source<'a> {
    stream: &'a Stream,
    chunk: Vec<u8>,
    at: usize,
    ended: bool,
    taken: u64,
}

impl<'a> Source<'a> {
    /// The bytes of `stream` from now on.
    pub fn new(stream: &'a Stream) -> Source<'a> {
        Source { stream, chunk: Vec::new(), at: 0, ended: false, taken: 0 }
    }

    /// The bytes that are there, none at the end.
    ///
    /// # Errors
    /// `cancelled` when the transfer breaks.
    pub fn available(&mut self) -> Result<&[u8], Failure> {
        while self.at == self.chunk.len() && !self.ended {
            let done = std::mem::take(&mut self.chunk).len();
            self.stream.consumed(done);
            self.at = 0;
            match self.stream.receive()? {
                Input::Data(bytes) => self.chunk = bytes,
                Input::End => self.ended = true,
                Input::Control(_) => {}
            }
        }
        Ok(&self.chunk[self.at..])
    }

    /// `count` bytes of [`Source::available`] have been used.
    pub fn consume(&mut self, count: usize) {
        self.at += count;
        self.taken += count as u64;
    }

    /// How many bytes have been used.
    pub fn taken(&self) -> u64 {
        self.taken
    }

    /// The next block, `None` at the end of the bytes.
    ///
    /// # Errors
    /// `bad_request` when they end within it.
    pub fn block(&mut self) -> Result<Option<[u8; BLOCK]>, Failure> {
        let mut block = [0; BLOCK];
        let mut filled = 0;
        while filled < BLOCK {
            let bytes = self.available()?;
            if bytes.is_empty() {
                return if filled == 0 { Ok(None) } else { Err(TarError::Truncated.into()) };
            }
            let count = bytes.len().min(BLOCK - filled);
            block[filled..filled + count].copy_from_slice(&bytes[..count]);
            self.consume(count);
            filled += count;
        }
        Ok(Some(block))
    }

    /// Hands the `size` bytes of an entry's content to `sink`, then skips its padding.
    ///
    /// # Errors
    /// Those of `sink`, and `bad_request` when the bytes end before.
    pub fn content(
        &mut self,
        size: u64,
        mut sink: impl FnMut(&[u8]) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        let mut left = size;
        let mut skip = padding(size);
        while left > 0 || skip > 0 {
            let bytes = self.available()?;
            if bytes.is_empty() {
                return Err(TarError::Truncated.into());
            }
            let count = bytes.len().min(if left > 0 { left as usize } else { skip });
            if left > 0 {
                sink(&bytes[..count])?;
                left -= count as u64;
            } else {
                skip -= count;
            }
            self.consume(count);
        }
        Ok(())
    }

    /// The content of a small entry.
    ///
    /// # Errors
    /// `too_large`, and those of [`Source::content`].
    pub fn metadata(&mut self, size: u64) -> Result<Vec<u8>, Failure> {
        if size > MAX_METADATA {
            return Err(TarError::TooLarge.into());
        }
        let mut bytes = Vec::new();
        self.content(size, |part| {
            bytes.extend_from_slice(part);
            Ok(())
        })?;
        Ok(bytes)
    }

    /// Takes what follows the archive's end.
    ///
    /// # Errors
    /// `cancelled` when the transfer breaks.
    pub fn drain(&mut self) -> Result<(), Failure> {
        loop {
            let count = self.available()?.len();
            if count == 0 {
                return Ok(());
            }
            self.consume(count);
        }
    }
}

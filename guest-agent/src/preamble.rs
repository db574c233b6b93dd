//! HELLO and WELCOME: the 40 bytes that begin a connection and that no version ever changes.

use thiserror::Error;

/// What marks a preamble. None of its bytes is 0x00-0x0f, so it cannot span two frames.
pub const MAGIC: [u8; 16] = [
    0xf4, 0x48, 0x55, 0x54, 0x43, 0x48, 0xf5, 0xf6, 0x91, 0xe2, 0xb8, 0x9d, 0xc7, 0xa3, 0xd6, 0x8b,
];
/// Bytes of a preamble, the magic included.
pub const PREAMBLE_LEN: usize = 40;
/// The only protocol version that there is.
pub const VERSION: u8 = 1;

const HELLO: u8 = 1;
const WELCOME: u8 = 2;

/// A valid HELLO of the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hello {
    /// The highest version that the host speaks.
    pub version: u8,
    /// To be repeated in WELCOME.
    pub nonce: [u8; 16],
}

/// Why 40 bytes that begin with the magic are no HELLO.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum PreambleError {
    /// The checksum does not fit.
    #[error("the preamble's checksum is wrong")]
    Checksum,
    /// A preamble, but no HELLO of the form we know.
    #[error("the preamble is no HELLO")]
    Kind,
}

impl Hello {
    /// Reads the 40 bytes of a preamble.
    ///
    /// # Errors
    /// [`PreambleError`] when they are not a HELLO.
    pub fn parse(bytes: &[u8; PREAMBLE_LEN]) -> Result<Hello, PreambleError> {
        let (head, sum) = bytes.split_at(36);
        if crc32(head).to_le_bytes() != sum {
            return Err(PreambleError::Checksum);
        }
        if head[..16] != MAGIC || head[16] != HELLO || head[18..20] != [0, 0] {
            return Err(PreambleError::Kind);
        }
        let mut nonce = [0; 16];
        nonce.copy_from_slice(&head[20..36]);
        Ok(Hello { version: head[17], nonce })
    }

    /// The version that both sides speak, 0 when there is none.
    pub fn common_version(&self) -> u8 {
        self.version.min(VERSION)
    }

    /// The WELCOME that answers this HELLO.
    pub fn welcome(&self) -> [u8; PREAMBLE_LEN] {
        build(WELCOME, self.common_version(), &self.nonce)
    }

    /// The bytes of this HELLO (what a host sends).
    pub fn encode(&self) -> [u8; PREAMBLE_LEN] {
        build(HELLO, self.version, &self.nonce)
    }
}

fn build(kind: u8, version: u8, nonce: &[u8; 16]) -> [u8; PREAMBLE_LEN] {
    let mut bytes = [0; PREAMBLE_LEN];
    bytes[..16].copy_from_slice(&MAGIC);
    bytes[16] = kind;
    bytes[17] = version;
    bytes[20..36].copy_from_slice(nonce);
    let sum = crc32(&bytes[..36]);
    bytes[36..].copy_from_slice(&sum.to_le_bytes());
    bytes
}

/// CRC-32 (IEEE). A preamble has 36 bytes of it, so no table is worth its place.
pub fn crc32(bytes: &[u8]) -> u32 {
    let step = |crc: u32, _| if crc & 1 == 1 { (crc >> 1) ^ 0xedb8_8320 } else { crc >> 1 };
    !bytes.iter().fold(!0, |crc, byte| (0..8).fold(crc ^ u32::from(*byte), step))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crc_is_the_ieee_one() {
        assert_eq!(crc32(b"123456789"), 0xcbf4_3926);
    }

    #[test]
    fn hello_is_read_back_and_answered() {
        let hello = Hello { version: 7, nonce: [3; 16] };
        let bytes = hello.encode();
        assert_eq!(Hello::parse(&bytes), Ok(hello));
        assert_eq!(Hello::parse(&hello.welcome()), Err(PreambleError::Kind));
        assert_eq!(hello.welcome()[17], 1);
        assert_eq!(Hello { version: 0, nonce: [0; 16] }.welcome()[17], 0);
        let mut broken = bytes;
        broken[25] ^= 1;
        assert_eq!(Hello::parse(&broken), Err(PreambleError::Checksum));
    }

    #[test]
    fn magic_cannot_span_two_frames() {
        assert!(MAGIC.iter().all(|byte| *byte > 0x0f));
    }
}

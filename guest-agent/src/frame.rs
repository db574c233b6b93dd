//! Frames: the 12-byte header, the types, the limits. Never changes between versions.

use crate::codec::Value;
use crate::failure::Failure;

/// Bytes of a frame's header.
pub const HEADER_LEN: usize = 12;
/// The longest payload that the host may send.
pub const MAX_PAYLOAD_IN: usize = 1 << 20;
/// The longest payload that we may send.
pub const MAX_PAYLOAD_OUT: usize = 256 << 10;
/// What each channel of a stream may have unacknowledged.
pub const WINDOW: usize = 1 << 20;
/// Payload of our DATA frames: with its header it fills whole 32 KiB writes of the virtio port.
pub const DATA_CHUNK: usize = (64 << 10) - HEADER_LEN;

/// The type of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Kind {
    Request = 1,
    Reply = 2,
    Error = 3,
    Data = 4,
    End = 5,
    Credit = 6,
    Result = 7,
    Close = 8,
    Control = 9,
    Event = 10,
    Gap = 11,
}

impl Kind {
    /// The type that a byte stands for.
    pub fn from_byte(byte: u8) -> Option<Kind> {
        Some(match byte {
            1 => Kind::Request,
            2 => Kind::Reply,
            3 => Kind::Error,
            4 => Kind::Data,
            5 => Kind::End,
            6 => Kind::Credit,
            7 => Kind::Result,
            8 => Kind::Close,
            9 => Kind::Control,
            10 => Kind::Event,
            11 => Kind::Gap,
            _ => return None,
        })
    }

    /// Whether the host may send it.
    pub fn is_inbound(self) -> bool {
        matches!(
            self,
            Kind::Request | Kind::Data | Kind::End | Kind::Credit | Kind::Close | Kind::Control
        )
    }
}

/// The header of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// The type.
    pub kind: Kind,
    /// 0 to the guest, 1 and 2 to the host.
    pub channel: u8,
    /// The stream's id; 0 is the connection.
    pub stream: u32,
    /// Bytes of payload that follow.
    pub length: usize,
}

impl Header {
    /// Reads a header that the host sent; `None` when it is malformed or not the host's to send.
    pub fn parse_inbound(bytes: &[u8; HEADER_LEN]) -> Option<Header> {
        let [kind, channel, r0, r1, s0, s1, s2, s3, l0, l1, l2, l3] = *bytes;
        let kind = Kind::from_byte(kind).filter(|kind| kind.is_inbound())?;
        let length = u32::from_le_bytes([l0, l1, l2, l3]) as usize;
        let sizes_fit = match kind {
            Kind::Credit => length == 4,
            Kind::End | Kind::Close => length == 0,
            _ => length <= MAX_PAYLOAD_IN,
        };
        let channel_fits = match kind {
            Kind::Data | Kind::End => channel == 0,
            Kind::Credit => channel == 1 || channel == 2,
            _ => channel == 0,
        };
        let stream = u32::from_le_bytes([s0, s1, s2, s3]);
        (sizes_fit && channel_fits && r0 == 0 && r1 == 0 && stream != 0).then_some(Header {
            kind,
            channel,
            stream,
            length,
        })
    }

    /// The header's bytes.
    pub fn encode(&self) -> [u8; HEADER_LEN] {
        let mut bytes = [0; HEADER_LEN];
        bytes[0] = self.kind as u8;
        bytes[1] = self.channel;
        bytes[4..8].copy_from_slice(&self.stream.to_le_bytes());
        bytes[8..].copy_from_slice(&(self.length as u32).to_le_bytes());
        bytes
    }
}

/// A whole frame; the payload may be given in two parts (the halves of a ring).
pub fn frame(kind: Kind, channel: u8, stream: u32, parts: [&[u8]; 2]) -> Vec<u8> {
    let length = parts[0].len() + parts[1].len();
    let mut bytes = Vec::with_capacity(HEADER_LEN + length);
    bytes.extend_from_slice(&Header { kind, channel, stream, length }.encode());
    bytes.extend_from_slice(parts[0]);
    bytes.extend_from_slice(parts[1]);
    bytes
}

/// A frame whose payload is a map.
pub fn map_frame(kind: Kind, stream: u32, value: &Value) -> Vec<u8> {
    let payload = value.encode();
    if payload.len() > MAX_PAYLOAD_OUT {
        let failure =
            Failure::new(crate::failure::Code::TooLarge, "the answer does not fit one frame");
        return error_frame(stream, &failure);
    }
    frame(kind, 0, stream, [&payload, &[]])
}

/// An ERROR frame.
pub fn error_frame(stream: u32, failure: &Failure) -> Vec<u8> {
    // A message may quote paths of the guest: it must not outgrow a frame.
    let mut end = failure.message.len().min(4096);
    while !failure.message.is_char_boundary(end) {
        end -= 1;
    }
    let payload = crate::map! {
        "code" => failure.code.as_str(),
        "message" => &failure.message[..end],
        "errno" => failure.errno,
    }
    .encode();
    frame(Kind::Error, 0, stream, [&payload, &[]])
}

/// A CREDIT frame for `bytes` of channel 0.
pub fn credit_frame(stream: u32, bytes: usize) -> Vec<u8> {
    frame(Kind::Credit, 0, stream, [&(bytes as u32).to_le_bytes(), &[]])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_survive_a_round_trip() {
        let header = Header { kind: Kind::Data, channel: 0, stream: 0x0102_0304, length: 1 << 20 };
        assert_eq!(Header::parse_inbound(&header.encode()), Some(header));
    }

    #[test]
    fn malformed_headers_are_refused() {
        let good = Header { kind: Kind::Data, channel: 0, stream: 9, length: 5 }.encode();
        for (at, byte) in [(0, 0), (0, 2), (0, 12), (1, 1), (2, 1), (4, 0), (11, 1)] {
            let mut bad = good;
            bad[at] = byte;
            assert_eq!(Header::parse_inbound(&bad), None, "byte {at} = {byte}");
        }
        let credit = Header { kind: Kind::Credit, channel: 1, stream: 9, length: 3 };
        assert_eq!(Header::parse_inbound(&credit.encode()), None);
    }

    #[test]
    fn an_answer_that_is_too_large_becomes_an_error() {
        let bytes = map_frame(Kind::Reply, 3, &crate::map! { "x" => vec![0u8; MAX_PAYLOAD_OUT] });
        assert_eq!(bytes[0], Kind::Error as u8);
        let failure = Failure::new(crate::failure::Code::Io, "é".repeat(5000));
        assert!(error_frame(1, &failure).len() < 5000);
    }
}

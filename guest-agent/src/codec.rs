//! MessagePack, as much of it as the protocol uses, with bounds on depth and on the number of items.
//!
//! A decoder of a hostile or confused host's bytes must not allocate more than the bytes that it was
//! given, so every length is checked against what is left before anything is reserved.

use thiserror::Error;

/// Maps and arrays nested deeper than this are refused.
const MAX_DEPTH: usize = 8;
/// More values than this in one message are refused: as many as bytes fit into a frame, so that the
/// limit on what a program can be given is the kernel's.
const MAX_ITEMS: usize = 1 << 20;

/// Why bytes are no message of ours.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum CodecError {
    /// The bytes end inside a value.
    #[error("the message ends inside a value")]
    Truncated,
    /// Bytes follow the value.
    #[error("bytes follow the message")]
    Trailing,
    /// Nested too deeply, or too many values.
    #[error("the message is nested too deeply or has too many values")]
    TooComplex,
    /// A type that the protocol does not use.
    #[error("the message has an unknown type 0x{0:02x}")]
    Type(u8),
    /// A string that is no UTF-8, or a map key that is no string.
    #[error("the message has a text that is no UTF-8")]
    Text,
}

/// One MessagePack value. Non-negative integers are always [`Value::Uint`].
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)]
pub enum Value {
    Nil,
    Bool(bool),
    Int(i64),
    Uint(u64),
    Float(f64),
    Str(String),
    Bin(Vec<u8>),
    Array(Vec<Value>),
    Map(Vec<(String, Value)>),
}

macro_rules! from_integer {
    ($($unsigned:ty)*; $($signed:ty)*) => {
        $(impl From<$unsigned> for Value {
            fn from(number: $unsigned) -> Value { Value::Uint(number as u64) }
        })*
        $(impl From<$signed> for Value {
            fn from(number: $signed) -> Value {
                if number < 0 { Value::Int(number as i64) } else { Value::Uint(number as u64) }
            }
        })*
    };
}
from_integer!(u8 u16 u32 u64 usize; i32 i64);

impl From<bool> for Value {
    fn from(flag: bool) -> Value {
        Value::Bool(flag)
    }
}
impl From<f64> for Value {
    fn from(number: f64) -> Value {
        Value::Float(number)
    }
}
impl From<&str> for Value {
    fn from(text: &str) -> Value {
        Value::Str(text.to_owned())
    }
}
impl From<String> for Value {
    fn from(text: String) -> Value {
        Value::Str(text)
    }
}
impl From<&[u8]> for Value {
    fn from(bytes: &[u8]) -> Value {
        Value::Bin(bytes.to_vec())
    }
}
impl From<Vec<u8>> for Value {
    fn from(bytes: Vec<u8>) -> Value {
        Value::Bin(bytes)
    }
}
impl From<Vec<Value>> for Value {
    fn from(values: Vec<Value>) -> Value {
        Value::Array(values)
    }
}
impl<T: Into<Value>> From<Option<T>> for Value {
    fn from(value: Option<T>) -> Value {
        value.map_or(Value::Nil, Into::into)
    }
}

/// Builds a [`Value::Map`] from `key => value` pairs.
#[macro_export]
macro_rules! map {
    ($($key:expr => $value:expr),* $(,)?) => {
        $crate::codec::Value::Map(vec![$(($key.to_string(), $crate::codec::Value::from($value))),*])
    };
}

impl Value {
    /// The value of `key`, when this is a map that has it.
    pub fn get(&self, key: &str) -> Option<&Value> {
        match self {
            Value::Map(pairs) => pairs.iter().find(|(name, _)| name == key).map(|(_, value)| value),
            _ => None,
        }
    }

    /// This value as MessagePack.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(64);
        self.encode_into(&mut out);
        out
    }

    /// Appends this value as MessagePack, in the shortest form of each length and integer.
    pub fn encode_into(&self, out: &mut Vec<u8>) {
        match self {
            Value::Nil => out.push(0xc0),
            Value::Bool(flag) => out.push(0xc2 | u8::from(*flag)),
            Value::Uint(number) => encode_uint(*number, out),
            Value::Int(number) => encode_int(*number, out),
            Value::Float(number) => {
                out.push(0xcb);
                out.extend_from_slice(&number.to_be_bytes());
            }
            Value::Str(text) => {
                let length = text.len();
                if length < 32 {
                    out.push(0xa0 | length as u8);
                } else {
                    encode_length(length, [0xd9, 0xda, 0xdb], out);
                }
                out.extend_from_slice(text.as_bytes());
            }
            Value::Bin(bytes) => {
                encode_length(bytes.len(), [0xc4, 0xc5, 0xc6], out);
                out.extend_from_slice(bytes);
            }
            Value::Array(values) => {
                encode_count(values.len(), 0x90, [0xdc, 0xdd], out);
                values.iter().for_each(|value| value.encode_into(out));
            }
            Value::Map(pairs) => {
                encode_count(pairs.len(), 0x80, [0xde, 0xdf], out);
                for (key, value) in pairs {
                    Value::Str(key.clone()).encode_into(out);
                    value.encode_into(out);
                }
            }
        }
    }

    /// Reads exactly one value.
    ///
    /// # Errors
    /// A [`CodecError`] for anything that is not one whole value within the bounds.
    pub fn decode(bytes: &[u8]) -> Result<Value, CodecError> {
        let mut reader = Reader { bytes, items: 0 };
        let value = reader.value(0)?;
        if reader.bytes.is_empty() {
            Ok(value)
        } else {
            Err(CodecError::Trailing)
        }
    }
}

fn encode_uint(number: u64, out: &mut Vec<u8>) {
    if number < 0x80 {
        out.push(number as u8);
    } else if let Ok(small) = u8::try_from(number) {
        out.extend_from_slice(&[0xcc, small]);
    } else if let Ok(small) = u16::try_from(number) {
        out.push(0xcd);
        out.extend_from_slice(&small.to_be_bytes());
    } else if let Ok(small) = u32::try_from(number) {
        out.push(0xce);
        out.extend_from_slice(&small.to_be_bytes());
    } else {
        out.push(0xcf);
        out.extend_from_slice(&number.to_be_bytes());
    }
}

fn encode_int(number: i64, out: &mut Vec<u8>) {
    if number >= 0 {
        encode_uint(number as u64, out);
    } else if number >= -32 {
        out.push(number as i8 as u8);
    } else if let Ok(small) = i8::try_from(number) {
        out.extend_from_slice(&[0xd0, small as u8]);
    } else if let Ok(small) = i16::try_from(number) {
        out.push(0xd1);
        out.extend_from_slice(&small.to_be_bytes());
    } else if let Ok(small) = i32::try_from(number) {
        out.push(0xd2);
        out.extend_from_slice(&small.to_be_bytes());
    } else {
        out.push(0xd3);
        out.extend_from_slice(&number.to_be_bytes());
    }
}

fn encode_length(length: usize, tags: [u8; 3], out: &mut Vec<u8>) {
    if let Ok(small) = u8::try_from(length) {
        out.extend_from_slice(&[tags[0], small]);
    } else {
        encode_wide(length, [tags[1], tags[2]], out);
    }
}

fn encode_count(count: usize, fix: u8, tags: [u8; 2], out: &mut Vec<u8>) {
    if count < 16 {
        out.push(fix | count as u8);
    } else {
        encode_wide(count, tags, out);
    }
}

/// Lengths above 4 GiB cannot occur: no frame of ours comes near.
fn encode_wide(length: usize, tags: [u8; 2], out: &mut Vec<u8>) {
    if let Ok(small) = u16::try_from(length) {
        out.push(tags[0]);
        out.extend_from_slice(&small.to_be_bytes());
    } else {
        out.push(tags[1]);
        out.extend_from_slice(&(length as u32).to_be_bytes());
    }
}

struct Reader<'a> {
    bytes: &'a [u8],
    items: usize,
}

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], CodecError> {
        if count > self.bytes.len() {
            return Err(CodecError::Truncated);
        }
        let (head, tail) = self.bytes.split_at(count);
        self.bytes = tail;
        Ok(head)
    }

    /// A big-endian integer of `width` bytes, at most 8.
    fn number(&mut self, width: usize) -> Result<u64, CodecError> {
        Ok(self.take(width)?.iter().fold(0, |number, byte| number << 8 | u64::from(*byte)))
    }

    fn length(&mut self, width: usize) -> Result<usize, CodecError> {
        Ok(self.number(width)? as usize)
    }

    fn value(&mut self, depth: usize) -> Result<Value, CodecError> {
        self.items += 1;
        if depth > MAX_DEPTH || self.items > MAX_ITEMS {
            return Err(CodecError::TooComplex);
        }
        let tag = self.take(1)?[0];
        Ok(match tag {
            0x00..=0x7f => Value::Uint(u64::from(tag)),
            0x80..=0x8f => self.map(usize::from(tag & 15), depth)?,
            0x90..=0x9f => self.array(usize::from(tag & 15), depth)?,
            0xa0..=0xbf => self.text(usize::from(tag & 31))?,
            0xc0 => Value::Nil,
            0xc2 | 0xc3 => Value::Bool(tag == 0xc3),
            0xc4..=0xc6 => {
                let length = self.length(1 << (tag - 0xc4))?;
                Value::Bin(self.take(length)?.to_vec())
            }
            0xca => Value::Float(f64::from(f32::from_bits(self.number(4)? as u32))),
            0xcb => Value::Float(f64::from_bits(self.number(8)?)),
            0xcc..=0xcf => Value::Uint(self.number(1 << (tag - 0xcc))?),
            0xd0 => Value::from(i64::from(self.number(1)? as u8 as i8)),
            0xd1 => Value::from(i64::from(self.number(2)? as u16 as i16)),
            0xd2 => Value::from(i64::from(self.number(4)? as u32 as i32)),
            0xd3 => Value::from(self.number(8)? as i64),
            0xd9..=0xdb => {
                let length = self.length(1 << (tag - 0xd9))?;
                self.text(length)?
            }
            0xdc | 0xdd => {
                let count = self.length(2 << (tag - 0xdc))?;
                self.array(count, depth)?
            }
            0xde | 0xdf => {
                let count = self.length(2 << (tag - 0xde))?;
                self.map(count, depth)?
            }
            0xe0..=0xff => Value::Int(i64::from(tag as i8)),
            _ => return Err(CodecError::Type(tag)),
        })
    }

    fn text(&mut self, length: usize) -> Result<Value, CodecError> {
        let bytes = self.take(length)?;
        // Paths may come as str or bin; a str that is no UTF-8 is therefore still good as bytes.
        Ok(match std::str::from_utf8(bytes) {
            Ok(text) => Value::Str(text.to_owned()),
            Err(_) => Value::Bin(bytes.to_vec()),
        })
    }

    fn array(&mut self, count: usize, depth: usize) -> Result<Value, CodecError> {
        // Each value takes a byte at least, so this bounds what is reserved.
        if count > self.bytes.len() {
            return Err(CodecError::Truncated);
        }
        let values = (0..count).map(|_| self.value(depth + 1)).collect::<Result<_, _>>()?;
        Ok(Value::Array(values))
    }

    fn map(&mut self, count: usize, depth: usize) -> Result<Value, CodecError> {
        if count > self.bytes.len() {
            return Err(CodecError::Truncated);
        }
        let mut pairs = Vec::new();
        for _ in 0..count {
            match self.value(depth + 1)? {
                Value::Str(key) => pairs.push((key, self.value(depth + 1)?)),
                _ => return Err(CodecError::Text),
            }
        }
        Ok(Value::Map(pairs))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_survives_a_round_trip() {
        let value = map! {
            "nil" => Value::Nil, "no" => false, "small" => 5u64, "big" => u64::MAX,
            "minus" => -1i64, "low" => i64::MIN, "half" => 0.5f64, "text" => "x".repeat(40),
            "bytes" => vec![0u8; 70_000], "list" => vec![Value::from(300u64), Value::from(-200i64)],
        };
        assert_eq!(Value::decode(&value.encode()).unwrap(), value);
    }

    #[test]
    fn integers_take_their_shortest_form() {
        for (number, length) in [(0u64, 1), (127, 1), (128, 2), (255, 2), (256, 3), (65_536, 5)] {
            assert_eq!(Value::from(number).encode().len(), length);
        }
        assert_eq!(Value::from(-32i64).encode(), [0xe0]);
        assert_eq!(Value::decode(&[0xd0, 0x05]).unwrap(), Value::Uint(5));
    }

    #[test]
    fn hostile_lengths_are_refused_without_allocating() {
        for bytes in [
            &[0xdd, 0xff, 0xff, 0xff, 0xff][..],
            &[0xdf, 0xff, 0xff, 0xff, 0xff],
            &[0xc6, 0xff, 0xff, 0xff, 0xff],
            &[0xdb, 0xff, 0xff, 0xff, 0xff, 0x41],
            &[],
        ] {
            assert_eq!(Value::decode(bytes), Err(CodecError::Truncated));
        }
        assert_eq!(Value::decode(&[0x91; 40]), Err(CodecError::TooComplex));
        assert_eq!(Value::decode(&[0xc0, 0xc0]), Err(CodecError::Trailing));
        assert_eq!(Value::decode(&[0xc1]), Err(CodecError::Type(0xc1)));
        assert_eq!(Value::decode(&[0x81, 0x01, 0x01]), Err(CodecError::Text));
        let count = MAX_ITEMS as u32 + 1;
        let many = [&[0xdd][..], &count.to_be_bytes(), &vec![0xc0; MAX_ITEMS + 1]].concat();
        assert!(matches!(Value::decode(&many), Err(CodecError::TooComplex)));
    }
}

//! The golden frames of the specification, which the host's tests read as well.
#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use hutch_agent::codec::Value;
use hutch_agent::frame::{frame, Header, Kind, HEADER_LEN};
use hutch_agent::parser::{Input, Parser};
use hutch_agent::preamble::{Hello, PREAMBLE_LEN};
use support::json;

fn text<'a>(golden: &'a Value, key: &str) -> Option<&'a str> {
    match golden.get(key) {
        Some(Value::Str(text)) => Some(text),
        _ => None,
    }
}

fn unhex(text: &str) -> Vec<u8> {
    let digit = |at: usize| u8::from_str_radix(&text[at..at + 2], 16).unwrap();
    (0..text.len()).step_by(2).map(digit).collect()
}

/// Bytes stand as `{"hex": …}` in the file.
fn restore(value: &Value) -> Value {
    match value {
        Value::Map(pairs) => match (pairs.len(), text(value, "hex")) {
            (1, Some(hex)) => unhex(hex).into(),
            _ => Value::Map(pairs.iter().map(|(key, it)| (key.clone(), restore(it))).collect()),
        },
        Value::Array(values) => Value::Array(values.iter().map(restore).collect()),
        other => other.clone(),
    }
}

fn goldens() -> Vec<Value> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../spec/golden-frames.json");
    match json::parse(&std::fs::read_to_string(path).unwrap()) {
        Value::Array(list) => list,
        other => panic!("not a list but {other:?}"),
    }
}

#[test]
fn preambles_have_their_bytes() {
    let mut seen = 0;
    for golden in goldens() {
        let Some(kind) = text(&golden, "preamble") else { continue };
        let bytes = unhex(text(&golden, "hex").unwrap());
        let nonce = *unhex(text(&golden, "nonce_hex").unwrap()).first_chunk().unwrap();
        let version = support::uint(&golden, "version") as u8;
        let hello = Hello { version, nonce };
        let name = text(&golden, "name").unwrap();
        if kind == "hello" {
            assert_eq!(hello.encode().to_vec(), bytes, "{name}");
            assert_eq!(Hello::parse(bytes.first_chunk::<PREAMBLE_LEN>().unwrap()), Ok(hello));
        } else {
            assert_eq!(hello.welcome().to_vec(), bytes, "{name}");
        }
        seen += 1;
    }
    assert!(seen >= 2);
}

#[test]
fn frames_have_their_bytes_and_meaning() {
    let mut seen = 0;
    for golden in goldens() {
        if text(&golden, "preamble").is_some() {
            continue;
        }
        let name = text(&golden, "name").unwrap();
        let bytes = unhex(text(&golden, "hex").unwrap());
        let payload = unhex(text(&golden, "payload_hex").unwrap());
        let kind = Kind::from_byte(support::uint(&golden, "type") as u8).unwrap();
        let channel = support::uint(&golden, "channel") as u8;
        let stream = support::uint(&golden, "stream") as u32;
        assert_eq!(frame(kind, channel, stream, [&payload, &[]]), bytes, "{name}");
        if text(&golden, "direction") == Some("to_guest") {
            let header = Header { kind, channel, stream, length: payload.len() };
            let head = bytes.first_chunk::<HEADER_LEN>().unwrap();
            assert_eq!(Header::parse_inbound(head), Some(header), "{name}");
        }
        if let Some(message) = golden.get("message") {
            let message = restore(message);
            assert_eq!(Value::decode(&payload).as_ref(), Ok(&message), "{name}");
            assert_eq!(message.encode(), payload, "{name}");
        }
        seen += 1;
    }
    assert!(seen >= 50);
}

#[test]
fn the_host_s_frames_pass_the_parser_in_a_row() {
    let hello = Hello { version: 1, nonce: [1; 16] };
    let mut bytes = hello.encode().to_vec();
    let mut sent = 0;
    for golden in goldens() {
        let is_frame = text(&golden, "preamble").is_none();
        if is_frame && text(&golden, "direction") == Some("to_guest") {
            bytes.extend_from_slice(&unhex(text(&golden, "hex").unwrap()));
            sent += 1;
        }
    }
    let mut parser = Parser::new();
    let mut frames = 0;
    for chunk in bytes.chunks(37) {
        parser.room()[..chunk.len()].copy_from_slice(chunk);
        parser.filled(chunk.len());
        while let Some(input) = parser.next_input() {
            match input {
                Input::Hello(seen) => assert_eq!(seen, hello),
                Input::Frame(..) => frames += 1,
            }
        }
    }
    // Two of them are the halves of a magic that was cut for this very reason.
    assert_eq!(frames, sent);
}

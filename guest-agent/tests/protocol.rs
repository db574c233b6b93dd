//! Connections, resynchronisation, malformed input, flow control.
#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use hutch_agent::agent::Stage;
use hutch_agent::codec::Value;
use hutch_agent::frame::{Header, Kind, MAX_PAYLOAD_IN, WINDOW};
use hutch_agent::map;
use hutch_agent::preamble::{Hello, MAGIC};
use hutch_agent::scratch::Scratch;
use support::{uint, Host};

fn op(name: &str) -> Value {
    map! { "op" => name }
}

#[test]
fn a_connection_begins_with_welcome_and_hello() {
    let mut host = Host::bare(Stage::Boot);
    let event = host.hello();
    assert_eq!(event.get("event"), Some(&"hello".into()));
    assert_eq!(event.get("stage"), Some(&"boot".into()));
    assert_eq!(uint(&event, "protocol"), 1);
    assert_eq!(host.call(op("ping")), Ok(map! {}));
    assert!(uint(&host.call(op("info")).unwrap(), "memory_bytes") > 0);
}

#[test]
fn a_hello_in_the_middle_of_a_frame_ends_the_connection() {
    let mut host = Host::ready();
    let header = Header { kind: Kind::Request, channel: 0, stream: 1, length: 5000 };
    host.raw(&header.encode());
    host.raw(&[0x80; 1234]);
    host.hello();
    assert_eq!(host.call(op("ping")), Ok(map! {}));
}

#[test]
fn the_last_of_several_hellos_counts() {
    let mut host = Host::ready();
    for nonce in 100..120 {
        host.raw(&Hello { version: 1, nonce: [nonce; 16] }.encode());
    }
    host.hello();
    assert_eq!(host.call(op("ping")), Ok(map! {}));
}

#[test]
fn malformed_frames_are_survived() {
    let request = op("ping").encode();
    let oversized = Header { kind: Kind::Data, channel: 0, stream: 1, length: MAX_PAYLOAD_IN + 1 };
    let attacks: Vec<Vec<u8>> = vec![
        vec![0xff; 100],
        MAGIC.to_vec(),
        oversized.encode().to_vec(),
        hutch_agent::frame::frame(Kind::Request, 0, 0, [&request, &[]]),
        hutch_agent::frame::frame(Kind::Request, 0, 1, [&[0xc1], &[]]),
        hutch_agent::frame::frame(Kind::Reply, 0, 1, [&request, &[]]),
        hutch_agent::frame::frame(Kind::Request, 0, 1, [&[0x91; 1000], &[]]),
    ];
    let mut host = Host::ready();
    for attack in attacks {
        host.raw(&attack);
        // Discarded until the next hello, valid as it is.
        host.send(Kind::Request, 0, 77, &request);
        host.hello();
        assert_eq!(host.call(op("ping")), Ok(map! {}), "after {:02x?}", &attack[..4]);
    }
}

#[test]
fn bad_requests_have_codes() {
    let mut host = Host::ready();
    assert_eq!(host.call(op("nonsense")), Err("unsupported".into()));
    assert_eq!(host.call(map! {}), Err("bad_request".into()));
    assert_eq!(host.call(Value::from(3u64)), Err("bad_request".into()));
    assert_eq!(host.call(map! { "op" => "fs.stat" }), Err("bad_request".into()));
    assert_eq!(host.call(map! { "op" => "fs.stat", "path" => "/none" }), Err("not_found".into()));
    assert_eq!(host.call(map! { "op" => "exec.list", "extra" => 1u64 }).map(drop), Ok(()));
    let mut early = Host::bare(Stage::Boot);
    early.hello();
    assert_eq!(early.call(map! { "op" => "fs.stat", "path" => "/" }), Err("not_ready".into()));
    assert_eq!(early.call(op("sync")), Err("not_ready".into()));
    assert_eq!(early.call(op("prefetch")), Err("not_ready".into()));
}

#[test]
fn a_stream_that_is_gone_is_ignored() {
    let mut host = Host::ready();
    host.send(Kind::Data, 0, 9, b"x");
    host.send(Kind::End, 0, 9, &[]);
    host.credit(9, 1, 5);
    host.send(Kind::Close, 0, 9, &[]);
    assert_eq!(host.call(op("ping")), Ok(map! {}));
}

#[test]
fn a_transfer_stops_at_the_window_and_goes_on_with_credit() {
    let scratch = Scratch::new("window");
    let path = scratch.path().join("big");
    std::fs::write(&path, vec![7; 3 * WINDOW]).unwrap();
    let mut host = Host::ready();
    let request = map! { "op" => "fs.read", "path" => path.to_str().unwrap() };
    let stream = host.stream(request);
    let mut got = 0;
    assert_eq!(host.next_of(stream).kind, Kind::Reply);
    while got + (64 << 10) <= WINDOW {
        got += host.next_of(stream).payload.len();
    }
    // The window has no room for another frame: other streams go on, this one has stopped.
    assert_eq!(host.call(op("ping")), Ok(map! {}));
    host.credit(stream, 1, got);
    let rest = host.collect(stream);
    assert_eq!(got + rest.data[0].len(), 3 * WINDOW);
    assert_eq!(uint(rest.result(), "bytes"), 3 * WINDOW as u64);
}

#[test]
fn data_beyond_the_window_breaks_the_connection() {
    let mut host = Host::ready();
    let stream = host.start("w", "sleep 100", map! { "stdin" => true });
    assert_eq!(host.next_of(stream).kind, Kind::Reply);
    for _ in 0..40 {
        host.send(Kind::Data, 0, stream, &[0; 64 << 10]);
    }
    host.hello();
    let signal = map! { "op" => "exec.signal", "id" => "w", "signal" => 9u64 };
    assert_eq!(host.call(signal), Ok(map! {}));
}

#[test]
fn a_reused_stream_id_breaks_the_connection() {
    let mut host = Host::ready();
    let stream = host.start("held", "sleep 100", map! {});
    assert_eq!(host.next_of(stream).kind, Kind::Reply);
    // The same id again breaks the protocol.
    host.send(Kind::Request, 0, stream, &op("ping").encode());
    host.hello();
    let signal = map! { "op" => "exec.signal", "id" => "held", "signal" => 9u64 };
    assert_eq!(host.call(signal), Ok(map! {}));
}

#[test]
fn an_identity_makes_a_new_life_of_a_machine_that_has_run_programs() {
    let scratch = Scratch::new("identity");
    let mut host = Host::at(Stage::Ready, scratch.path().into());
    host.hello();
    let identify = |host: &mut Host, count: u64, digit: u8| {
        let id = vec![digit; 32];
        let request = map! { "op" => "identity", "nonce" => &b"n"[..], "generation" => count,
        "machine_id" => id.as_slice() };
        let reply = host.call(request).unwrap();
        // The file follows the reply, and what looks at files waits for it.
        host.call(map! { "op" => "fs.stat", "path" => "/" }).unwrap();
        let file = std::fs::read_to_string(scratch.path().join("run/hutch/generation")).unwrap();
        assert_eq!(file, format!("{}\n", uint(&reply, "generation")));
        assert_eq!(reply.get("sockets_destroyed"), Some(&0u64.into()));
        uint(&reply, "generation")
    };
    assert_eq!(identify(&mut host, 0, b'0'), 0);
    assert_eq!(identify(&mut host, 3, b'1'), 3);
    let stream = host.start("lived", "true", map! {});
    host.collect(stream);
    assert_eq!(identify(&mut host, 3, b'1'), 3, "the same once more");
    assert_eq!(identify(&mut host, 1, b'2'), 4, "a fork");
    assert_eq!(identify(&mut host, 9, b'2'), 9, "a restore");
    let event = host.hello();
    assert_eq!((uint(&event, "generation"), event.get("frozen")), (9, Some(&false.into())));
    // The clock alone is asked for.
    let reply = host.call(map! { "op" => "identity", "nonce" => &b"n"[..] }).unwrap();
    assert_eq!(uint(&reply, "generation"), 9);
}

//! What is left of sessions: nothing. Alone in its process, since it counts for all of it.
#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use hutch_agent::exec::ring;
use hutch_agent::map;
use support::Host;

#[test]
fn a_released_session_leaves_no_memory() {
    let mut host = Host::ready();
    for round in 0..20 {
        let id = format!("r{round}");
        let stream = host.start(&id, "cat; echo out; echo err >&2", map! { "stdin" => true });
        host.feed(stream, b"in");
        // As hosts do: the last bytes are not acknowledged, the session is released.
        assert_eq!(host.collect(stream).data[0], b"inout\n");
        assert!(ring::used() > 0);
        host.call(map! { "op" => "exec.release", "id" => id }).unwrap();
    }
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
    while ring::used() > 0 {
        assert!(std::time::Instant::now() < deadline, "{} bytes are held", ring::used());
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
}

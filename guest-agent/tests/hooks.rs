//! How programs learn that their machine has become another.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::fs;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use hutch_agent::agent::{Agent, Setup, Stage};
use hutch_agent::codec::Value;
use hutch_agent::frame::HEADER_LEN;
use hutch_agent::hooks;
use hutch_agent::scratch::Scratch;
use hutch_agent::stream::Connection;

#[test]
fn programs_are_told_once_by_hooks_in_their_order() {
    let scratch = Scratch::new("hooks");
    let directory = scratch.path().join("etc/hutch/generation.d");
    fs::create_dir_all(&directory).unwrap();
    let log = scratch.path().join("log");
    for (name, end) in [("2-second", "exit 3"), ("1-first", "true")] {
        let script = format!("#!/bin/sh\necho {name} $1 >>{}\n{end}\n", log.display());
        fs::write(directory.join(name), script).unwrap();
        fs::set_permissions(directory.join(name), fs::Permissions::from_mode(0o755)).unwrap();
    }
    let (port, mut host) = UnixStream::pair().unwrap();
    port.set_nonblocking(true).unwrap();
    let setup = Setup { stage: Stage::Ready, privileged: false, root: scratch.path().into() };
    let agent = Agent::start(Arc::new(port.into()), setup).unwrap();
    let epoch = agent.link.reset(vec![]);
    agent.events.set(Some(Connection::new(epoch, agent.link.clone())));
    hooks::tell(&agent);
    assert!(!log.exists(), "there is nothing to tell");
    agent.generation.renew(6, b"clone", true);
    hooks::tell(&agent);
    hooks::tell(&agent);
    let mut header = [0; HEADER_LEN];
    host.read_exact(&mut header).unwrap();
    let length = u32::from_le_bytes(*header[8..].first_chunk().unwrap());
    let mut payload = vec![0; length as usize];
    host.read_exact(&mut payload).unwrap();
    let event = Value::decode(&payload).unwrap();
    assert_eq!(event.get("generation"), Some(&6u64.into()));
    assert_eq!(event.get("hooks"), Some(&2u64.into()));
    assert_eq!(event.get("failed"), Some(&vec![Value::from("2-second")].into()));
    assert_eq!(fs::read_to_string(log).unwrap(), "1-first 6\n2-second 6\n");
}

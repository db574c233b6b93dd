//! How programs learn that their machine has become another.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::fs;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use hutch_agent::agent::{Agent, Setup, Stage};
use hutch_agent::codec::Value;
use hutch_agent::frame::HEADER_LEN;
use hutch_agent::hooks;
use hutch_agent::scratch::Scratch;
use hutch_agent::stream::Connection;

/// An agent whose hooks write their name and the number to `log`.
struct Machine {
    agent: Arc<Agent>,
    host: UnixStream,
    log: PathBuf,
    scratch: Scratch,
}

impl Machine {
    /// Each hook has a name, and a line that it ends with.
    fn new(name: &str, hooks: &[(&str, &str)]) -> Self {
        let scratch = Scratch::new(name);
        let directory = scratch.path().join("etc/hutch/generation.d");
        fs::create_dir_all(&directory).unwrap();
        let log = scratch.path().join("log");
        for (name, end) in hooks {
            let script = format!("#!/bin/sh\necho {name} $1 >>{}\n{end}\n", log.display());
            fs::write(directory.join(name), script).unwrap();
            let mode = fs::Permissions::from_mode(0o755);
            fs::set_permissions(directory.join(name), mode).unwrap();
        }
        let (port, host) = UnixStream::pair().unwrap();
        port.set_nonblocking(true).unwrap();
        let setup = Setup { stage: Stage::Ready, privileged: false, root: scratch.path().into() };
        let agent = Agent::start(Arc::new(port.into()), setup).unwrap();
        let epoch = agent.link.reset(vec![]);
        agent.events.set(Some(Connection::new(epoch, agent.link.clone())));
        Self { agent, host, log, scratch }
    }

    fn event(&mut self) -> Value {
        let mut header = [0; HEADER_LEN];
        self.host.read_exact(&mut header).unwrap();
        let length = u32::from_le_bytes(*header[8..].first_chunk().unwrap());
        let mut payload = vec![0; length as usize];
        self.host.read_exact(&mut payload).unwrap();
        Value::decode(&payload).unwrap()
    }

    fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }
}

#[test]
fn programs_are_told_once_by_hooks_in_their_order() {
    let mut machine = Machine::new("hooks", &[("2-second", "exit 3"), ("1-first", "true")]);
    hooks::tell(&machine.agent);
    assert_eq!(machine.log(), "", "there is nothing to tell");
    machine.agent.generation.renew(6, b"clone", true);
    hooks::tell(&machine.agent);
    hooks::tell(&machine.agent);
    let event = machine.event();
    assert_eq!(event.get("generation"), Some(&6u64.into()));
    assert_eq!(event.get("hooks"), Some(&2u64.into()));
    assert_eq!(event.get("failed"), Some(&vec![Value::from("2-second")].into()));
    assert_eq!(machine.log(), "1-first 6\n2-second 6\n");
}

#[test]
fn no_hook_begins_with_the_number_of_an_earlier_life() {
    let waits = "until [ $1 != 6 ] || [ -e \"${0%/etc/*}/go\" ]; do sleep 0.01; done";
    let mut machine = Machine::new("lives", &[("1-first", waits), ("2-second", "true")]);
    machine.agent.generation.renew(6, b"source", true);
    hooks::tell(&machine.agent);
    while machine.log() != "1-first 6\n" {
        thread::sleep(Duration::from_millis(1));
    }
    // Captured here, it goes on in a child.
    machine.agent.generation.renew(7, b"child", true);
    hooks::tell(&machine.agent);
    fs::write(machine.scratch.path().join("go"), "").unwrap();
    assert_eq!(machine.event().get("generation"), Some(&7u64.into()));
    assert_eq!(machine.log(), "1-first 6\n1-first 7\n2-second 7\n");
}

//! The agent as a plain process: `listen --listen SOCKET` serves the protocol to one client after the
//! other, on this machine's own files and programs. For the conformance tests of the host's side.
//!
//! As behind a virtio port, the agent itself never notices that a client has gone.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::{env, thread};

use hutch_agent::agent::{Agent, Setup, Stage};
use hutch_agent::session::{self, EndOfInput};

fn main() -> ExitCode {
    let mut arguments = env::args_os().skip(1);
    match (arguments.next(), arguments.next()) {
        (Some(flag), Some(path)) if flag == "--listen" => match listen(&PathBuf::from(path)) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("listen: {error}");
                ExitCode::FAILURE
            }
        },
        _ => {
            eprintln!("usage: listen --listen SOCKET");
            ExitCode::from(2)
        }
    }
}

fn listen(path: &PathBuf) -> io::Result<()> {
    let listener = UnixListener::bind(path)?;
    let (ours, port) = UnixStream::pair()?;
    port.set_nonblocking(true)?;
    let port: Arc<OwnedFd> = Arc::new(port.into());
    let setup = Setup { stage: Stage::Ready, privileged: false, root: PathBuf::from("/") };
    let agent = Agent::start(port.clone(), setup)?;
    thread::spawn(move || session::serve(&agent, &port, EndOfInput::Closed));
    for client in listener.incoming() {
        bridge(&client?, &ours)?;
    }
    Ok(())
}

/// Carries bytes both ways until the client has gone. What the agent sends afterwards reaches the next
/// client, as it would through a port; the protocol's preamble exists for that.
fn bridge(client: &UnixStream, port: &UnixStream) -> io::Result<()> {
    let (mut to_client, mut from_port) = (client.try_clone()?, port.try_clone()?);
    let sender = thread::spawn(move || {
        let mut buffer = vec![0; 256 << 10];
        loop {
            match from_port.read(&mut buffer) {
                Ok(count) if count > 0 && to_client.write_all(&buffer[..count]).is_ok() => {}
                _ => return,
            }
        }
    });
    let mut port = port.try_clone()?;
    let _ = io::copy(&mut client.try_clone()?, &mut port);
    let _ = client.shutdown(Shutdown::Both);
    // The sender notices with its next write; a hello makes the agent write at once.
    let nonce = [0; 16];
    port.write_all(&hutch_agent::preamble::Hello { version: 1, nonce }.encode())?;
    let _ = sender.join();
    Ok(())
}

//! The reading side of the port: connections, their streams, and which operation a request asks for.
//!
//! What cannot block is answered at once on the reading thread; everything else gets a worker.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;

use crate::agent::Agent;
use crate::codec::Value;
use crate::exec::{list, start};
use crate::failure::{Code, Failure};
use crate::fields::Fields;
use crate::frame::{map_frame, Header, Kind};
use crate::map;
use crate::parser::{Input, Parser};
use crate::preamble::Hello;
use crate::stream::{Connection, Stream};
use crate::sys::{self, Epoll};
use crate::{files, freeze, identity, mount, prefetch, shutdown, stats, tar, tunnel};

/// What the end of the port's bytes means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EndOfInput {
    /// The host is away; it may come back (a virtio port).
    Away,
    /// There is nobody any more (a socket).
    Closed,
}

/// Reads the port and serves what it asks for, until the port is gone for good.
///
/// # Errors
/// What made reading the port impossible.
pub fn serve(agent: &Arc<Agent>, port: &OwnedFd, end: EndOfInput) -> io::Result<()> {
    let epoll = Epoll::new()?;
    let edges = libc::EPOLLIN | libc::EPOLLRDHUP | libc::EPOLLET;
    epoll.add(port.as_raw_fd(), edges, 0)?;
    let mut session = Session { agent, connection: None };
    let mut parser = Parser::new();
    loop {
        match sys::read(port.as_raw_fd(), parser.room()) {
            // Only an edge tells that the host is back: nothing polls until then.
            Ok(0) if end == EndOfInput::Away => drop(epoll.wait(None)?),
            Ok(0) => break,
            Ok(count) => {
                parser.filled(count);
                session.take(&mut parser);
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => drop(epoll.wait(None)?),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => {
                session.end();
                agent.link.close();
                return Err(error);
            }
        }
    }
    session.end();
    agent.link.close();
    Ok(())
}

struct Session<'a> {
    agent: &'a Arc<Agent>,
    connection: Option<Arc<Connection>>,
}

impl Session<'_> {
    fn take(&mut self, parser: &mut Parser) {
        while let Some(input) = parser.next_input() {
            let accepted = match input {
                Input::Hello(hello) => {
                    self.begin(&hello);
                    // Without a common version nothing that follows can be understood.
                    hello.common_version() > 0
                }
                Input::Frame(header, payload) => self.frame(&header, payload).is_ok(),
            };
            if !accepted {
                parser.discard();
            }
        }
    }

    fn end(&mut self) {
        if let Some(connection) = self.connection.take() {
            connection.close();
        }
        self.agent.events.set(None);
    }

    fn begin(&mut self, hello: &Hello) {
        // Nothing of the earlier connection may be sent between WELCOME and the new one's frames,
        // so the link forgets it first.
        let epoch = self.agent.link.reset(hello.welcome().to_vec());
        self.end();
        if hello.common_version() == 0 {
            return;
        }
        let connection = Connection::new(epoch, self.agent.link.clone());
        let event = self.agent.hello_event();
        connection.link.send_now(epoch, map_frame(Kind::Event, 0, &event));
        self.agent.events.set(Some(connection.clone()));
        self.connection = Some(connection);
    }

    /// # Errors
    /// A reason when the frame is malformed.
    fn frame(&self, header: &Header, payload: &[u8]) -> Result<(), &'static str> {
        let Some(connection) = &self.connection else { return Ok(()) };
        self.agent.link.wait_for_listener();
        match header.kind {
            Kind::Request => {
                let value = Value::decode(payload).map_err(|_| "a malformed REQUEST")?;
                match connection.open(header.stream) {
                    Ok(stream) => self.request(&stream, value),
                    // A stream id that is in use breaks the protocol; too many streams do not.
                    Err(failure) if failure.code == Code::BadRequest => return Err("a reused id"),
                    Err(failure) => connection.link.send_now(
                        connection.epoch,
                        crate::frame::error_frame(header.stream, &failure),
                    ),
                }
            }
            Kind::Close => {
                if let Some(stream) = connection.find(header.stream) {
                    stream.close();
                }
            }
            _ => {
                if let Some(stream) = connection.find(header.stream) {
                    stream.accept(header, payload)?;
                }
            }
        }
        Ok(())
    }

    fn request(&self, stream: &Arc<Stream>, value: Value) {
        let agent = self.agent;
        let fields = Fields::new(value);
        let outcome = fields.and_then(|fields| {
            let op = fields.str("op")?.to_owned();
            if let Some(outcome) = immediate(agent, &op, &fields) {
                stream.finish(Kind::Reply, outcome);
                return Ok(());
            }
            let (agent, own) = (agent.clone(), stream.clone());
            agent.workers.clone().run(move || work(&agent, &op, &fields, &own))
        });
        if let Err(failure) = outcome {
            stream.finish(Kind::Reply, Err(failure));
        }
    }
}

/// Operations that never block; `None` for all others.
fn immediate(agent: &Arc<Agent>, op: &str, fields: &Fields) -> Option<Result<Value, Failure>> {
    Some(match op {
        "ping" => Ok(map! {}),
        "exec.list" => Ok(list::list(&agent.execs)),
        "exec.signal" => start::signal(&agent.execs, fields),
        "exec.release" => fields.str("id").and_then(|id| agent.execs.release(id)).map(|()| map! {}),
        _ => return None,
    })
}

fn work(agent: &Arc<Agent>, op: &str, fields: &Fields, stream: &Arc<Stream>) {
    if op == "identity" {
        // It has something to do after its reply.
        return identity::set(agent, fields, stream);
    }
    if let Some(outcome) = unary(agent, op, fields) {
        stream.finish(Kind::Reply, outcome);
    } else if let Err(failure) = streaming(agent, op, fields, stream) {
        stream.finish(Kind::Result, Err(failure));
    }
}

/// Operations that end with one reply; `None` for all others.
fn unary(agent: &Arc<Agent>, op: &str, fields: &Fields) -> Option<Result<Value, Failure>> {
    if op.starts_with("fs.") {
        let operation = files::unary(op)?;
        return Some(agent.require_ready().and_then(|()| operation(fields)));
    }
    Some(match op {
        "info" => Ok(agent.info()),
        "mount.root" => mount::root(agent, fields),
        "mount.overlay" => mount::overlay(agent, fields),
        "freeze" => freeze::freeze(agent, fields),
        "thaw" => freeze::thaw(agent),
        "prefetch" => prefetch::prefetch(agent, fields),
        "sync" => mount::sync(agent),
        "stats" => stats::stats(agent),
        "processes" => stats::processes::processes(agent),
        "shutdown" => shutdown::shutdown(agent, fields),
        _ => return None,
    })
}

/// Operations that answer by themselves when they succeed.
fn streaming(
    agent: &Arc<Agent>,
    op: &str,
    fields: &Fields,
    stream: &Arc<Stream>,
) -> Result<(), Failure> {
    let setup = &agent.setup;
    match op {
        "exec.start" => {
            agent.require_ready()?;
            start::start(&agent.execs, &setup.root, setup.privileged, fields, stream)
        }
        "exec.attach" => start::attach(&agent.execs, fields, stream),
        "fs.list" | "fs.read" | "fs.write" | "tar.read" | "tar.write" => {
            agent.require_ready()?;
            match op {
                "fs.list" => files::read::list(fields, stream),
                "fs.read" => files::read::read(fields, stream),
                "fs.write" => files::write::write(fields, stream),
                "tar.read" => tar::pack::read(fields, stream),
                _ => tar::unpack::write(fields, stream),
            }
        }
        "tunnel" => tunnel::tunnel(fields, stream),
        _ => Err(Failure::new(Code::Unsupported, format!("there is no operation {op}"))),
    }
}

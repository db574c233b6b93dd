//! `tunnel`: a TCP connection in the guest, carried on a stream.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream, ToSocketAddrs};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use crate::codec::Value;
use crate::failure::{Code, Context, Failure};
use crate::fields::Fields;
use crate::frame::{Kind, DATA_CHUNK, HEADER_LEN};
use crate::map;
use crate::stream::{Input, Stream};
use crate::sys;

const CONNECT_LIMIT: Duration = Duration::from_secs(15);
/// How long a write to the peer may wait before the stream is looked at.
const LOOK_UP: Duration = Duration::from_secs(1);
const STACK: usize = 128 << 10;

/// Connects and carries bytes both ways until both sides have ended.
///
/// # Errors
/// `refused`, `timeout`, or `io` when the connection breaks.
pub fn tunnel(fields: &Fields, stream: &Arc<Stream>) -> Result<(), Failure> {
    let host = fields.opt_str("host")?.unwrap_or("127.0.0.1");
    let port = fields.opt_u64("port")?.and_then(|port| u16::try_from(port).ok());
    let port = port.filter(|port| *port > 0);
    let port = port.ok_or_else(|| Failure::new(Code::BadRequest, "port is not a port"))?;
    let socket = connect(host, port)?;
    stream.reply(&map! {});
    let outgoing = socket.try_clone().context(|| "share the connection")?;
    let (own, spawned) = (stream.clone(), thread::Builder::new().name("tunnel".into()));
    let sender = spawned
        .stack_size(STACK)
        .spawn(move || send(&outgoing, &own))
        .context(|| "start a thread")?;
    let received = receive(&socket, stream);
    if let Err(failure) = received {
        // Both the peer and a sender that waits for the host must learn of it.
        let _ = socket.shutdown(Shutdown::Both);
        stream.finish(Kind::Result, Err(failure));
        let _ = sender.join();
        return Ok(());
    }
    sender.join().unwrap_or_else(|_| Err(Failure::cancelled()))?;
    stream.finish(Kind::Result, Ok(Value::Map(Vec::new())));
    Ok(())
}

fn connect(host: &str, port: u16) -> Result<TcpStream, Failure> {
    let what = || format!("connect to {host} port {port}");
    // Names other than localhost would need a resolver, which a static program does not have.
    let host = if host == "localhost" { "127.0.0.1" } else { host };
    let address = host.parse().map_err(|_| {
        Failure::new(Code::BadRequest, format!("{host} is not an address or localhost"))
    });
    let address: std::net::IpAddr = address?;
    let mut addresses = (address, port).to_socket_addrs().context(what)?;
    let target = addresses.next().ok_or_else(|| Failure::new(Code::BadRequest, what()))?;
    let socket = TcpStream::connect_timeout(&target, CONNECT_LIMIT).map_err(|error| {
        let code = match error.kind() {
            io::ErrorKind::TimedOut => Code::Timeout,
            _ => Code::Refused,
        };
        Failure { code, ..Failure::io(what(), &error) }
    })?;
    let _ = socket.set_nodelay(true);
    socket.set_write_timeout(Some(LOOK_UP)).context(what)?;
    Ok(socket)
}

/// From the host to the peer. Ends both directions when the host has lost interest.
fn send(socket: &TcpStream, stream: &Stream) -> Result<(), Failure> {
    loop {
        match stream.receive() {
            Ok(Input::Data(bytes)) => {
                if let Err(error) = write_all(socket, stream, &bytes) {
                    // The peer may still send; the host learns of a reset from that direction.
                    if error.kind() != io::ErrorKind::BrokenPipe {
                        let _ = socket.shutdown(Shutdown::Both);
                        return Err(Failure::io("send to the peer", &error));
                    }
                }
                stream.consumed(bytes.len());
            }
            Ok(Input::End) => {
                let _ = socket.shutdown(Shutdown::Write);
                return Ok(());
            }
            Ok(Input::Control(_)) => {}
            Err(failure) => {
                reset(socket);
                return Err(failure);
            }
        }
    }
}

/// Looks up from a peer that takes nothing, in case the host has lost interest.
fn write_all(mut socket: &TcpStream, stream: &Stream, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match socket.write(bytes) {
            Ok(count) => bytes = &bytes[count..],
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock && !stream.is_closed() => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// From the peer to the host.
fn receive(mut socket: &TcpStream, stream: &Stream) -> Result<(), Failure> {
    loop {
        let mut buffer = Stream::buffer();
        buffer.resize(HEADER_LEN + DATA_CHUNK, 0);
        match socket.read(&mut buffer[HEADER_LEN..]) {
            Ok(0) => return stream.end(),
            Ok(count) => {
                buffer.truncate(HEADER_LEN + count);
                stream.send(buffer)?;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(Failure::io("receive from the peer", &error)),
        }
    }
}

/// Lets the peer see a reset rather than an orderly end.
fn reset(socket: &TcpStream) {
    let linger = libc::linger { l_onoff: 1, l_linger: 0 };
    // SAFETY: the pointer and size are those of a valid linger.
    let _ = sys::check(unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_LINGER,
            std::ptr::addr_of!(linger).cast(),
            std::mem::size_of::<libc::linger>() as libc::socklen_t,
        )
    });
    let _ = socket.shutdown(Shutdown::Both);
}

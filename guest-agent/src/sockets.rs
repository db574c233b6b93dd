//! The connections that a clone inherits: TCP connections that leave the machine are its source's.
//!
//! Each is destroyed through the kernel's socket diagnosis (SOCK_DESTROY), so that its program is told
//! at once (ECONNABORTED) instead of waiting for a peer that knows another machine. Connections whose
//! ends are both in this machine live on: both ends were copied. Listening sockets stay.

use std::collections::HashSet;
use std::io;
use std::net::{IpAddr, Ipv6Addr};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::OnceLock;

use crate::sys;

/// Message types of NETLINK_SOCK_DIAG.
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const SOCK_DESTROY: u16 = 21;
/// Flags and types of netlink itself.
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLM_F_DUMP: u16 = 0x300;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;

/// struct nlmsghdr, inet_diag_req_v2 before its id, inet_diag_sockid, inet_diag_msg before its id.
const HEADER: usize = 16;
const REQUEST: usize = 8;
const ID: usize = 48;
const ANSWER: usize = 4;
/// A dump comes in parts no larger than this.
const PART: usize = 32 << 10;
/// The kernel answers at once; what does not is not waited for.
const LIMIT: libc::timeval = libc::timeval { tv_sec: 2, tv_usec: 0 };

/// States of TCP (net/tcp_states.h) that are no connection: TIME_WAIT, CLOSE, LISTEN.
const NO_CONNECTION: u32 = 1 << 6 | 1 << 7 | 1 << 10;

type End = (IpAddr, u16);

/// One connection, as the kernel names it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Connection {
    family: u8,
    /// inet_diag_sockid, which SOCK_DESTROY takes back unchanged.
    id: [u8; ID],
    ends: (End, End),
}

/// Destroys every TCP connection that leaves the machine; gives their number. `None`: this kernel
/// cannot.
///
/// Only connections of the machine's own network namespace are found: what programs have made of their
/// own behind it reaches the outside by way of addresses that are this machine's again.
///
/// # Errors
/// What the kernel says.
pub fn destroy_leaving() -> io::Result<Option<u64>> {
    if allocated() == Some(0) {
        return Ok(Some(0));
    }
    let socket = match open() {
        Err(error) if error.raw_os_error() == Some(libc::EPROTONOSUPPORT) => return Ok(None),
        result => result?,
    };
    let mut all = Vec::new();
    for family in [libc::AF_INET as u8, libc::AF_INET6 as u8] {
        match dump(&socket, family) {
            Ok(found) => all.extend(found),
            // Without the module, or without IPv6.
            Err(error) if is_missing(&error) && family == libc::AF_INET as u8 => return Ok(None),
            Err(error) if is_missing(&error) => {}
            Err(error) => return Err(error),
        }
    }
    let mut destroyed = 0;
    for connection in leaving(&all) {
        match destroy(&socket, connection) {
            Ok(()) => destroyed += 1,
            // It has ended by itself.
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {}
            Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => return Ok(None),
            Err(error) => return Err(error),
        }
    }
    Ok(Some(destroyed))
}

/// How many TCP sockets there are, in whatever namespace; `None` where the kernel does not tell. To
/// ask it for a list costs a clone ten times as much.
fn allocated() -> Option<u64> {
    // Opened with the first call: see `prepare`.
    static COUNTS: OnceLock<Option<OwnedFd>> = OnceLock::new();
    let counts = COUNTS.get_or_init(|| sys::open("/proc/net/sockstat", libc::O_RDONLY, 0).ok());
    allocated_in(&sys::read_again(counts.as_ref()?).ok()?)
}

fn allocated_in(counts: &str) -> Option<u64> {
    let mut words = counts.lines().find_map(|line| line.strip_prefix("TCP: "))?.split(' ');
    words.find(|word| *word == "alloc")?;
    words.next()?.parse().ok()
}

/// Opens what each clone looks into. Of use before a machine is frozen.
pub fn prepare() {
    allocated();
}

fn is_missing(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOENT | libc::EOPNOTSUPP | libc::EINVAL))
}

/// Those with an end outside: neither through loopback, nor to another socket of the same machine.
fn leaving(all: &[Connection]) -> impl Iterator<Item = &Connection> {
    let known: HashSet<_> = all.iter().map(|it| it.ends).collect();
    all.iter().filter(move |connection| {
        let (local, peer) = connection.ends;
        let stays = local.0.is_loopback() && peer.0.is_loopback();
        !stays && !known.contains(&(peer, local))
    })
}

fn open() -> io::Result<OwnedFd> {
    let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC;
    // SAFETY: socket takes integers, and the descriptor that it makes is nobody else's.
    let socket = unsafe {
        let fd = sys::check(libc::socket(libc::AF_NETLINK, kind, libc::NETLINK_SOCK_DIAG))?;
        OwnedFd::from_raw_fd(fd)
    };
    let size = std::mem::size_of_val(&LIMIT) as libc::socklen_t;
    let limit = std::ptr::from_ref(&LIMIT).cast();
    // SAFETY: the pointer and size are those of a timeval, which the option takes.
    sys::check(unsafe {
        libc::setsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_RCVTIMEO, limit, size)
    })?;
    Ok(socket)
}

fn message(kind: u16, flags: u16, family: u8, states: u32, id: &[u8; ID]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEADER + REQUEST + ID);
    bytes.extend(((HEADER + REQUEST + ID) as u32).to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend((NLM_F_REQUEST | flags).to_ne_bytes());
    bytes.extend([0; 8]);
    bytes.extend([family, libc::IPPROTO_TCP as u8, 0, 0]);
    bytes.extend(states.to_ne_bytes());
    bytes.extend(id);
    bytes
}

fn dump(socket: &OwnedFd, family: u8) -> io::Result<Vec<Connection>> {
    let request = message(SOCK_DIAG_BY_FAMILY, NLM_F_DUMP, family, !NO_CONNECTION, &[0; ID]);
    sys::write(socket.as_raw_fd(), &request)?;
    let mut found = Vec::new();
    let mut buffer = vec![0; PART];
    loop {
        let count = sys::retry(|| sys::read(socket.as_raw_fd(), &mut buffer))?;
        for (kind, body) in messages(&buffer[..count]) {
            match kind {
                NLMSG_DONE => return Ok(found),
                NLMSG_ERROR => acknowledged(body)?,
                SOCK_DIAG_BY_FAMILY => found.extend(parse(body)),
                _ => {}
            }
        }
    }
}

fn destroy(socket: &OwnedFd, connection: &Connection) -> io::Result<()> {
    let request = message(SOCK_DESTROY, NLM_F_ACK, connection.family, !0, &connection.id);
    sys::write(socket.as_raw_fd(), &request)?;
    let mut buffer = [0; 1024];
    let count = sys::retry(|| sys::read(socket.as_raw_fd(), &mut buffer))?;
    let answer = messages(&buffer[..count]).find(|(kind, _)| *kind == NLMSG_ERROR);
    answer.map_or(Err(io::ErrorKind::InvalidData.into()), |(_, body)| acknowledged(body))
}

/// The number in an NLMSG_ERROR: 0, or an errno negated.
fn acknowledged(body: &[u8]) -> io::Result<()> {
    match body.first_chunk().map(|bytes| i32::from_ne_bytes(*bytes)) {
        Some(0) => Ok(()),
        Some(number) => Err(io::Error::from_raw_os_error(-number)),
        None => Err(io::ErrorKind::InvalidData.into()),
    }
}

/// The (type, body) of each message in what was read.
fn messages(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = u32::from_ne_bytes(*bytes.first_chunk()?) as usize;
        let kind = u16::from_ne_bytes([*bytes.get(4)?, *bytes.get(5)?]);
        let body = bytes.get(HEADER..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, body))
    })
}

/// struct inet_diag_msg.
fn parse(body: &[u8]) -> Option<Connection> {
    let family = *body.first()?;
    let id: [u8; ID] = *body.get(ANSWER..)?.first_chunk()?;
    let port = |at: usize| u16::from_be_bytes([id[at], id[at + 1]]);
    let address = |at: usize| -> Option<IpAddr> {
        if i32::from(family) == libc::AF_INET {
            return Some(IpAddr::from(*id[at..].first_chunk::<4>()?));
        }
        // An IPv4 connection of an IPv6 socket has its other end among those of IPv4.
        Some(Ipv6Addr::from(*id[at..].first_chunk::<16>()?).to_canonical())
    };
    let ends = ((address(4)?, port(0)), (address(20)?, port(2)));
    Some(Connection { family, id, ends })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::net::{TcpListener, TcpStream};

    fn connection(local: &str, peer: &str) -> Connection {
        let end = |text: &str| {
            let address: std::net::SocketAddr = text.parse().unwrap();
            (address.ip().to_canonical(), address.port())
        };
        Connection { family: 2, id: [0; ID], ends: (end(local), end(peer)) }
    }

    #[test]
    fn only_connections_with_an_end_outside_leave() {
        let all = [
            connection("127.0.0.1:80", "127.0.0.1:4000"),
            connection("[::1]:80", "[::1]:4000"),
            connection("10.0.0.2:80", "10.0.0.2:4001"),
            connection("[::ffff:10.0.0.2]:4001", "10.0.0.2:80"),
            connection("10.0.0.2:4002", "10.0.0.2:81"),
            connection("10.0.0.2:4003", "93.184.216.34:443"),
            connection("[fe80::2]:4004", "[fe80::1]:22"),
            connection("127.0.0.1:81", "[::ffff:127.0.0.1]:4005"),
        ];
        assert_eq!(leaving(&all).collect::<Vec<_>>(), [&all[4], &all[5], &all[6]]);
    }

    #[test]
    fn sockets_are_counted() {
        let text =
            "sockets: used 9\nTCP: inuse 2 orphan 0 tw 4 alloc 31 mem 1\nUDP: inuse 1 mem 0\n";
        assert_eq!(allocated_in(text), Some(31));
        assert_eq!(allocated_in("TCP: inuse 0 orphan 0 tw 0 alloc\n"), None);
        assert_eq!(allocated_in("UDP: inuse 1 alloc 0\n"), None);
        let _listener = TcpListener::bind("127.0.0.1:0").unwrap();
        assert!(allocated().is_none_or(|count| count > 0));
    }

    #[test]
    fn messages_are_taken_apart_and_never_read_beyond() {
        let mut bytes = message(SOCK_DIAG_BY_FAMILY, 0, 2, 1, &[7; ID]);
        bytes.extend([20, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 254, 255, 255, 255]);
        let found: Vec<_> = messages(&bytes).collect();
        assert_eq!(found.len(), 2);
        assert_eq!((found[0].0, found[0].1.len()), (SOCK_DIAG_BY_FAMILY, REQUEST + ID));
        let error = acknowledged(found[1].1).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENOENT));
        assert_eq!(messages(&bytes[..bytes.len() - 1]).count(), 1);
        assert!(parse(&[2; ANSWER + ID - 1]).is_none());
    }

    #[test]
    fn the_kernel_lists_a_connection_and_it_stays() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let mut server = listener.accept().unwrap().0;
        let Ok(all) = open().and_then(|socket| dump(&socket, libc::AF_INET as u8)) else {
            return; // This kernel does not tell.
        };
        let end = |address: std::net::SocketAddr| (address.ip(), address.port());
        let ends = (end(client.local_addr().unwrap()), end(client.peer_addr().unwrap()));
        let listed = all.iter().find(|it| it.ends == ends).unwrap();
        assert!(all
            .iter()
            .all(|it| it.ends.0 != end(listener.local_addr().unwrap()) || it.ends.1 .1 != 0));
        assert!(!leaving(&all).any(|it| it == listed));
        drop(client);
        assert_eq!(server.read(&mut [0; 1]).unwrap(), 0);
    }
}

//! The connections that a clone inherits: TCP connections that leave the machine are its source's.
//!
//! Each is destroyed through the kernel's socket diagnosis (SOCK_DESTROY), so that its program is told
//! at once (ECONNABORTED) instead of waiting for a peer that knows another machine. Connections whose
//! ends are both in this machine live on: both ends were copied. Listening sockets stay.

use std::collections::HashSet;
use std::io;
use std::net::{IpAddr, Ipv6Addr};
use std::os::fd::OwnedFd;
use std::sync::OnceLock;

use crate::netlink::{message, Netlink, NLM_F_ACK, NLM_F_DUMP};
use crate::sys;

/// Message types of NETLINK_SOCK_DIAG.
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const SOCK_DESTROY: u16 = 21;

/// inet_diag_req_v2 before its id, inet_diag_sockid, inet_diag_msg before its id.
const REQUEST: usize = 8;
const ID: usize = 48;
const ANSWER: usize = 4;

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

fn open() -> io::Result<Netlink> {
    Netlink::open(libc::NETLINK_SOCK_DIAG)
}

fn request(kind: u16, flags: u16, family: u8, states: u32, id: &[u8; ID]) -> Vec<u8> {
    let mut body = Vec::with_capacity(REQUEST + ID);
    body.extend([family, libc::IPPROTO_TCP as u8, 0, 0]);
    body.extend(states.to_ne_bytes());
    body.extend(id);
    message(kind, flags, &body)
}

fn dump(socket: &Netlink, family: u8) -> io::Result<Vec<Connection>> {
    let request = request(SOCK_DIAG_BY_FAMILY, NLM_F_DUMP, family, !NO_CONNECTION, &[0; ID]);
    let mut found = Vec::new();
    socket.dump(&request, SOCK_DIAG_BY_FAMILY, |body| found.extend(parse(body)))?;
    Ok(found)
}

fn destroy(socket: &Netlink, connection: &Connection) -> io::Result<()> {
    socket.ask(&request(SOCK_DESTROY, NLM_F_ACK, connection.family, !0, &connection.id))
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
    fn what_is_too_short_is_no_connection() {
        assert!(parse(&[2; ANSWER + ID]).is_some());
        assert!(parse(&[2; ANSWER + ID - 1]).is_none());
        assert!(parse(&[]).is_none());
        assert_eq!(request(SOCK_DIAG_BY_FAMILY, 0, 2, 1, &[7; ID]).len(), 16 + REQUEST + ID);
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

//! Netlink: what the kernel is asked of sockets, links, addresses and routes.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use crate::sys;

/// Flags of a request.
const NLM_F_REQUEST: u16 = 1;
/// To be acknowledged: see [`Netlink::ask`].
pub const NLM_F_ACK: u16 = 4;
/// All that there is: see [`Netlink::dump`].
pub const NLM_F_DUMP: u16 = 0x300;
/// What is there already is replaced.
pub const NLM_F_REPLACE: u16 = 0x100;
/// What is not there yet is made.
pub const NLM_F_CREATE: u16 = 0x400;

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;

/// struct nlmsghdr.
const HEADER: usize = 16;
/// A dump comes in parts no larger than this.
const PART: usize = 32 << 10;
/// The kernel answers at once; what does not is not waited for.
const LIMIT: libc::timeval = libc::timeval { tv_sec: 2, tv_usec: 0 };

/// A socket to one of the kernel's subsystems.
pub struct Netlink(OwnedFd);

impl Netlink {
    /// Opens one of `protocol`, `NETLINK_…`.
    ///
    /// # Errors
    /// `EPROTONOSUPPORT` where the kernel has none of it.
    pub fn open(protocol: libc::c_int) -> io::Result<Netlink> {
        let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC;
        // SAFETY: socket takes integers, and the descriptor that it makes is nobody else's.
        let socket = unsafe {
            let fd = sys::check(libc::socket(libc::AF_NETLINK, kind, protocol))?;
            OwnedFd::from_raw_fd(fd)
        };
        let size = std::mem::size_of_val(&LIMIT) as libc::socklen_t;
        let limit = std::ptr::from_ref(&LIMIT).cast();
        // SAFETY: the pointer and size are those of a timeval, which the option takes.
        sys::check(unsafe {
            libc::setsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_RCVTIMEO, limit, size)
        })?;
        Ok(Netlink(socket))
    }

    /// Has one request done that is to be acknowledged.
    ///
    /// # Errors
    /// What the kernel says to it.
    pub fn ask(&self, request: &[u8]) -> io::Result<()> {
        sys::write(self.0.as_raw_fd(), request)?;
        let mut buffer = [0; 1024];
        let count = sys::retry(|| sys::read(self.0.as_raw_fd(), &mut buffer))?;
        let answer = messages(&buffer[..count]).find(|(kind, _)| *kind == NLMSG_ERROR);
        answer.map_or(Err(io::ErrorKind::InvalidData.into()), |(_, body)| acknowledged(body))
    }

    /// Gives the bodies of all messages of the type `wanted` that answer a request.
    ///
    /// # Errors
    /// What the kernel says to it.
    pub fn dump(&self, request: &[u8], wanted: u16, mut each: impl FnMut(&[u8])) -> io::Result<()> {
        sys::write(self.0.as_raw_fd(), request)?;
        let mut buffer = vec![0; PART];
        loop {
            let count = sys::retry(|| sys::read(self.0.as_raw_fd(), &mut buffer))?;
            for (kind, body) in messages(&buffer[..count]) {
                match kind {
                    NLMSG_DONE => return Ok(()),
                    NLMSG_ERROR => acknowledged(body)?,
                    _ if kind == wanted => each(body),
                    _ => {}
                }
            }
        }
    }
}

/// A request; its flag `NLM_F_REQUEST` is added.
pub fn message(kind: u16, flags: u16, body: &[u8]) -> Vec<u8> {
    let length = HEADER + body.len();
    let mut bytes = Vec::with_capacity(length);
    bytes.extend((length as u32).to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend((NLM_F_REQUEST | flags).to_ne_bytes());
    bytes.extend([0; 8]);
    bytes.extend(body);
    bytes
}

/// Adds an attribute (struct rtattr) to the body of a request.
pub fn attribute(body: &mut Vec<u8>, kind: u16, value: &[u8]) {
    body.extend((4 + value.len() as u16).to_ne_bytes());
    body.extend(kind.to_ne_bytes());
    body.extend(value);
    body.resize(body.len().next_multiple_of(4), 0);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_taken_apart_and_never_read_beyond() {
        let mut bytes = message(20, 0, &[7; 56]);
        bytes.extend([20, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 254, 255, 255, 255]);
        let found: Vec<_> = messages(&bytes).collect();
        assert_eq!(found.len(), 2);
        assert_eq!((found[0].0, found[0].1.len()), (20, 56));
        let error = acknowledged(found[1].1).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENOENT));
        assert_eq!(messages(&bytes[..bytes.len() - 1]).count(), 1);
        assert!(acknowledged(&[0; 3]).is_err());
    }

    #[test]
    fn attributes_begin_at_multiples_of_four() {
        let mut body = Vec::new();
        attribute(&mut body, 2, &[1; 6]);
        attribute(&mut body, 3, &[2; 4]);
        assert_eq!(body.len(), 12 + 8);
        assert_eq!(body[..4], [10, 0, 2, 0]);
        assert_eq!(body[10..14], [0, 0, 8, 0]);
    }

    #[test]
    fn the_kernel_answers() {
        let Ok(netlink) = Netlink::open(libc::NETLINK_ROUTE) else { return };
        let mut links = 0;
        let list = message(libc::RTM_GETLINK, NLM_F_DUMP, &[0; 16]);
        netlink.dump(&list, libc::RTM_NEWLINK, |_| links += 1).unwrap();
        assert!(links > 0);
        // An address of no family, for no interface.
        let nonsense = message(libc::RTM_NEWADDR, NLM_F_ACK, &[255; 8]);
        assert!(netlink.ask(&nonsense).is_err());
    }
}

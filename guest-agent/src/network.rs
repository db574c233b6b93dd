//! The machine's network card: up, with the address that all machines have, or down.
//!
//! A machine is told of its network by a word on the kernel's command line, and takes it up at once:
//! what is frozen later has it, and a clone need not do anything. One that was frozen where there was
//! none hears of it by its identity. Nothing is asked of the host's side, not even its hardware
//! address, so that nothing can be answered wrongly or late.

use std::fs;
use std::io;
use std::net::Ipv4Addr;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::console::log;
use crate::init;
use crate::netlink::{attribute, message, Netlink, NLM_F_ACK, NLM_F_CREATE, NLM_F_REPLACE};

/// On the kernel's command line: the card leads somewhere.
const WORD: &str = "hutch.network";
const CARD: &str = "eth0";
/// What every machine has, and its router, which is its resolver as well.
const OWN: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 2);
const GATEWAY: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 1);
const GATEWAY_MAC: [u8; 6] = [0x52, 0x54, 0x00, 0x68, 0x75, 0x00];

/// The network of a machine: none until it is taken up for the first time.
#[derive(Default)]
pub struct Network(Mutex<State>);

#[derive(Default)]
struct State {
    /// The number of the card, once it is prepared.
    card: Option<u32>,
    up: bool,
}

impl Network {
    /// Takes the network up, if the host has said that there is one.
    pub fn start(&self) {
        if init::has_word(WORD) {
            self.set(true);
        }
    }

    /// Takes it up or down, if it is not so already; gives whether it was changed. Failures are
    /// logged: a program may have taken the card away, and what may leave is the host's affair.
    pub fn set(&self, up: bool) -> bool {
        let mut state = self.lock();
        if state.up == up {
            return false;
        }
        match state.change(up) {
            Ok(()) => state.up = up,
            Err(error) => log(format_args!("the network cannot be changed: {error}")),
        }
        state.up == up
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn change(&mut self, up: bool) -> io::Result<()> {
        let kernel = Netlink::open(libc::NETLINK_ROUTE)?;
        let index = match self.card {
            Some(index) => index,
            None => prepare(&kernel)?,
        };
        self.card = Some(index);
        if up {
            take_up(&kernel, index)
        } else {
            take_down(&kernel, index)
        }
    }
}

/// Gives the card its address, and its number to us.
fn prepare(kernel: &Netlink) -> io::Result<u32> {
    let text = fs::read_to_string(format!("/sys/class/net/{CARD}/ifindex"))?;
    let index = text.trim().parse().map_err(|_| io::Error::from(io::ErrorKind::InvalidData))?;
    // There is none: no address of it may make programs believe so. A kernel may not have it at all.
    let _ = fs::write(format!("/proc/sys/net/ipv6/conf/{CARD}/disable_ipv6"), "1");
    for request in [address(index), up(index), neighbour(index)] {
        kernel.ask(&request)?;
    }
    Ok(index)
}

fn take_up(kernel: &Netlink, index: u32) -> io::Result<()> {
    let make = |body: &Vec<u8>| kernel.ask(&message(libc::RTM_NEWROUTE, MAKE, body));
    routes(index).iter().try_for_each(make)
}

/// Only the routes go: to take the card itself down would cost a clone four times as much.
fn take_down(kernel: &Netlink, index: u32) -> io::Result<()> {
    for body in routes(index) {
        match kernel.ask(&message(libc::RTM_DELROUTE, NLM_F_ACK, &body)) {
            // A program has taken it away.
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => {}
            result => result?,
        }
    }
    Ok(())
}

const MAKE: u16 = NLM_F_ACK | NLM_F_CREATE | NLM_F_REPLACE;

/// struct ifinfomsg: the card is up.
fn up(index: u32) -> Vec<u8> {
    let up = (libc::IFF_UP as u32).to_ne_bytes();
    let body = [[0; 4], index.to_ne_bytes(), up, up].concat();
    message(libc::RTM_NEWLINK, NLM_F_ACK, &body)
}

/// The way to the gateway, and by way of it to all others, in the order in which they depend on each
/// other.
fn routes(index: u32) -> [Vec<u8>; 2] {
    [route(index, Some(GATEWAY), None), route(index, None, Some(GATEWAY))]
}

/// struct ifaddrmsg: our address, of a network with nobody else in it.
fn address(index: u32) -> Vec<u8> {
    let mut body = vec![libc::AF_INET as u8, 32, 0, libc::RT_SCOPE_UNIVERSE];
    body.extend(index.to_ne_bytes());
    attribute(&mut body, libc::IFA_LOCAL, &OWN.octets());
    attribute(&mut body, libc::IFA_ADDRESS, &OWN.octets());
    message(libc::RTM_NEWADDR, MAKE, &body)
}

/// struct ndmsg: where the gateway is, for good.
fn neighbour(index: u32) -> Vec<u8> {
    let mut body = vec![libc::AF_INET as u8, 0, 0, 0];
    body.extend(index.to_ne_bytes());
    body.extend(libc::NUD_PERMANENT.to_ne_bytes());
    body.extend([0, 0]);
    attribute(&mut body, libc::NDA_DST, &GATEWAY.octets());
    attribute(&mut body, libc::NDA_LLADDR, &GATEWAY_MAC);
    message(libc::RTM_NEWNEIGH, MAKE, &body)
}

/// struct rtmsg: the way to one address (on the link), or by way of one to all others.
fn route(index: u32, to: Option<Ipv4Addr>, by: Option<Ipv4Addr>) -> Vec<u8> {
    let length = if to.is_some() { 32 } else { 0 };
    let scope = if by.is_some() { libc::RT_SCOPE_UNIVERSE } else { libc::RT_SCOPE_LINK };
    let (table, origin, kind) = (libc::RT_TABLE_MAIN, libc::RTPROT_BOOT, libc::RTN_UNICAST);
    let mut body = vec![libc::AF_INET as u8, length, 0, 0, table, origin, scope, kind, 0, 0, 0, 0];
    for (what, address) in [(libc::RTA_DST, to), (libc::RTA_GATEWAY, by)] {
        if let Some(address) = address {
            attribute(&mut body, what, &address.octets());
        }
    }
    attribute(&mut body, libc::RTA_OIF, &index.to_ne_bytes());
    body
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_so_already_is_left_alone_and_what_fails_is_not_so() {
        assert!(!Network::default().set(false));
        // No kernel knows this card: nothing can be asked of it.
        let gone = |up| Network(Mutex::new(State { card: Some(u32::MAX >> 1), up }));
        assert!(!gone(true).set(true));
        let network = gone(false);
        assert!(!network.set(true));
        assert!(!network.lock().up);
    }

    #[test]
    fn the_way_to_all_others_leads_by_the_gateway() {
        let whole = route(7, None, Some(GATEWAY));
        assert_eq!(whole.len(), 12 + 8 + 8);
        assert_eq!(whole[..4], [2, 0, 0, 0]);
        assert_eq!(whole[12..], [8, 0, 5, 0, 198, 18, 0, 1, 8, 0, 4, 0, 7, 0, 0, 0]);
    }
}

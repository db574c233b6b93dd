//! `identity`: everything that tells one clone of a machine from another, in one request.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use crate::agent::{Agent, Stage};
use crate::codec::Value;
use crate::console::log;
use crate::etc::Names;
use crate::failure::{Code, Context, Failure};
use crate::fields::Fields;
use crate::frame::Kind;
use crate::map;
use crate::sockets;
use crate::stream::Stream;
use crate::sys;

/// RNDADDENTROPY, `_IOW('R', 3, int[2])`.
const RNDADDENTROPY: u64 = 0x4008_5203;
/// RNDRESEEDCRNG, `_IO('R', 7)`.
const RNDRESEEDCRNG: u64 = 0x5207;
const MIN_ENTROPY: usize = 32;
const MAX_ENTROPY: usize = 512;

/// Takes the identity that the host gives, and answers on `stream`: `bad_request` for values that make
/// no sense, with nothing changed.
///
/// The files that name it are written after the reply; see [`crate::settling`].
pub fn set(agent: &Agent, fields: &Fields, stream: &Arc<Stream>) {
    let _alone = agent.lock_machine();
    let outcome = parse(fields).and_then(|given| Ok((take(agent, &given)?, given)));
    match outcome {
        Err(failure) => stream.finish(Kind::Reply, Err(failure)),
        Ok((reply, given)) if given.writes_nothing() || agent.stage() != Stage::Ready => {
            stream.finish(Kind::Reply, Ok(reply));
        }
        Ok((reply, given)) => {
            agent.settling.begin();
            stream.finish(Kind::Reply, Ok(reply));
            let written = write(agent, &given);
            if let Err(failure) = &written {
                log(format_args!("the identity's files: {failure}"));
            }
            agent.settling.end(written);
        }
    }
}

/// What an identity holds.
struct Given<'a> {
    nonce: &'a [u8],
    realtime: Option<u64>,
    entropy: Option<&'a [u8]>,
    hostname: Option<&'a str>,
    machine_id: Option<&'a [u8]>,
    hosts: Option<Vec<(String, String)>>,
    nameservers: Option<Vec<String>>,
    generation: Option<u64>,
    network: Option<bool>,
}

impl Given<'_> {
    fn writes_nothing(&self) -> bool {
        self.hostname.is_none()
            && self.machine_id.is_none()
            && self.hosts.is_none()
            && self.nameservers.is_none()
            && self.generation.is_none()
    }
}

fn parse(fields: &Fields) -> Result<Given<'_>, Failure> {
    let given = Given {
        nonce: fields.bytes("nonce")?,
        realtime: fields.opt_u64("realtime_ns")?,
        entropy: fields.opt_bytes("entropy")?,
        hostname: fields.opt_str("hostname")?,
        machine_id: fields.opt_bytes("machine_id")?,
        hosts: hosts_of(fields)?,
        nameservers: nameservers_of(fields)?,
        generation: fields.opt_u64("generation")?,
        network: fields.opt_bool("network")?,
    };
    check(given.hostname, given.machine_id, given.entropy)?;
    Ok(given)
}

/// What has to be done before anyone else hears of it.
fn take(agent: &Agent, given: &Given) -> Result<Value, Failure> {
    let privileged = agent.setup.privileged;
    // The clock first: it is the value that ages on its way.
    if let Some(time) = given.realtime.filter(|_| privileged) {
        set_clock(time).context(|| "set the clock")?;
    }
    let mut reseeded = false;
    if let Some(bytes) = given.entropy.filter(|_| privileged) {
        reseed(bytes).context(|| "reseed the random generator")?;
        reseeded = true;
    }
    if let Some(name) = given.hostname.filter(|_| privileged) {
        set_hostname(name.as_bytes()).context(|| "set the host name")?;
    }
    let lived = agent.execs.have_lived();
    let network = given.network.filter(|_| privileged);
    let mut ends = network == Some(false) && agent.network.set(false);
    if let Some(count) = given.generation {
        agent.generation.renew(count, given.machine_id.unwrap_or_default(), lived);
        ends = true;
    }
    let mut destroyed = Some(0);
    if ends && lived && privileged {
        destroyed = sockets::destroy_leaving().context(|| "end open connections")?;
    }
    if network == Some(true) {
        agent.network.set(true);
    }
    Ok(map! {
        "nonce" => given.nonce,
        "reseeded" => reseeded,
        "realtime_ns" => sys::realtime_ns(),
        "generation" => agent.generation.number(),
        "sockets_destroyed" => destroyed.map_or(Value::Nil, Value::from),
    })
}

fn write(agent: &Agent, given: &Given) -> Result<(), Failure> {
    let (root, lived) = (&agent.setup.root, agent.execs.have_lived());
    let names = Names {
        hostname: given.hostname,
        machine_id: given.machine_id,
        hosts: given.hosts.as_deref(),
        nameservers: given.nameservers.as_deref(),
    };
    agent.etc.write(root, &names, lived)?;
    match given.generation {
        None => Ok(()),
        Some(_) => {
            // Nobody can read it halfway while no program runs.
            let read = lived && !agent.execs.gate.is_closed();
            let published = agent.generation.publish(root, read);
            published.context(|| "write /run/hutch/generation")
        }
    }
}

/// The machine's name now.
pub fn hostname() -> Vec<u8> {
    let mut name = [0; 65];
    // SAFETY: the pointer and length are those of a live array, less the byte that ends it.
    let result = unsafe { libc::gethostname(name.as_mut_ptr().cast(), name.len() - 1) };
    let end = name.iter().position(|byte| *byte == 0).unwrap_or(0);
    name[..if result == 0 { end } else { 0 }].to_vec()
}

fn check(
    hostname: Option<&str>,
    machine_id: Option<&[u8]>,
    entropy: Option<&[u8]>,
) -> Result<(), Failure> {
    let bad = |what: &str| Err(Failure::new(Code::BadRequest, what.to_owned()));
    let is_name = |name: &str| {
        (1..=64).contains(&name.len())
            && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte))
    };
    if hostname.is_some_and(|name| !is_name(name)) {
        return bad("hostname is not a host name");
    }
    if machine_id.is_some_and(|id| id.len() != 32 || !id.iter().all(u8::is_ascii_hexdigit)) {
        return bad("machine_id is not 32 hexadecimal digits");
    }
    if entropy.is_some_and(|bytes| !(MIN_ENTROPY..=MAX_ENTROPY).contains(&bytes.len())) {
        return bad("entropy must have 32 to 512 bytes");
    }
    Ok(())
}

fn word(value: &Value) -> Option<String> {
    let Value::Str(text) = value else { return None };
    let fits = !text.is_empty() && text.len() <= 255;
    (fits && !text.contains(|c: char| c.is_whitespace() || c.is_control())).then(|| text.clone())
}

fn hosts_of(fields: &Fields) -> Result<Option<Vec<(String, String)>>, Failure> {
    let pair = |value: &Value| match value {
        Value::Array(pair) if pair.len() == 2 => Some((word(&pair[0])?, word(&pair[1])?)),
        _ => None,
    };
    list_of(fields, "hosts", pair)
}

fn nameservers_of(fields: &Fields) -> Result<Option<Vec<String>>, Failure> {
    list_of(fields, "nameservers", word)
}

fn list_of<T>(
    fields: &Fields,
    key: &str,
    item: impl Fn(&Value) -> Option<T>,
) -> Result<Option<Vec<T>>, Failure> {
    let Some(value) = fields.get(key) else { return Ok(None) };
    let list = match value {
        Value::Array(values) => values.iter().map(item).collect::<Option<Vec<_>>>(),
        _ => None,
    };
    let bad = || Failure::new(Code::BadRequest, format!("{key} is not a list of such entries"));
    list.map(Some).ok_or_else(bad)
}

fn set_clock(nanoseconds: u64) -> io::Result<()> {
    let time = libc::timespec {
        tv_sec: (nanoseconds / 1_000_000_000) as i64,
        tv_nsec: (nanoseconds % 1_000_000_000) as i64,
    };
    // SAFETY: the pointer is to a valid timespec.
    sys::check(unsafe { libc::clock_settime(libc::CLOCK_REALTIME, &time) }).map(drop)
}

fn set_hostname(name: &[u8]) -> io::Result<()> {
    // SAFETY: the pointer and length are those of a live slice.
    sys::check(unsafe { libc::sethostname(name.as_ptr().cast(), name.len()) }).map(drop)
}

/// Adding entropy alone leaves two clones with identical random numbers until the kernel reseeds by
/// itself; the second request makes it do so now.
fn reseed(bytes: &[u8]) -> io::Result<()> {
    #[repr(C)]
    struct PoolInfo {
        entropy_bits: libc::c_int,
        size: libc::c_int,
        bytes: [u8; MAX_ENTROPY],
    }
    let mut info = PoolInfo {
        entropy_bits: 8 * bytes.len() as libc::c_int,
        size: bytes.len() as libc::c_int,
        bytes: [0; MAX_ENTROPY],
    };
    info.bytes[..bytes.len()].copy_from_slice(bytes);
    let device = sys::open("/dev/urandom", libc::O_WRONLY, 0)?;
    // SAFETY: RNDADDENTROPY takes a pointer to a rand_pool_info, which PoolInfo is laid out as.
    unsafe { sys::ioctl(device.as_raw_fd(), RNDADDENTROPY, &mut info)? };
    sys::ioctl_int(device.as_raw_fd(), RNDRESEEDCRNG, 0).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nonsense_is_refused() {
        assert!(check(Some("a b"), None, None).is_err());
        assert!(check(Some(""), None, None).is_err());
        assert!(check(None, Some(b"short"), None).is_err());
        assert!(check(None, None, Some(&[0; 31])).is_err());
        assert!(check(Some("box-1"), Some(&[b'0'; 32]), Some(&[0; 32])).is_ok());
        let fields = Fields::new(map! {
            "hosts" => vec![Value::from(vec![Value::from("1.2.3.4"), Value::from("a\nb")])],
        });
        assert!(hosts_of(&fields.unwrap()).is_err());
        let fields = Fields::new(map! { "nonce" => "0123456789abcdef", "network" => 1_u64 });
        assert!(parse(&fields.unwrap()).is_err());
    }
}

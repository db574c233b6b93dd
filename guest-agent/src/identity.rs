//! `identity`: everything that tells one clone of a machine from another, in one request.

use std::io;
use std::os::fd::AsRawFd;

use crate::agent::{Agent, Stage};
use crate::codec::Value;
use crate::etc::Names;
use crate::failure::{Code, Context, Failure};
use crate::fields::Fields;
use crate::map;
use crate::sockets;
use crate::sys;

/// RNDADDENTROPY, `_IOW('R', 3, int[2])`.
const RNDADDENTROPY: u64 = 0x4008_5203;
/// RNDRESEEDCRNG, `_IO('R', 7)`.
const RNDRESEEDCRNG: u64 = 0x5207;
const MIN_ENTROPY: usize = 32;
const MAX_ENTROPY: usize = 512;

/// Takes the identity that the host gives.
///
/// # Errors
/// `bad_request` for values that make no sense; nothing has been changed then.
pub fn set(agent: &Agent, fields: &Fields) -> Result<Value, Failure> {
    let _alone = agent.lock_machine();
    let nonce = fields.bytes("nonce")?.to_vec();
    let entropy = fields.opt_bytes("entropy")?;
    let hostname = fields.opt_str("hostname")?;
    let machine_id = fields.opt_bytes("machine_id")?;
    let hosts = hosts_of(fields)?;
    let nameservers = nameservers_of(fields)?;
    let realtime = fields.opt_u64("realtime_ns")?;
    let generation = fields.opt_u64("generation")?;
    check(hostname, machine_id, entropy)?;
    let privileged = agent.setup.privileged;
    // The clock first: it is the value that ages on its way.
    if let Some(time) = realtime.filter(|_| privileged) {
        set_clock(time).context(|| "set the clock")?;
    }
    let reseeded = match entropy {
        Some(bytes) if privileged => {
            reseed(bytes).context(|| "reseed the random generator")?;
            true
        }
        _ => false,
    };
    let root = &agent.setup.root;
    if let Some(name) = hostname.filter(|_| privileged) {
        set_hostname(name.as_bytes()).context(|| "set the host name")?;
    }
    let names = Names {
        hostname,
        machine_id,
        hosts: hosts.as_deref(),
        nameservers: nameservers.as_deref(),
    };
    let ready = agent.stage() == Stage::Ready;
    if ready {
        agent.etc.write(root, &names)?;
    }
    let mut destroyed = Some(0);
    if let Some(count) = generation {
        let lived = agent.execs.have_lived();
        let renewed = agent.generation.renew(count, machine_id.unwrap_or_default(), lived);
        if lived && privileged {
            destroyed = sockets::destroy_leaving().context(|| "end inherited connections")?;
        }
        if renewed && ready {
            agent.generation.publish(root, lived).context(|| "write /run/hutch/generation")?;
        }
    }
    Ok(map! {
        "nonce" => nonce,
        "reseeded" => reseeded,
        "realtime_ns" => sys::realtime_ns(),
        "generation" => agent.generation.number(),
        "sockets_destroyed" => destroyed.map_or(Value::Nil, Value::from),
    })
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
    }
}

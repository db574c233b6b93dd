//! What programs of container images expect around them: devices, mounts, loopback, cgroups.

use std::fs;
use std::io;
use std::os::unix::fs::{symlink, PermissionsExt};
use std::path::Path;

use crate::cgroup::Workloads;
use crate::console::log;
use crate::failure::{Context, Failure};
use crate::mount::switch_root::link;
use crate::sys;

const CGROUP: &str = "/sys/fs/cgroup";

/// Prepares the new root for workloads. Gives the cgroup that they live in.
///
/// # Errors
/// When a mount or the cgroup cannot be made.
pub fn prepare() -> Result<Workloads, Failure> {
    let safe = libc::MS_NOSUID | libc::MS_NODEV;
    let quiet = libc::MS_NOSUID | libc::MS_NOEXEC;
    mount_at("/dev/pts", "devpts", quiet, "newinstance,gid=5,mode=620,ptmxmode=666")?;
    mount_at("/dev/shm", "tmpfs", safe, "mode=1777")?;
    mount_at("/dev/mqueue", "mqueue", safe | libc::MS_NOEXEC, "").unwrap_or_else(complain);
    mount_at("/run", "tmpfs", safe, "mode=755")?;
    mount_at(CGROUP, "cgroup2", safe | libc::MS_NOEXEC, "nsdelegate,memory_recursiveprot")?;
    let links = [
        ("pts/ptmx", "/dev/ptmx"),
        ("/proc/self/fd", "/dev/fd"),
        ("/proc/self/fd/0", "/dev/stdin"),
        ("/proc/self/fd/1", "/dev/stdout"),
        ("/proc/self/fd/2", "/dev/stderr"),
    ];
    for (target, path) in links {
        link(target, path).context(|| format!("make {path}"))?;
    }
    fs::create_dir_all("/run/lock").context(|| "make /run/lock")?;
    make_tmp().context(|| "make /tmp")?;
    for (what, result) in [("/etc/mtab", make_mtab()), ("lo", loopback_up())] {
        result.unwrap_or_else(|error| log(format_args!("cannot set up {what}: {error}")));
    }
    // Programs of any user may ping and use low ports, as container engines have it.
    let _ = fs::write("/proc/sys/net/ipv4/ping_group_range", "0 2147483647");
    let _ = fs::write("/proc/sys/net/ipv4/ip_unprivileged_port_start", "0");
    Workloads::create(Path::new(CGROUP)).context(|| "make the workloads' cgroup")
}

fn complain(failure: Failure) {
    log(failure);
}

fn mount_at(target: &str, kind: &str, flags: u64, options: &str) -> Result<(), Failure> {
    let path = Path::new(target);
    // /run may be a link in an image (to nowhere, before it is mounted).
    if fs::symlink_metadata(path).is_ok_and(|meta| meta.is_symlink()) {
        fs::remove_file(path).context(|| format!("replace {target}"))?;
    }
    fs::create_dir_all(path).context(|| format!("make {target}"))?;
    let mounted = sys::mount(kind, path, kind, flags, options);
    mounted.context(|| format!("mount {kind} on {target}"))
}

fn make_tmp() -> io::Result<()> {
    let path = Path::new("/tmp");
    if fs::metadata(path).is_err() {
        // A link to nowhere would make create_dir fail.
        let _ = fs::remove_file(path);
        fs::create_dir(path)?;
        fs::set_permissions(path, fs::Permissions::from_mode(0o1777))?;
    }
    Ok(())
}

fn make_mtab() -> io::Result<()> {
    if fs::symlink_metadata("/etc/mtab").is_ok() || !Path::new("/etc").is_dir() {
        return Ok(());
    }
    symlink("/proc/self/mounts", "/etc/mtab")
}

/// Brings `lo` up; the kernel gives it 127.0.0.1 and ::1 then.
fn loopback_up() -> io::Result<()> {
    // SAFETY: ifreq is plain data, for which zero is valid; both requests take a pointer to it, and
    // the socket is closed by the end of the block on every path.
    unsafe {
        let socket =
            sys::check(libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0))?;
        let mut request: libc::ifreq = std::mem::zeroed();
        for (to, from) in request.ifr_name.iter_mut().zip(b"lo") {
            *to = *from as libc::c_char;
        }
        let result = sys::ioctl(socket, libc::SIOCGIFFLAGS, &mut request).and_then(|_| {
            request.ifr_ifru.ifru_flags |= (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
            sys::ioctl(socket, libc::SIOCSIFFLAGS, &mut request)
        });
        libc::close(socket);
        result.map(drop)
    }
}

//! PID 1: from the kernel's hand-over in the initramfs to an open port. What comes after, the host asks
//! for (`mount.root`, `mount.overlay`). The kernel never takes PID 1 for an OOM kill, so nothing is done
//! about that.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use thiserror::Error;

use crate::agent::{Agent, Setup, Stage};
use crate::canary;
use crate::console::log;
use crate::exec::child;
use crate::pit;
use crate::session::{self, EndOfInput};
use crate::sockets;
use crate::sys;

const PORT_NAME: &str = "org.hutch.agent.0";
const PORT_LIMIT: Duration = Duration::from_secs(60);
/// Devices appear within milliseconds of their driver; looking again is cheaper than a uevent socket.
const LOOK_AGAIN: Duration = Duration::from_millis(2);

/// Why the agent cannot run.
#[derive(Debug, Error)]
pub enum InitError {
    /// One of the kernel's own file systems could not be mounted.
    #[error("cannot mount {0}: {1}")]
    Mount(&'static str, io::Error),
    /// The port did not appear, or cannot be used.
    #[error("cannot use the port {PORT_NAME}: {0}")]
    Port(io::Error),
    /// A canary's boot could not say what it is for, or not end.
    #[error("the canary failed: {0}")]
    Canary(io::Error),
    /// A thread or descriptor that the agent needs is not to be had.
    #[error("cannot start the agent: {0}")]
    Start(io::Error),
}

/// Boots the machine and serves the port. Only returns when that is impossible.
///
/// # Errors
/// The reason.
pub fn run() -> Result<(), InitError> {
    mount_kernel_file_systems()?;
    log(format_args!("version {} starting", env!("CARGO_PKG_VERSION")));
    if canary::requested() {
        canary::run().map_err(InitError::Canary)?;
    }
    raise_limits();
    // As the programs of root have it, which then need not take any.
    if let Err(error) = sys::set_groups(&[0]) {
        log(format_args!("cannot take root's group: {error}"));
    }
    child::prepare_starts();
    sockets::prepare();
    // The kernel would look each half second whether its memory is in pieces, in every idle clone.
    // Who needs a large piece still has it made.
    let _ = fs::write("/proc/sys/vm/compaction_proactiveness", "0");
    if let Err(error) = pit::stop() {
        log(format_args!("cannot stop the timer that nobody uses: {error}"));
    }
    load_modules(Path::new("/modules.list"));
    let port = Arc::new(open_port().map_err(InitError::Port)?);
    log("port open");
    let setup = Setup { stage: Stage::Boot, privileged: true, root: PathBuf::from("/") };
    let agent = Agent::start(port.clone(), setup).map_err(InitError::Start)?;
    agent.network.start();
    // PID 1 has children from the start: the kernel's helpers are reparented to it.
    crate::reaper::Reaper::get();
    loop {
        let result = session::serve(&agent, &port, EndOfInput::Away);
        log(format_args!("the port failed: {result:?}"));
        result.map_err(InitError::Port)?;
    }
}

fn mount_kernel_file_systems() -> Result<(), InitError> {
    let safe = libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC;
    for (target, kind, flags, data) in [
        ("/proc", "proc", safe, ""),
        ("/sys", "sysfs", safe, ""),
        ("/dev", "devtmpfs", libc::MS_NOSUID, "mode=0755"),
    ] {
        let _ = fs::create_dir(target);
        match sys::mount(kind, Path::new(target), kind, flags, data) {
            // The kernel mounts devtmpfs by itself when so configured.
            Err(error) if error.raw_os_error() != Some(libc::EBUSY) => {
                return Err(InitError::Mount(target, error));
            }
            _ => {}
        }
    }
    Ok(())
}

/// Whether the kernel's command line has that word.
pub fn has_word(word: &str) -> bool {
    fs::read_to_string("/proc/cmdline").is_ok_and(|line| named(&line, word))
}

fn named(cmdline: &str, word: &str) -> bool {
    cmdline.split_whitespace().any(|each| each == word)
}

/// Execs inherit the agent's limits where their request names none.
fn raise_limits() {
    const NOFILE: u64 = 1_048_576;
    let _ = fs::write("/proc/sys/fs/nr_open", NOFILE.to_string());
    let limit = libc::rlimit { rlim_cur: NOFILE, rlim_max: NOFILE };
    // SAFETY: the pointer is to a valid rlimit.
    if let Err(error) = sys::check(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &limit) }) {
        log(format_args!("cannot raise the limit of open files: {error}"));
    }
}

/// Loads each listed module. One that fails is logged: the port or a disk will be missed later.
pub fn load_modules(list: &Path) {
    let started = Instant::now();
    let text = fs::read_to_string(list).unwrap_or_default();
    let paths = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let mut loaded = 0;
    for path in paths {
        match load_module(path) {
            Ok(()) => loaded += 1,
            Err(error) if error.raw_os_error() == Some(libc::EEXIST) => {}
            Err(error) => log(format_args!("cannot load {path}: {error}")),
        }
    }
    log(format_args!("{loaded} modules loaded in {} ms", started.elapsed().as_millis()));
}

fn load_module(path: &str) -> io::Result<()> {
    let file = sys::open(path, libc::O_RDONLY, 0)?;
    // SAFETY: the descriptor is valid and the parameters are an empty C string.
    let result =
        unsafe { libc::syscall(libc::SYS_finit_module, file.as_raw_fd(), c"".as_ptr(), 0) };
    sys::check(result as i32).map(drop)
}

fn open_port() -> io::Result<OwnedFd> {
    let deadline = Instant::now() + PORT_LIMIT;
    loop {
        if let Some(device) = find_port(Path::new("/sys/class/virtio-ports"), PORT_NAME) {
            let path = Path::new("/dev").join(device);
            match sys::open(path, libc::O_RDWR | libc::O_NONBLOCK, 0) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                result => return result,
            }
        }
        if Instant::now() > deadline {
            return Err(io::ErrorKind::TimedOut.into());
        }
        thread::sleep(LOOK_AGAIN);
    }
}

fn find_port(class: &Path, name: &str) -> Option<String> {
    fs::read_dir(class).ok()?.flatten().find_map(|entry| {
        let text = fs::read_to_string(entry.path().join("name")).ok()?;
        (text.trim() == name).then(|| entry.file_name().to_string_lossy().into_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_whole_word_counts() {
        assert!(named("console=ttyS0 hutch.canary loglevel=6\n", "hutch.canary"));
        assert!(!named("console=ttyS0 hutch.canary=no xhutch.canary\n", "hutch.canary"));
        assert!(!named("", "hutch.canary"));
    }

    #[test]
    fn the_port_is_found_by_its_name() {
        let scratch = crate::scratch::Scratch::new("ports");
        for (port, name) in [("vport0p1", "other\n"), ("vport0p2", "org.hutch.agent.0\n")] {
            fs::create_dir(scratch.path().join(port)).unwrap();
            fs::write(scratch.path().join(port).join("name"), name).unwrap();
        }
        assert_eq!(find_port(scratch.path(), PORT_NAME).as_deref(), Some("vport0p2"));
        assert_eq!(find_port(scratch.path(), "none"), None);
    }
}

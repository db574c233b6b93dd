//! The workloads' part of the cgroup tree: one group for all, below it one for each exec.
//!
//! The agent itself stays in the root group, out of reach of the freezer and of the memory limit.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::sys;

/// Controllers that workloads may use and hand on.
const CONTROLLERS: [&str; 4] = ["cpu", "memory", "pids", "io"];
/// Groups that programs have nested deeper than this are not looked into.
const MAX_DEPTH: usize = 32;

/// The group of all workloads.
pub struct Workloads {
    path: PathBuf,
}

/// The group of one exec.
pub struct Group {
    path: PathBuf,
}

impl Workloads {
    /// Makes the group below `mount` (a cgroup2 file system), with the controllers that there are.
    ///
    /// # Errors
    /// When the group itself cannot be made; a missing controller is none.
    pub fn create(mount: &Path) -> io::Result<Workloads> {
        let path = mount.join("hutch");
        delegate(mount);
        make(&path)?;
        delegate(&path);
        Ok(Workloads { path })
    }

    /// Makes the group of an exec.
    pub fn group(&self, serial: u64) -> io::Result<Group> {
        let path = self.path.join(format!("exec-{serial}"));
        make(&path)?;
        Ok(Group { path })
    }

    /// Limits the memory of all workloads together, so that the agent always has some.
    pub fn limit_memory(&self, bytes: u64) -> io::Result<()> {
        fs::write(self.path.join("memory.max"), bytes.to_string())
    }

    /// The file that changes with each OOM kill.
    pub fn memory_events(&self) -> PathBuf {
        self.path.join("memory.events")
    }

    /// OOM kills among all workloads since boot.
    pub fn oom_kills(&self) -> u64 {
        oom_kills(&self.path)
    }

    /// Freezes every workload; thaws them again when that takes longer than `limit`.
    ///
    /// # Errors
    /// `TimedOut`, or what the file system says.
    pub fn freeze(&self, limit: Duration) -> io::Result<()> {
        let deadline = Instant::now() + limit;
        let events = sys::open(self.path.join("cgroup.events"), libc::O_RDONLY, 0)?;
        fs::write(self.path.join("cgroup.freeze"), "1")?;
        loop {
            // Reading from the start arms the notification that poll waits for.
            let text = read_again(&events)?;
            if key(&text, "frozen") == Some(1) {
                return Ok(());
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                self.thaw()?;
                return Err(io::ErrorKind::TimedOut.into());
            }
            sys::poll(events.as_raw_fd(), libc::POLLPRI, left)?;
        }
    }

    /// Lets the workloads run again.
    pub fn thaw(&self) -> io::Result<()> {
        fs::write(self.path.join("cgroup.freeze"), "0")
    }

    /// Signals every workload.
    pub fn signal(&self, signal: i32) {
        signal_tree(&self.path, signal);
    }

    /// Whether any workload is alive.
    pub fn populated(&self) -> bool {
        read_key(&self.path.join("cgroup.events"), "populated") == Some(1)
    }

    /// Waits until no workload is alive, at most `limit`.
    pub fn wait_empty(&self, limit: Duration) {
        let deadline = Instant::now() + limit;
        let Ok(events) = sys::open(self.path.join("cgroup.events"), libc::O_RDONLY, 0) else {
            return;
        };
        while read_again(&events).is_ok_and(|text| key(&text, "populated") == Some(1)) {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() || sys::poll(events.as_raw_fd(), libc::POLLPRI, left).is_err() {
                return;
            }
        }
    }
}

impl Group {
    /// Its directory, for a process to begin in.
    pub fn entrance(&self) -> io::Result<OwnedFd> {
        sys::open(&self.path, libc::O_RDONLY | libc::O_DIRECTORY, 0)
    }

    /// Signals every process of the group.
    pub fn signal(&self, signal: i32) {
        signal_tree(&self.path, signal);
    }

    /// Processor time of the group, in nanoseconds.
    pub fn cpu_ns(&self) -> Option<u64> {
        read_key(&self.path.join("cpu.stat"), "usage_usec").map(|usec| usec.saturating_mul(1000))
    }

    /// OOM kills in the group.
    pub fn oom_kills(&self) -> u64 {
        oom_kills(&self.path)
    }

    /// Whether any of its processes is alive.
    pub fn populated(&self) -> bool {
        read_key(&self.path.join("cgroup.events"), "populated") == Some(1)
    }

    /// Removes the group and those that its processes made; fails while any process is alive.
    pub fn remove(&self) -> io::Result<()> {
        remove_tree(&self.path, 0)
    }
}

impl Drop for Group {
    /// The last one to know it takes it away, if it is empty by then.
    fn drop(&mut self) {
        let _ = self.remove();
    }
}

/// The exec serial in a line of /proc/PID/cgroup.
pub fn serial_of(cgroup_file: &str) -> Option<u64> {
    let (_, rest) = cgroup_file.split_once("/hutch/exec-")?;
    rest.split(|letter: char| !letter.is_ascii_digit()).next()?.parse().ok()
}

fn make(path: &Path) -> io::Result<()> {
    match fs::create_dir(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => Ok(()),
    }
}

/// Hands each controller that the kernel has to the groups below.
fn delegate(path: &Path) {
    for controller in CONTROLLERS {
        // One at a time: a kernel without one of them would refuse them all. What is missing shows
        // in cgroup.controllers.
        let _ = fs::write(path.join("cgroup.subtree_control"), format!("+{controller}"));
    }
}

fn oom_kills(path: &Path) -> u64 {
    read_key(&path.join("memory.events"), "oom_kill").unwrap_or(0)
}

fn read_key(path: &Path, name: &str) -> Option<u64> {
    key(&fs::read_to_string(path).ok()?, name)
}

fn key(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok())
}

fn read_again(file: &OwnedFd) -> io::Result<String> {
    let mut buffer = [0; 512];
    // SAFETY: the pointer and length are those of a live array.
    let count =
        unsafe { libc::pread(file.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len(), 0) };
    let count = usize::try_from(count).map_err(|_| io::Error::last_os_error())?;
    Ok(String::from_utf8_lossy(&buffer[..count]).into_owned())
}

fn signal_tree(path: &Path, signal: i32) {
    // cgroup.kill (Linux 5.14) also gets those that fork meanwhile.
    if signal == libc::SIGKILL && fs::write(path.join("cgroup.kill"), "1").is_ok() {
        return;
    }
    for_each_group(path, 0, &mut |group| {
        let pids = fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
        for pid in pids.lines().filter_map(|line| line.parse::<i32>().ok()).filter(|pid| *pid > 1) {
            // It may have ended since; that is what is wanted then.
            let _ = sys::kill(pid, signal);
        }
    });
}

fn for_each_group(path: &Path, depth: usize, visit: &mut impl FnMut(&Path)) {
    visit(path);
    if depth < MAX_DEPTH {
        for entry in fs::read_dir(path).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                for_each_group(&entry.path(), depth + 1, visit);
            }
        }
    }
}

fn remove_tree(path: &Path, depth: usize) -> io::Result<()> {
    if depth < MAX_DEPTH {
        for entry in fs::read_dir(path)?.flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                remove_tree(&entry.path(), depth + 1)?;
            }
        }
    }
    fs::remove_dir(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_and_serials_are_found() {
        let text = "populated 1\nfrozen 0\n";
        assert_eq!(key(text, "populated"), Some(1));
        assert_eq!(key(text, "frozen"), Some(0));
        assert_eq!(key(text, "froz"), None);
        assert_eq!(serial_of("0::/hutch/exec-12/inner\n"), Some(12));
        assert_eq!(serial_of("0::/\n"), None);
    }
}

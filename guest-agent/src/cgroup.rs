//! The workloads' part of the cgroup tree: one group for all, below it one for each exec.
//!
//! The agent itself stays in the root group, out of reach of the freezer and of the limits. Groups
//! are reached through descriptors that were opened before any workload ran: whatever a program
//! mounts over the tree, the agent neither follows it nor waits for it.

use std::ffi::{CStr, CString};
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::dir;
use crate::sys::{self, check, read_again};

/// Controllers that workloads may use and hand on.
const CONTROLLERS: [&str; 4] = ["cpu", "memory", "pids", "io"];
/// Those that the group of an exec has: each more makes every start slower.
const EXEC_CONTROLLERS: [&str; 2] = ["memory", "pids"];
/// Groups that programs have nested deeper than this are not looked into.
const MAX_DEPTH: usize = 32;
/// What `memory.events` counts processes as that were killed for lack of memory.
const OOM_KILL: &str = "oom_kill";
/// How often to look whether all workloads are frozen.
const FREEZE_LOOK: Duration = Duration::from_millis(1);

/// The group of all workloads.
pub struct Workloads {
    dir: Arc<OwnedFd>,
    /// `cgroup.freeze`.
    freezer: OwnedFd,
}

/// The group of one exec.
///
/// What each exec needs of it is opened when the group is made: that is ahead of the exec, and in a
/// clone most often in its template.
pub struct Group {
    parent: Arc<OwnedFd>,
    name: CString,
    dir: OwnedFd,
    /// `memory.events` and `cpu.stat`.
    events: Option<OwnedFd>,
    usage: Option<OwnedFd>,
    /// `cgroup.procs`, whose inode the kernel looks at when a process begins here: it would make one
    /// each time if it were not in use.
    _members: Option<OwnedFd>,
}

impl Workloads {
    /// Makes the group below `mount` (a cgroup2 file system), with the controllers that there are.
    ///
    /// # Errors
    /// When the group itself cannot be made; a missing controller is none.
    pub fn create(mount: &Path) -> io::Result<Workloads> {
        let root = dir::open(mount)?;
        delegate(root.as_fd(), &CONTROLLERS);
        let dir = make(root.as_fd(), c"hutch")?;
        delegate(dir.as_fd(), &EXEC_CONTROLLERS);
        let freezer = sys::open_here(dir.as_fd(), "cgroup.freeze", libc::O_WRONLY)?;
        Ok(Workloads { dir: Arc::new(dir), freezer })
    }

    /// Hands all controllers on, to the groups that there are and to those to come.
    pub fn delegate_all(&self) {
        delegate(self.dir.as_fd(), &CONTROLLERS);
    }

    /// Makes the group of an exec.
    pub fn group(&self, serial: u64) -> io::Result<Group> {
        let name = CString::new(format!("exec-{serial}"))?;
        let dir = make(self.dir.as_fd(), &name)?;
        let open = |file| sys::open_here(dir.as_fd(), file, libc::O_RDONLY).ok();
        let (events, usage) = (open("memory.events"), open("cpu.stat"));
        let members = open("cgroup.procs");
        Ok(Group { parent: self.dir.clone(), name, dir, events, usage, _members: members })
    }

    /// Limits the memory of all workloads together, so that the agent always has some.
    pub fn limit_memory(&self, bytes: u64) -> io::Result<()> {
        write(self.dir.as_fd(), "memory.max", &bytes.to_string())
    }

    /// Limits the processes and threads of all workloads together, so that the agent can always
    /// start some.
    pub fn limit_tasks(&self, count: u64) -> io::Result<()> {
        write(self.dir.as_fd(), "pids.max", &count.to_string())
    }

    /// The file that changes with each OOM kill.
    pub fn memory_events(&self) -> io::Result<OwnedFd> {
        sys::open_here(self.dir.as_fd(), "memory.events", libc::O_RDONLY)
    }

    /// OOM kills among all workloads since boot.
    pub fn oom_kills(&self) -> u64 {
        oom_kills(self.dir.as_fd())
    }

    /// Freezes every workload; thaws them again when that is not done by `deadline`.
    ///
    /// # Errors
    /// `TimedOut`, or what the file system says.
    pub fn freeze(&self, deadline: Instant) -> io::Result<()> {
        let events = self.events()?;
        sys::write(self.freezer.as_raw_fd(), b"1")?;
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
            // The kernel tells of changes at most every 10 ms: one that comes right after another
            // is seen sooner than it is told.
            sys::poll(events.as_raw_fd(), libc::POLLPRI, left.min(FREEZE_LOOK))?;
        }
    }

    /// Lets the workloads run again.
    pub fn thaw(&self) -> io::Result<()> {
        sys::write(self.freezer.as_raw_fd(), b"0").map(drop)
    }

    /// Signals every workload.
    pub fn signal(&self, signal: i32) {
        signal_tree(self.dir.as_fd(), signal);
    }

    /// Whether any workload is alive.
    pub fn populated(&self) -> bool {
        read_key(self.dir.as_fd(), "cgroup.events", "populated") == Some(1)
    }

    /// Waits until no workload is alive, at most `limit`.
    pub fn wait_empty(&self, limit: Duration) {
        let deadline = Instant::now() + limit;
        let Ok(events) = self.events() else { return };
        while read_again(&events).is_ok_and(|text| key(&text, "populated") == Some(1)) {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() || sys::poll(events.as_raw_fd(), libc::POLLPRI, left).is_err() {
                return;
            }
        }
    }

    fn events(&self) -> io::Result<OwnedFd> {
        sys::open_here(self.dir.as_fd(), "cgroup.events", libc::O_RDONLY)
    }
}

impl Group {
    /// Its directory, for a process to begin in.
    pub fn entrance(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }

    /// Signals every process of the group.
    pub fn signal(&self, signal: i32) {
        signal_tree(self.dir.as_fd(), signal);
    }

    /// Processor time of the group, in nanoseconds.
    pub fn cpu_ns(&self) -> Option<u64> {
        let usec = key(&read_again(self.usage.as_ref()?).ok()?, "usage_usec")?;
        Some(usec.saturating_mul(1000))
    }

    /// OOM kills in the group.
    pub fn oom_kills(&self) -> u64 {
        let text = self.events.as_ref().and_then(|events| read_again(events).ok());
        text.and_then(|text| key(&text, OOM_KILL)).unwrap_or(0)
    }

    /// Whether any of its processes is alive.
    pub fn populated(&self) -> bool {
        read_key(self.dir.as_fd(), "cgroup.events", "populated") == Some(1)
    }

    /// Removes the group and those that its processes made; fails while any process is alive.
    pub fn remove(&self) -> io::Result<()> {
        // Most often there are none below it.
        match dir::unlink(self.parent.as_fd(), &self.name, libc::AT_REMOVEDIR) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) && !self.populated() => {
                remove_below(self.dir.as_fd(), 0)?;
                dir::unlink(self.parent.as_fd(), &self.name, libc::AT_REMOVEDIR)
            }
            result => result,
        }
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

fn make(parent: BorrowedFd, name: &CStr) -> io::Result<OwnedFd> {
    // SAFETY: the name is a valid C string.
    match check(unsafe { libc::mkdirat(parent.as_raw_fd(), name.as_ptr(), 0o755) }) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    sys::open_at(parent, name, libc::O_RDONLY | libc::O_DIRECTORY | libc::O_NOFOLLOW)
}

/// Hands each controller that the kernel has to the groups below.
fn delegate(dir: BorrowedFd, controllers: &[&str]) {
    for controller in controllers {
        // One at a time: a kernel without one of them would refuse them all. What is missing shows
        // in cgroup.controllers.
        let _ = write(dir, "cgroup.subtree_control", &format!("+{controller}"));
    }
}

fn oom_kills(dir: BorrowedFd) -> u64 {
    read_key(dir, "memory.events", OOM_KILL).unwrap_or(0)
}

fn read_key(dir: BorrowedFd, file: &str, name: &str) -> Option<u64> {
    let file = sys::open_here(dir, file, libc::O_RDONLY).ok()?;
    key(&read_again(&file).ok()?, name)
}

fn key(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok())
}

fn write(dir: BorrowedFd, file: &str, text: &str) -> io::Result<()> {
    let file = sys::open_here(dir, file, libc::O_WRONLY)?;
    sys::write(file.as_raw_fd(), text.as_bytes()).map(drop)
}

/// The processes of one group; none when they cannot be told.
fn members(dir: BorrowedFd) -> Vec<i32> {
    let mut text = String::new();
    if let Ok(file) = sys::open_here(dir, "cgroup.procs", libc::O_RDONLY) {
        let _ = std::fs::File::from(file).read_to_string(&mut text);
    }
    text.lines().filter_map(|line| line.parse().ok()).filter(|pid| *pid > 1).collect()
}

fn signal_tree(dir: BorrowedFd, signal: i32) {
    // cgroup.kill (Linux 5.14) also gets those that fork meanwhile.
    if signal == libc::SIGKILL && write(dir, "cgroup.kill", "1").is_ok() {
        return;
    }
    signal_below(dir, signal, 0);
}

fn signal_below(dir: BorrowedFd, signal: i32, depth: usize) {
    for pid in members(dir) {
        // It may have ended since; that is what is wanted then.
        let _ = sys::kill(pid, signal);
    }
    if depth < MAX_DEPTH {
        for group in groups_in(dir) {
            if let Ok(below) = open_group(dir, &group) {
                signal_below(below.as_fd(), signal, depth + 1);
            }
        }
    }
}

fn groups_in(dir: BorrowedFd) -> Vec<CString> {
    let entries = dir::entries(dir).unwrap_or_default();
    entries.into_iter().filter(|entry| entry.is_dir).map(|entry| entry.name).collect()
}

fn open_group(dir: BorrowedFd, name: &CStr) -> io::Result<OwnedFd> {
    let name = name.to_str().map_err(|_| io::ErrorKind::InvalidData)?;
    sys::open_here(dir, name, libc::O_RDONLY | libc::O_DIRECTORY)
}

fn remove_below(dir: BorrowedFd, depth: usize) -> io::Result<()> {
    for name in groups_in(dir) {
        if depth < MAX_DEPTH {
            remove_below(open_group(dir, &name)?.as_fd(), depth + 1)?;
        }
        dir::unlink(dir, &name, libc::AT_REMOVEDIR)?;
    }
    Ok(())
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

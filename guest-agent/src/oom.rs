//! Reports OOM kills among the workloads. Sleeps until the kernel changes `memory.events`.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use crate::cgroup::Workloads;
use crate::console::log;
use crate::events::Events;
use crate::exec::registry::Shared;
use crate::map;
use crate::sys;

/// Starts the thread that watches.
pub fn watch(events: Arc<Events>, execs: Arc<Shared>, workloads: Arc<Workloads>) {
    let run = move || {
        if let Err(error) = watch_for_ever(&events, &execs, &workloads) {
            log(format_args!("OOM kills are not reported any more: {error}"));
        }
    };
    let thread = thread::Builder::new().name("oom".into()).stack_size(64 << 10).spawn(run);
    if let Err(error) = thread {
        log(format_args!("OOM kills are not reported: {error}"));
    }
}

fn watch_for_ever(events: &Events, execs: &Shared, workloads: &Workloads) -> io::Result<()> {
    let file = workloads.memory_events()?;
    let mut messages = KernelLog::open().ok();
    let mut known = workloads.oom_kills();
    loop {
        // A read arms the notification; the count itself is read through a fresh descriptor.
        // Of a group that a program has removed it fails, and poll would return at once for ever.
        sys::retry(|| sys::read(file.as_raw_fd(), &mut [0; 512]))?;
        // SAFETY: lseek takes integers.
        unsafe { libc::lseek(file.as_raw_fd(), 0, libc::SEEK_SET) };
        let count = workloads.oom_kills();
        if count <= known {
            sys::poll(
                file.as_raw_fd(),
                libc::POLLPRI,
                Duration::from_secs(i32::MAX as u64 / 1000),
            )?;
            continue;
        }
        let process = messages.as_mut().and_then(KernelLog::last_victim);
        let victims: Vec<_> =
            execs.all().into_iter().filter(|exec| exec.new_oom_kills() > 0).collect();
        for exec_id in victims.iter().map(|exec| exec.about.id.as_str()) {
            events.emit(&map! {
                "event" => "oom", "exec_id" => exec_id, "process" => process.clone(),
                "count" => count,
            });
        }
        if victims.is_empty() {
            events.emit(&map! {
                "event" => "oom", "exec_id" => crate::codec::Value::Nil, "process" => process,
                "count" => count,
            });
        }
        known = count;
    }
}

/// The kernel's messages from now on.
struct KernelLog(OwnedFd);

impl KernelLog {
    fn open() -> io::Result<KernelLog> {
        let log = sys::open("/dev/kmsg", libc::O_RDONLY | libc::O_NONBLOCK, 0)?;
        // SAFETY: lseek takes integers.
        sys::check(unsafe { libc::lseek(log.as_raw_fd(), 0, libc::SEEK_END) } as i32)?;
        Ok(KernelLog(log))
    }

    /// The name of the process that was killed last.
    fn last_victim(&mut self) -> Option<String> {
        let mut line = [0; 8192];
        let mut victim = None;
        loop {
            match sys::read(self.0.as_raw_fd(), &mut line) {
                Ok(count) => {
                    let text = String::from_utf8_lossy(&line[..count]);
                    victim = victim_in(&text).or(victim);
                }
                // Messages were overwritten before we read them.
                Err(error) if error.raw_os_error() == Some(libc::EPIPE) => {}
                Err(_) => return victim,
            }
        }
    }
}

/// As in "Memory cgroup out of memory: Killed process 71 (stress) total-vm:…".
fn victim_in(line: &str) -> Option<String> {
    let (_, rest) = line.split_once("Killed process ")?;
    let (_, name) = rest.split_once('(')?;
    Some(name.split_once(") ")?.0.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_victim_is_named() {
        let line = "3,999,1;Memory cgroup out of memory: Killed process 71 (a (b)) total-vm:1kB";
        assert_eq!(victim_in(line).as_deref(), Some("a (b)"));
        assert_eq!(victim_in("something else"), None);
    }
}

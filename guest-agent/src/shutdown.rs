//! `shutdown`: the programs end as gently as time allows, the disk is synced, the power goes off.

use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use crate::agent::Agent;
use crate::codec::Value;
use crate::console::log;
use crate::failure::{Code, Failure};
use crate::fields::Fields;
use crate::map;
use crate::sys;

const MAX_GRACE_MS: u64 = 3_600_000;
const LOCK_LIMIT: Duration = Duration::from_secs(2);
/// Killed processes are gone within milliseconds; one stuck in the kernel is not waited for.
const KILL_LIMIT: Duration = Duration::from_secs(2);

/// Accepts the order and carries it out on another thread.
///
/// # Errors
/// `bad_request`, or `limit` when there is no thread left.
pub fn shutdown(agent: &Arc<Agent>, fields: &Fields) -> Result<Value, Failure> {
    let command = match fields.str("action")? {
        "poweroff" => libc::RB_POWER_OFF,
        "reboot" => libc::RB_AUTOBOOT,
        other => {
            let message = format!("action is not {other} but poweroff or reboot");
            return Err(Failure::new(Code::BadRequest, message));
        }
    };
    let signal = fields.opt_u32("signal")?;
    let grace = Duration::from_millis(fields.u64("grace_ms", 0)?.min(MAX_GRACE_MS));
    let own = agent.clone();
    agent.workers.run(move || {
        // Not for ever: what hangs may be a disk of the programs that are to end.
        let alone = own.lock_machine_within(LOCK_LIMIT);
        if alone.is_none() {
            log("shutting down during another operation, which hangs");
        }
        end_programs(&own, signal, grace);
        if own.setup.privileged {
            finish_disk(&own);
            log("power off");
            // SAFETY: reboot takes an integer; the disk has been synced.
            unsafe { libc::reboot(command) };
        }
    })?;
    Ok(map! {})
}

fn end_programs(agent: &Agent, signal: Option<u32>, grace: Duration) {
    let Some(workloads) = agent.execs.workloads() else { return };
    // A frozen program would not notice.
    let _ = workloads.thaw();
    for exec in agent.execs.all() {
        let signal = match signal {
            Some(signal) if exec.about.main => signal,
            _ if exec.about.main => exec.about.stop_signal as u32,
            _ => libc::SIGTERM as u32,
        };
        // Those that have ended need no signal.
        let _ = exec.signal(signal, !exec.about.main);
    }
    // What was started in the background by programs that have ended is asked as well.
    agent.execs.signal_lingering(libc::SIGTERM);
    if !grace.is_zero() {
        workloads.wait_empty(grace);
    }
    workloads.signal(libc::SIGKILL);
    if agent.setup.privileged {
        // Also what a program has moved out of our group (containers in the sandbox, for one): it
        // could write to the disk until the end. To PID 1 -1 means everything but itself.
        let _ = sys::kill(-1, libc::SIGKILL);
    }
    workloads.wait_empty(KILL_LIMIT);
}

/// Killed processes close their files a moment later.
fn persist(mut call: impl FnMut() -> io::Result<()>) -> io::Result<()> {
    let deadline = Instant::now() + KILL_LIMIT;
    loop {
        match call() {
            Err(error)
                if error.raw_os_error() == Some(libc::EBUSY) && Instant::now() < deadline =>
            {
                thread::sleep(Duration::from_millis(10));
            }
            result => return result,
        }
    }
}

/// The root cannot be unmounted while the agent stands on it; read-only is as good to the disk.
fn finish_disk(agent: &Agent) {
    // SAFETY: sync takes nothing.
    unsafe { libc::sync() };
    let Some(disk) = agent.disk.get() else { return };
    let path = Path::new("/proc/self/fd").join(disk.as_raw_fd().to_string());
    let read_only = libc::MS_REMOUNT | libc::MS_RDONLY;
    for target in [Path::new("/"), &path] {
        if let Err(error) = persist(|| sys::mount("", target, "", read_only, "")) {
            log(format_args!("cannot make {} read-only: {error}", target.display()));
        }
    }
    if let Err(error) = sys::syncfs(disk.as_raw_fd()) {
        log(format_args!("cannot sync the disk: {error}"));
    }
}

//! The canary: a boot that serves nobody. With `hutch.canary` on the kernel's command line the agent
//! prints the time stamp counter for a while, from which the host learns its rate, and powers off.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::thread;
use std::time::Duration;

use crate::init;

const WORD: &str = "hutch.canary";
/// Short, and hence many: on a busy host only a few readings reach the host without delay.
const INTERVAL: Duration = Duration::from_millis(10);
const READINGS: usize = 250;

/// Whether this boot is a canary's.
#[must_use]
pub fn requested() -> bool {
    init::has_word(WORD)
}

/// Prints the readings and powers off. Only returns when that is impossible.
///
/// # Errors
/// The console's, or that of the power-off.
pub fn run() -> io::Result<()> {
    let mut console =
        OpenOptions::new().write(true).custom_flags(libc::O_NOCTTY).open("/dev/console")?;
    for _ in 0..READINGS {
        // First, so that no reading shares the console with the boot's last words.
        thread::sleep(INTERVAL);
        let Some(tsc) = counter() else { break };
        // One width for all, so that each takes as long as any other to the host.
        console.write_all(format!("hutch-canary tsc={tsc:020}\n").as_bytes())?;
    }
    // SAFETY: reboot takes an integer; no disk is mounted.
    crate::sys::check(unsafe { libc::reboot(libc::RB_POWER_OFF) }).map(drop)
}

#[cfg(target_arch = "x86_64")]
fn counter() -> Option<u64> {
    // SAFETY: every x86-64 processor has the instruction, and Linux leaves it to user space.
    Some(unsafe { core::arch::x86_64::_rdtsc() })
}

#[cfg(not(target_arch = "x86_64"))]
fn counter() -> Option<u64> {
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(target_arch = "x86_64")]
    #[test]
    fn the_counter_counts() {
        assert!(counter() < counter());
    }
}

//! Stops the machine's oldest timer, which nobody uses and nobody stops.
//!
//! The firmware's state of the i8254 is a square wave of 18 Hz. A kernel that has a better timer from
//! the start never touches it, so an emulator goes on waking up 36 times a second for an idle machine.

use std::arch::asm;
use std::fs;
use std::io;

use crate::sys;

const CHANNEL_0: u16 = 0x40;
const MODE: u16 = 0x43;
/// Channel 0, both bytes, one shot. As the kernel's own pit_shutdown has it: some emulators take the
/// mode into account only once a count is written.
const ONE_SHOT: u8 = 0x30;

/// Stops channel 0 unless the kernel uses it.
///
/// # Errors
/// When the ports may not be used.
pub fn stop() -> io::Result<()> {
    if is_used() {
        return Ok(());
    }
    ports(true)?;
    for (port, value) in [(MODE, ONE_SHOT), (CHANNEL_0, 0), (CHANNEL_0, 0)] {
        // SAFETY: the port was granted above, and a write to it touches no memory.
        unsafe {
            asm!("out dx, al", in("dx") port, in("al") value, options(nomem, nostack, preserves_flags));
        }
    }
    ports(false)
}

/// Grants the timer's ports to this thread, or takes them back: with them every switch of threads
/// costs more.
fn ports(granted: bool) -> io::Result<()> {
    let (from, count) = (u64::from(CHANNEL_0), u64::from(MODE - CHANNEL_0 + 1));
    // SAFETY: ioperm takes integers.
    let result = unsafe { libc::ioperm(from, count, i32::from(granted)) };
    sys::check(result).map(drop)
}

/// Whether the kernel keeps time with it. One that cannot be asked may.
fn is_used() -> bool {
    let devices = "/sys/devices/system";
    let Ok(entries) = fs::read_dir(format!("{devices}/clockevents")) else { return true };
    let mut files: Vec<_> =
        entries.flatten().map(|entry| entry.path().join("current_device")).collect();
    files.push(format!("{devices}/clocksource/clocksource0/current_clocksource").into());
    files.iter().any(|file| fs::read_to_string(file).is_ok_and(|name| name.trim() == "pit"))
}

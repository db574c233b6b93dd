//! `stats`: what the machine uses, read from /proc without starting anything.

pub mod processes;

use std::fs;
use std::os::fd::AsRawFd;

use crate::agent::{cpus, Agent};
use crate::codec::Value;
use crate::failure::{Context, Failure};
use crate::map;
use crate::sys;

/// Nanoseconds of one tick of /proc's clocks.
pub const TICK_NS: u64 = 10_000_000;

/// The reply of `stats`.
///
/// # Errors
/// `io` when the disk cannot be asked.
pub fn stats(agent: &Agent) -> Result<Value, Failure> {
    let total = meminfo("MemTotal").unwrap_or(0);
    let available = meminfo("MemAvailable").unwrap_or(0);
    Ok(map! {
        "cpu_total_ns" => cpu_total_ns(),
        "cpu_count" => cpus(),
        "load" => load(),
        "memory" => map! {
            "total" => total,
            "available" => available,
            "used" => total.saturating_sub(available),
            "cached" => meminfo("Cached").unwrap_or(0),
        },
        "disk" => disk(agent)?,
        "processes" => processes::count(),
        "uptime_ns" => sys::uptime_ns(),
        "oom_kills" => agent.execs.workloads().map_or(0, |all| all.oom_kills()),
    })
}

/// A value of /proc/meminfo in bytes.
pub fn meminfo(key: &str) -> Option<u64> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))?;
    Some(line.split_whitespace().next()?.parse::<u64>().ok()? * 1024)
}

fn cpu_total_ns() -> u64 {
    busy_ticks(&fs::read_to_string("/proc/stat").unwrap_or_default()).saturating_mul(TICK_NS)
}

/// Ticks of the first line but idle, iowait and (contained in user and nice) guest.
fn busy_ticks(stat: &str) -> u64 {
    let numbers = stat.lines().next().unwrap_or("").split_whitespace().skip(1);
    let ticks = numbers.take(8).map(|number| number.parse::<u64>().unwrap_or(0));
    ticks.enumerate().filter(|(at, _)| *at != 3 && *at != 4).map(|(_, ticks)| ticks).sum()
}

fn load() -> Vec<Value> {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let mut numbers = text.split_whitespace().map(|number| number.parse().unwrap_or(0.0));
    (0..3).map(|_| Value::Float(numbers.next().unwrap_or(0.0))).collect()
}

fn disk(agent: &Agent) -> Result<Value, Failure> {
    let stat = match agent.disk.get() {
        Some(disk) => sys::statvfs(disk.as_raw_fd()),
        None => sys::open(&agent.setup.root, libc::O_RDONLY | libc::O_DIRECTORY, 0)
            .and_then(|root| sys::statvfs(root.as_raw_fd())),
    }
    .context(|| "ask the writable disk")?;
    let bytes = |blocks: u64| blocks.saturating_mul(stat.f_frsize);
    Ok(map! {
        "total" => bytes(stat.f_blocks),
        "used" => bytes(stat.f_blocks.saturating_sub(stat.f_bfree)),
        "available" => bytes(stat.f_bavail),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn idle_time_is_not_counted() {
        assert_eq!(busy_ticks("cpu  1 2 3 1000 500 4 5 6 7 8\ncpu0 9 9\n"), 21);
        assert_eq!(busy_ticks(""), 0);
        assert!(meminfo("MemTotal").unwrap() > 1 << 20);
    }
}

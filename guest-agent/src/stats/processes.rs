//! `processes`: the workloads as /proc shows them; the kernel's own threads are left out.

use std::fs;

use crate::agent::Agent;
use crate::cgroup;
use crate::codec::Value;
use crate::exec::users;
use crate::failure::Failure;
use crate::map;
use crate::stats::TICK_NS;
use crate::sys;

/// So many of the longest command lines still fit one frame.
const MAX_PROCESSES: usize = 800;
const MAX_COMMAND: usize = 200;

/// The reply of `processes`.
///
/// # Errors
/// None at present; processes that end meanwhile are left out.
pub fn processes(agent: &Agent) -> Result<Value, Failure> {
    let names = users::names(&agent.setup.root);
    let boot_ns = sys::realtime_ns().saturating_sub(sys::uptime_ns());
    let entry = |pid: u32| -> Option<Value> {
        let dir = format!("/proc/{pid}");
        let stat = Stat::parse(&fs::read_to_string(format!("{dir}/stat")).ok()?)?;
        if stat.kernel {
            return None;
        }
        let status = fs::read_to_string(format!("{dir}/status")).ok()?;
        let uid = status.lines().find_map(|line| {
            line.strip_prefix("Uid:")?.split_whitespace().next()?.parse::<u32>().ok()
        })?;
        let name = names.iter().find(|(id, _)| *id == uid).map(|(_, name)| name.clone());
        let group = fs::read_to_string(format!("{dir}/cgroup")).unwrap_or_default();
        let exec = cgroup::serial_of(&group).and_then(|serial| agent.execs.by_serial(serial));
        Some(map! {
            "pid" => pid,
            "ppid" => stat.ppid,
            "uid" => uid,
            "user" => name.unwrap_or_else(|| uid.to_string()),
            "state" => stat.state.as_str(),
            "cpu_ns" => stat.cpu_ticks.saturating_mul(TICK_NS),
            "rss" => stat.rss_pages.saturating_mul(4096),
            "threads" => stat.threads,
            "started_ns" => boot_ns.saturating_add(stat.start_ticks.saturating_mul(TICK_NS)),
            "command" => command(&dir, &stat.name),
            "exec_id" => exec.map(|exec| exec.about.id.clone()),
        })
    };
    let list: Vec<Value> = pids().filter_map(entry).take(MAX_PROCESSES).collect();
    Ok(map! { "processes" => list })
}

/// Processes, without the kernel's own.
pub fn count() -> u64 {
    let is_program = |pid: &u32| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok();
        stat.and_then(|stat| Stat::parse(&stat)).is_some_and(|stat| !stat.kernel)
    };
    pids().filter(is_program).count() as u64
}

fn pids() -> impl Iterator<Item = u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

fn command(dir: &str, name: &str) -> Vec<u8> {
    let mut line = fs::read(format!("{dir}/cmdline")).unwrap_or_default();
    line.truncate(MAX_COMMAND);
    while line.last() == Some(&0) {
        line.pop();
    }
    line.iter_mut().filter(|byte| **byte == 0).for_each(|byte| *byte = b' ');
    match line.is_empty() {
        // A zombie has no command line any more.
        true => format!("[{name}]").into_bytes(),
        false => line,
    }
}

struct Stat {
    name: String,
    state: String,
    ppid: u32,
    kernel: bool,
    cpu_ticks: u64,
    threads: u64,
    start_ticks: u64,
    rss_pages: u64,
}

impl Stat {
    /// The name in parentheses may contain anything, so the fields are counted from its end.
    fn parse(text: &str) -> Option<Stat> {
        const PF_KTHREAD: u64 = 0x0020_0000;
        let (head, tail) = text.rsplit_once(") ")?;
        let fields: Vec<&str> = tail.split_whitespace().collect();
        let number = |at: usize| fields.get(at)?.parse::<u64>().ok();
        Some(Stat {
            name: head.split_once('(')?.1.to_owned(),
            state: (*fields.first()?).to_owned(),
            ppid: number(1)? as u32,
            kernel: number(6)? & PF_KTHREAD != 0,
            cpu_ticks: number(11)?.saturating_add(number(12)?),
            threads: number(17)?,
            start_ticks: number(19)?,
            rss_pages: number(21)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_cannot_confuse_the_parser() {
        let text = "7 (a) (b) S 1 7 7 0 -1 4194560 1 2 3 4 10 20 0 0 20 0 3 0 55 1000 42 0 0";
        let stat = Stat::parse(text).unwrap();
        assert_eq!((stat.name.as_str(), stat.state.as_str(), stat.ppid), ("a) (b", "S", 1));
        assert_eq!((stat.cpu_ticks, stat.threads, stat.start_ticks), (30, 3, 55));
        assert_eq!(stat.rss_pages, 42);
        assert!(!stat.kernel);
        assert!(Stat::parse("7 (x) S 1").is_none());
    }

    #[test]
    fn we_are_among_the_processes() {
        assert!(pids().any(|pid| pid == std::process::id()));
        assert!(count() >= 1);
    }
}

//! `exec.list`: every session that is known.

use std::sync::Arc;

use crate::codec::Value;
use crate::exec::registry::Shared;
use crate::exec::Exec;
use crate::map;

/// A thousand programs with long arguments must still fit one frame: this many bytes for all.
const ARGV_BUDGET: usize = 64 << 10;

/// All sessions, oldest first. Arguments beyond the budget are cut.
pub fn list(shared: &Arc<Shared>) -> Value {
    let execs: Vec<_> = shared.all().into_iter().filter(|exec| exec.pid() > 0).collect();
    let each = ARGV_BUDGET / execs.len().max(1);
    let entries: Vec<Value> = execs.iter().map(|exec| entry(exec, each)).collect();
    map! { "execs" => entries }
}

fn entry(exec: &Exec, budget: usize) -> Value {
    let about = &exec.about;
    let [stdout, stderr] = exec.offsets();
    let pair = |(first, last): (u64, u64)| vec![Value::from(first), Value::from(last)];
    let mut left = budget;
    let mut argv = Vec::new();
    for argument in &about.argv {
        // A value's own overhead is at most 3 bytes at such lengths.
        let Some(room) = left.checked_sub(3) else { break };
        let kept = &argument[..argument.len().min(room)];
        argv.push(Value::from(kept));
        left = room - kept.len();
    }
    map! {
        "id" => about.id.as_str(),
        "pid" => exec.pid(),
        "argv" => argv,
        "user" => about.user.as_str(),
        "tty" => about.tty,
        "detached" => about.detached,
        "main" => about.main,
        "running" => exec.is_running(),
        "started_ns" => about.started_ns,
        "result" => exec.result(),
        "offsets" => map! { "1" => pair(stdout), "2" => pair(stderr) },
    }
}

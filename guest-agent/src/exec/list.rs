//! `exec.list`: every session that is known.

use std::sync::Arc;

use crate::codec::Value;
use crate::exec::registry::Shared;
use crate::exec::Exec;
use crate::map;

/// All sessions, oldest first.
pub fn list(shared: &Arc<Shared>) -> Value {
    let execs: Vec<Value> =
        shared.all().iter().filter(|exec| exec.pid() > 0).map(|exec| entry(exec)).collect();
    map! { "execs" => execs }
}

fn entry(exec: &Exec) -> Value {
    let about = &exec.about;
    let [stdout, stderr] = exec.offsets();
    let pair = |(first, last): (u64, u64)| vec![Value::from(first), Value::from(last)];
    // A thousand programs with long arguments must still fit one frame.
    let argv: Vec<Value> = about
        .argv
        .iter()
        .take(8)
        .map(|argument| Value::from(&argument[..argument.len().min(24)]))
        .collect();
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

//! `freeze` and `thaw`: every workload at once, through the cgroup freezer, and no new one meanwhile.
//!
//! The agent never thaws by itself: when its host has gone, it cannot tell whether it is in the machine
//! that was frozen or in a clone of it that has no identity yet.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::agent::Agent;
use crate::cgroup::Workloads;
use crate::codec::Value;
use crate::failure::{Code, Context, Failure};
use crate::fields::Fields;
use crate::hooks;
use crate::map;

const DEFAULT_LIMIT_MS: u64 = 100;
const MAX_LIMIT_MS: u64 = 60_000;

/// Freezes every workload.
///
/// # Errors
/// `timeout` when not in time (they run again then), `not_ready` before the root is mounted.
pub fn freeze(agent: &Agent, fields: &Fields) -> Result<Value, Failure> {
    let limit = fields.u64("timeout_ms", DEFAULT_LIMIT_MS)?.min(MAX_LIMIT_MS);
    let _alone = agent.lock_machine();
    let (workloads, gate) = (workloads(agent)?, &agent.execs.gate);
    let deadline = Instant::now() + Duration::from_millis(limit);
    // One that hangs while it is started could not be frozen either.
    let frozen = if gate.close(deadline) {
        workloads.freeze(deadline)
    } else {
        Err(io::ErrorKind::TimedOut.into())
    };
    if frozen.is_err() {
        gate.open();
    }
    match frozen {
        Err(error) if error.kind() == io::ErrorKind::TimedOut => {
            let message = format!("the workloads did not freeze within {limit} ms");
            Err(Failure::new(Code::Timeout, message))
        }
        result => result.map(|()| map! {}).context(|| "freeze the workloads"),
    }
}

/// Lets the workloads run again, and tells them if they do so in another machine.
///
/// # Errors
/// `not_ready` before the root is mounted; why an identity's files are missing.
pub fn thaw(agent: &Arc<Agent>) -> Result<Value, Failure> {
    let alone = agent.lock_machine();
    let workloads = workloads(agent)?;
    agent.settling.wait()?;
    workloads.thaw().context(|| "thaw the workloads")?;
    agent.execs.gate.open();
    drop(alone);
    hooks::tell(agent);
    Ok(map! {})
}

fn workloads(agent: &Agent) -> Result<&Arc<Workloads>, Failure> {
    let missing = || Failure::new(Code::NotReady, "there are no workloads yet");
    agent.execs.workloads().ok_or_else(missing)
}

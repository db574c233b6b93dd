//! `freeze` and `thaw`: every workload at once, through the cgroup freezer.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use crate::agent::Agent;
use crate::cgroup::Workloads;
use crate::codec::Value;
use crate::failure::{Code, Context, Failure};
use crate::fields::Fields;
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
    match workloads(agent)?.freeze(Duration::from_millis(limit)) {
        Err(error) if error.kind() == io::ErrorKind::TimedOut => {
            let message = format!("the workloads did not freeze within {limit} ms");
            Err(Failure::new(Code::Timeout, message))
        }
        result => result.map(|()| map! {}).context(|| "freeze the workloads"),
    }
}

/// Lets the workloads run again.
///
/// # Errors
/// `not_ready` before the root is mounted.
pub fn thaw(agent: &Agent) -> Result<Value, Failure> {
    let _alone = agent.lock_machine();
    workloads(agent)?.thaw().map(|()| map! {}).context(|| "thaw the workloads")
}

fn workloads(agent: &Agent) -> Result<&Arc<Workloads>, Failure> {
    let missing = || Failure::new(Code::NotReady, "there are no workloads yet");
    agent.execs.workloads().ok_or_else(missing)
}

//! Telling the programs of a machine that it has become another: the file has changed, hooks are run,
//! and the host hears how that went.
//!
//! A hook is an executable file of the image in /etc/hutch/generation.d. It runs after the thaw, as
//! root, among the workloads, with the number as its argument; one after the other by name. A machine
//! that becomes another again meanwhile runs no more of them with the number that it had: all of them
//! run anew, once the one that runs has ended.

use std::ffi::CString;
use std::fs;
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::sync::Arc;
use std::time::Duration;

use crate::agent::Agent;
use crate::cgroup::Group;
use crate::codec::Value;
use crate::console::log;
use crate::exec::child::{self, Ids, Namespaces, Plan};
use crate::exec::start::DEFAULT_PATH;
use crate::failure::{Context, Failure};
use crate::map;
use crate::sys;

const DIRECTORY: &str = "etc/hutch/generation.d";
const MAX_HOOKS: usize = 64;
/// A hook that takes longer is killed.
const LIMIT: Duration = Duration::from_secs(10);

/// Tells the programs, on a thread of its own, if there is anything that they were not told yet.
pub fn tell(agent: &Arc<Agent>) {
    let Some(generation) = agent.generation.to_tell() else { return };
    let own = agent.clone();
    let told = agent.workers.run(move || {
        let _turn = own.generation.turn();
        let hooks = find(&own.setup.root.join(DIRECTORY));
        let mut failed = Vec::new();
        for hook in &hooks {
            match run(&own, hook, generation) {
                Ok(true) => {}
                Ok(false) => return,
                Err(failure) => {
                    log(format_args!("hook {}: {failure}", hook.display()));
                    let name = hook.file_name().unwrap_or_default().to_string_lossy();
                    failed.push(Value::from(&*name));
                }
            }
        }
        if own.generation.number() != generation {
            return;
        }
        own.events.emit(&map! {
            "event" => "generation", "generation" => generation,
            "hooks" => hooks.len() as u64, "failed" => failed,
        });
    });
    if let Err(failure) = told {
        log(format_args!("generation {generation} is not told: {failure}"));
    }
}

/// The executable files of a directory, by name; hidden ones are left out.
fn find(directory: &Path) -> Vec<PathBuf> {
    let is_hook = |path: &PathBuf| {
        let is_hidden = path.file_name().is_none_or(|name| name.as_encoded_bytes()[0] == b'.');
        let executable =
            |meta: fs::Metadata| meta.is_file() && meta.permissions().mode() & 0o111 != 0;
        !is_hidden && fs::metadata(path).is_ok_and(executable)
    };
    let Ok(entries) = fs::read_dir(directory) else { return Vec::new() };
    let mut hooks: Vec<_> = entries.flatten().map(|it| it.path()).filter(is_hook).collect();
    hooks.sort();
    hooks.truncate(MAX_HOOKS);
    hooks
}

/// Runs a hook to its end; false when the number is not the machine's any more.
///
/// # Errors
/// What it could not be started for, or how it ended.
fn run(agent: &Agent, hook: &Path, generation: u64) -> Result<bool, Failure> {
    let text = |text: &str| CString::new(text).unwrap_or_default();
    let program = sys::c_string(hook).context(|| "its name")?;
    let null = sys::open("/dev/null", libc::O_RDWR, 0).context(|| "open /dev/null")?;
    let passage = agent.execs.gate.pass()?;
    // Inside the gate, which is closed while a machine with programs becomes another.
    if agent.generation.number() != generation {
        return Ok(false);
    }
    let (_, group) = agent.execs.prepare(false).context(|| "make its cgroup")?;
    let root = Ids { uid: 0, gid: 0, groups: vec![0] };
    let plan = Plan {
        argv: vec![program.clone(), text(&generation.to_string())],
        programs: vec![program],
        env: vec![
            text(&format!("PATH={}", String::from_utf8_lossy(DEFAULT_PATH))),
            text("HOME=/root"),
        ],
        cwd: text("/"),
        ids: root.to_take().filter(|_| agent.setup.privileged),
        stdio: [null.as_raw_fd(); 3],
        tty: false,
        cgroup: group.as_ref().map(Group::entrance),
        nofile: 0,
        namespaces: agent.execs.namespaces().unwrap_or(Namespaces::Agent),
    };
    let (tell, ended) = mpsc::channel();
    let started = child::start(&plan, move |ended| {
        // Nobody waits for one that takes too long.
        let _ = tell.send(ended);
    });
    let pid = started.map_err(|failed| Failure::io("it cannot be run", &failed.error))?;
    drop(passage);
    let end = match ended.recv_timeout(LIMIT) {
        Ok(end) if end.status == 0 => return Ok(true),
        Ok(end) => format!("it ended with status {:#06x}", end.status),
        Err(_) => format!("it was killed after {} s", LIMIT.as_secs()),
    };
    match &group {
        Some(group) => group.signal(libc::SIGKILL),
        None => drop(sys::kill(-pid, libc::SIGKILL)),
    }
    Err(Failure::new(crate::failure::Code::Io, end))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scratch::Scratch;

    #[test]
    fn hooks_are_the_executable_files_in_their_order() {
        let scratch = Scratch::new("hooks");
        for (name, mode) in [("20-b", 0o755), ("10-a", 0o700), ("note", 0o644), (".x", 0o755)] {
            let path = scratch.path().join(name);
            fs::write(&path, "").unwrap();
            fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        }
        fs::create_dir(scratch.path().join("30-dir")).unwrap();
        let found = find(scratch.path());
        let names: Vec<_> = found.iter().map(|path| path.file_name().unwrap()).collect();
        assert_eq!(names, ["10-a", "20-b"]);
        assert!(find(&scratch.path().join("none")).is_empty());
    }
}

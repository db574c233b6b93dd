//! `exec.start`: from the request to a running session.

use std::collections::HashSet;
use std::ffi::{CStr, CString};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicI32, AtomicU64};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::cgroup::Group;
use crate::codec::Value;
use crate::exec::child::{self, Namespaces, Plan, StartError, Step};
use crate::exec::output::{Attachment, Output, Overflow};
use crate::exec::registry::Shared;
use crate::exec::stdin::Stdin;
use crate::exec::users::{self, User};
use crate::exec::{io_loop, pty, About, Exec, Inner};
use crate::failure::{show, Code, Context, Failure};
use crate::fields::Fields;
use crate::frame::Kind;
use crate::map;
use crate::stream::Stream;
use crate::sys;

/// Where programs are looked for when nothing else is said.
pub const DEFAULT_PATH: &[u8] = b"/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
const MAX_ID: usize = 256;

/// The descriptors of a program: what it gets, what we keep.
struct Wiring {
    child: [OwnedFd; 3],
    outputs: [Option<OwnedFd>; 2],
    stdin: Option<OwnedFd>,
    terminal: Option<OwnedFd>,
}

/// Starts what `fields` ask for and answers on `stream`.
///
/// `root` is where the image's files are; `privileged` is false only in tests.
///
/// # Errors
/// The failure that the stream ends with; no session is left then.
pub fn start(
    shared: &Arc<Shared>,
    root: &Path,
    privileged: bool,
    fields: &Fields,
    stream: &Arc<Stream>,
) -> Result<(), Failure> {
    let user = users::find(root, fields.opt_str("user")?.unwrap_or(""))?;
    let size = fields.opt_map("tty")?.map(|size| pty::Size::of(&size));
    let timeout = fields.u64("timeout_ms", 0)?;
    let attach = fields.bool("attach", false)?;
    let overflow = overflow_of(fields)?;
    let init = fields.bool("init", false)?;
    let passage = shared.gate.pass()?;
    if passage.waited && stream.is_closed() {
        // Whoever asked is gone; in a clone, that is the caller at the source.
        return Err(Failure::cancelled());
    }
    let (serial, group) = shared.prepare(init).context(|| "make the exec's cgroup")?;
    let about = about_of(fields, serial, size.is_some())?;
    let wiring = wire(size, fields.bool("stdin", false)?)?;
    let mut plan = Plan {
        ids: user.ids.to_take().filter(|_| privileged),
        stdio: wiring.child.each_ref().map(AsRawFd::as_raw_fd),
        ..plan_of(fields, &about, &user)?
    };
    if !about.init {
        plan.namespaces = shared.namespaces().context(|| "find the init's namespaces")?;
    }
    let Wiring { child, outputs, stdin, terminal } = wiring;
    let inner = Inner::new(serial, outputs, Stdin::new(stdin, about.tty), terminal, overflow);
    let exec = Arc::new(Exec {
        about,
        pid: AtomicI32::new(0),
        oom_kills: AtomicU64::new(0),
        group,
        shared: shared.clone(),
        inner: Mutex::new(inner),
    });
    shared.insert(&exec)?;
    plan.cgroup = exec.group.as_ref().map(Group::entrance);
    let watcher = exec.clone();
    let pid = match child::start(&plan, move |ended| watcher.ended(ended)) {
        Ok(pid) => pid,
        Err(error) => {
            shared.withdraw(&exec);
            return Err(start_failure(&error, &exec.about.argv[0], &plan.cwd, &user));
        }
    };
    drop((child, passage));
    launch(&exec, pid, timeout, attach.then_some(stream));
    if attach {
        exec.carry(stream);
    } else {
        stream.reply(&map! { "pid" => pid, "started_ns" => exec.about.started_ns });
        stream.finish(Kind::Result, Ok(map! {}));
        exec.settle(exec.lock());
    }
    Ok(())
}

fn about_of(fields: &Fields, serial: u64, tty: bool) -> Result<About, Failure> {
    let argv = fields.bytes_list("argv")?;
    if argv.is_empty() || argv[0].is_empty() {
        return Err(Failure::new(Code::BadRequest, "argv is empty"));
    }
    Ok(About {
        id: id_of(fields)?,
        serial,
        argv,
        user: fields.opt_str("user")?.unwrap_or("").into(),
        tty,
        detached: fields.bool("detached", false)?,
        main: fields.bool("main", false)?,
        init: fields.bool("init", false)?,
        started_ns: sys::realtime_ns(),
        stop_signal: fields.opt_u32("stop_signal")?.unwrap_or(libc::SIGTERM as u32) as i32,
        kill_after: Duration::from_millis(fields.u64("kill_after_ms", 0)?),
    })
}

/// What the request alone decides; descriptors and ids are added by the caller.
fn plan_of<'a>(fields: &Fields, about: &About, user: &User) -> Result<Plan<'a>, Failure> {
    let env = environment(fields.bytes_list("env")?, user, about.tty);
    let cwd = fields.opt_bytes("cwd")?.filter(|path| !path.is_empty()).unwrap_or(b"/");
    Ok(Plan {
        programs: c_strings(&candidates(&about.argv[0], &env))?,
        argv: c_strings(&about.argv)?,
        env: c_strings(&env)?,
        cwd: c_string(cwd)?,
        ids: None,
        stdio: [-1; 3],
        tty: about.tty,
        cgroup: None,
        nofile: fields.u64("nofile", 0)?,
        namespaces: if about.init { Namespaces::Own } else { Namespaces::Agent },
    })
}

impl Inner {
    fn new(
        serial: u64,
        outputs: [Option<OwnedFd>; 2],
        stdin: Stdin,
        terminal: Option<OwnedFd>,
        overflow: Overflow,
    ) -> Inner {
        let [stdout, stderr] = outputs;
        let output = |channel| move |fd| Output::new(fd, io_loop::token(serial, channel));
        Inner {
            launched: false,
            outputs: [stdout.map(output(1)), stderr.map(output(2))],
            stdin,
            terminal,
            attached: None,
            overflow,
            timed_out: false,
            terminate_at: None,
            kill_at: None,
            ended: None,
            drain_at: None,
            timer: None,
            result: None,
            released: false,
        }
    }
}

/// The program runs: its output may flow, after the REPLY.
fn launch(exec: &Arc<Exec>, pid: i32, timeout_ms: u64, stream: Option<&Arc<Stream>>) {
    let mut inner = exec.lock();
    exec.pid.store(pid, std::sync::atomic::Ordering::Release);
    if timeout_ms > 0 {
        inner.terminate_at = Instant::now().checked_add(Duration::from_millis(timeout_ms));
    }
    if let Some(stream) = stream {
        stream.reply(&map! { "pid" => pid, "started_ns" => exec.about.started_ns });
        inner.attached = Some(Attachment::new(stream, [0; 2]));
    }
    inner.launched = true;
    exec.shared.io.register(exec);
    exec.rearm(&mut inner);
}

fn id_of(fields: &Fields) -> Result<String, Failure> {
    let id = fields.str("id")?;
    if id.is_empty() || id.len() > MAX_ID {
        return Err(Failure::new(Code::BadRequest, "id is empty or too long"));
    }
    Ok(id.into())
}

fn overflow_of(fields: &Fields) -> Result<Overflow, Failure> {
    let name = fields.opt_str("overflow")?.unwrap_or("block");
    Overflow::from_name(name)
        .ok_or_else(|| Failure::new(Code::BadRequest, format!("overflow is not {name}")))
}

fn wire(tty: Option<pty::Size>, stdin: bool) -> Result<Wiring, Failure> {
    let limit = |error: &std::io::Error| Failure::io("wire the exec's input and output", error);
    let wired = || -> std::io::Result<Wiring> {
        if let Some(size) = tty {
            let (master, slave) = pty::open(size)?;
            sys::set_nonblocking(master.as_raw_fd())?;
            return Ok(Wiring {
                child: [slave.try_clone()?, slave.try_clone()?, slave],
                outputs: [Some(master.try_clone()?), None],
                stdin: Some(master.try_clone()?),
                terminal: Some(master),
            });
        }
        let (input, ours) = if stdin {
            let (reader, writer) = sys::pipe()?;
            (reader, Some(writer))
        } else {
            (sys::open("/dev/null", libc::O_RDONLY, 0)?, None)
        };
        let (stdout, child_stdout) = sys::pipe()?;
        let (stderr, child_stderr) = sys::pipe()?;
        for fd in [&stdout, &stderr].into_iter().chain(ours.as_ref()) {
            sys::set_nonblocking(fd.as_raw_fd())?;
        }
        Ok(Wiring {
            child: [input, child_stdout, child_stderr],
            outputs: [Some(stdout), Some(stderr)],
            stdin: ours,
            terminal: None,
        })
    };
    wired().map_err(|error| limit(&error))
}

/// `env` with what programs expect and it lacks; of a key given twice the last counts.
fn environment(env: Vec<Vec<u8>>, user: &User, tty: bool) -> Vec<Vec<u8>> {
    let key = |pair: &[u8]| pair.split(|byte| *byte == b'=').next().unwrap_or(pair).to_vec();
    let mut seen = HashSet::new();
    let mut kept: Vec<_> = env.into_iter().rev().filter(|pair| seen.insert(key(pair))).collect();
    kept.reverse();
    let mut fill = |name: &str, value: &[u8]| {
        if seen.insert(name.as_bytes().to_vec()) {
            kept.push([name.as_bytes(), b"=", value].concat());
        }
    };
    fill("PATH", DEFAULT_PATH);
    fill("HOME", user.home.as_bytes());
    if !user.name.is_empty() {
        fill("USER", user.name.as_bytes());
        fill("LOGNAME", user.name.as_bytes());
    }
    fill("HOSTNAME", &crate::identity::hostname());
    if tty {
        fill("TERM", b"xterm");
    }
    kept
}

/// Where to look for the program: the PATH of `env`, or the name itself when it has a slash.
fn candidates(program: &[u8], env: &[Vec<u8>]) -> Vec<Vec<u8>> {
    if program.contains(&b'/') {
        return vec![program.to_vec()];
    }
    let path = env.iter().find_map(|pair| pair.strip_prefix(b"PATH=")).unwrap_or(DEFAULT_PATH);
    let join = |dir: &[u8]| match dir {
        b"" => program.to_vec(),
        dir => [dir, b"/", program].concat(),
    };
    path.split(|byte| *byte == b':').map(join).collect()
}

fn c_strings(list: &[Vec<u8>]) -> Result<Vec<CString>, Failure> {
    list.iter().map(|bytes| c_string(bytes)).collect()
}

fn c_string(bytes: &[u8]) -> Result<CString, Failure> {
    CString::new(bytes)
        .map_err(|_| Failure::new(Code::BadRequest, "an argument or variable contains NUL"))
}

/// 127 and 126 as shells tell them apart, bad directories and users by name.
fn start_failure(failed: &StartError, program: &[u8], cwd: &CStr, user: &User) -> Failure {
    let (what, code) = match failed.step {
        Step::Setup => ("set up the process".into(), None),
        Step::Cwd => (format!("change to {}", show(cwd.to_bytes())), Some(Code::BadCwd)),
        Step::User => (format!("become uid {}", user.ids.uid), None),
        Step::Exec => {
            let code = match failed.error.raw_os_error() {
                Some(libc::ENOENT | libc::ENOTDIR) => Code::NotFound,
                Some(libc::E2BIG) => Code::TooLarge,
                Some(libc::ENOMEM | libc::EAGAIN) => Code::Limit,
                _ => Code::NotExecutable,
            };
            (format!("run {}", show(program)), Some(code))
        }
    };
    let failure = Failure::io(what, &failed.error);
    Failure { code: code.unwrap_or(failure.code), ..failure }
}

/// The answer of `exec.attach`: see [`Exec::attach`].
///
/// # Errors
/// `not_found`, `bad_request`.
pub fn attach(shared: &Arc<Shared>, fields: &Fields, stream: &Arc<Stream>) -> Result<(), Failure> {
    let exec = shared.find(fields.str("id")?)?;
    let from = match fields.opt_map("from")? {
        Some(from) => Some([from.u64("1", 0)?, from.u64("2", 0)?]),
        None => None,
    };
    exec.attach(stream, from)
}

/// `exec.signal`.
///
/// # Errors
/// Those of [`Exec::signal`].
pub fn signal(shared: &Arc<Shared>, fields: &Fields) -> Result<Value, Failure> {
    let exec = shared.find(fields.str("id")?)?;
    let signal = fields
        .opt_u32("signal")?
        .ok_or_else(|| Failure::new(Code::BadRequest, "signal is missing"))?;
    exec.signal(signal, fields.bool("all", false)?)?;
    Ok(map! {})
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exec::child::Ids;

    fn user(name: &str) -> User {
        let ids = Ids { uid: 0, gid: 0, groups: vec![] };
        User { ids, name: name.into(), home: "/h".into() }
    }

    #[test]
    fn the_environment_is_completed_and_never_overruled() {
        let given = [&b"A=1"[..], b"HOME=/x", b"A=2"].map(<[u8]>::to_vec).to_vec();
        let env = environment(given, &user("me"), true);
        let has = |pair: &[u8]| env.iter().any(|it| it == pair);
        assert!(has(b"A=2") && !has(b"A=1") && has(b"HOME=/x") && !has(b"HOME=/h"));
        assert!(has(b"USER=me") && has(b"LOGNAME=me") && has(b"TERM=xterm"));
        let bare = environment(vec![], &user(""), false);
        assert!(!bare.iter().any(|it| it.starts_with(b"USER=") || it.starts_with(b"TERM=")));
        assert!(bare.iter().any(|it| it.starts_with(b"PATH=/usr/local/sbin:")));
    }

    #[test]
    fn programs_are_looked_up_in_the_given_path() {
        let env = [b"PATH=/a::/b".to_vec()];
        assert_eq!(candidates(b"x", &env), [b"/a/x".to_vec(), b"x".to_vec(), b"/b/x".to_vec()]);
        assert_eq!(candidates(b"./x", &env), [b"./x".to_vec()]);
    }
}

//! From vfork to execve: what happens in the child, where nothing may allocate or take a lock.
//!
//! The child borrows the agent's memory until it execs, and the thread that started it waits: a copy
//! of the page tables, and a fault for each page touched on either side, would cost more than all the
//! rest. All that it needs is prepared beforehand in a [`Plan`]. A failure is left in that memory, as the
//! step that failed and its errno.

use std::arch::asm;
use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::ptr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::OnceLock;

use crate::reaper::{Ended, Reaper};
use crate::sys;

/// libc's constants are too narrow for their values.
const CLONE_CLEAR_SIGHAND: u64 = 0x1_0000_0000;
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// The step in which a child failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Before anything of the request was looked at.
    Setup = 1,
    /// Changing to the working directory.
    Cwd = 2,
    /// Taking the user's ids.
    User = 3,
    /// execve.
    Exec = 4,
}

/// Why a program did not start.
#[derive(Debug)]
pub struct StartError {
    /// Where it failed.
    pub step: Step,
    /// With what.
    pub error: io::Error,
}

impl From<io::Error> for StartError {
    fn from(error: io::Error) -> StartError {
        StartError { step: Step::Setup, error }
    }
}

/// Everything that the child does, decided in advance.
pub struct Plan<'a> {
    /// The paths to try, in order.
    pub programs: Vec<CString>,
    /// The arguments, the program's name first.
    pub argv: Vec<CString>,
    /// The environment.
    pub env: Vec<CString>,
    /// The working directory.
    pub cwd: CString,
    /// The ids to take, none to keep our own.
    pub ids: Option<Ids>,
    /// Standard input, output, error.
    pub stdio: [RawFd; 3],
    /// Whether standard input is a terminal to be controlled by.
    pub tty: bool,
    /// The directory of the cgroup to begin in.
    pub cgroup: Option<BorrowedFd<'a>>,
    /// Limit of open files, 0 to leave it.
    pub nofile: u64,
    /// Namespaces to make or to join.
    pub namespaces: Namespaces,
}

/// The ids of a process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ids {
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
}

impl Ids {
    /// What a program has to take of these: nothing where the agent has the same.
    pub fn to_take(&self) -> Option<Ids> {
        (self != &inheritance().ids).then(|| self.clone())
    }
}

/// What a child has from the agent, unless it does something about it.
struct Inheritance {
    ids: Ids,
    /// Signals that the agent ignores; those that it handles are at their defaults in a child.
    ignored: Vec<i32>,
}

/// Looked at once, which every clone of a machine is spared: none of it changes.
fn inheritance() -> &'static Inheritance {
    static INHERITANCE: OnceLock<Inheritance> = OnceLock::new();
    INHERITANCE.get_or_init(|| Inheritance {
        // SAFETY: both calls take nothing and cannot fail.
        ids: unsafe { Ids { uid: libc::getuid(), gid: libc::getgid(), groups: sys::groups() } },
        ignored: (1..=libc::SIGRTMAX()).filter(|signal| sys::is_ignored(*signal)).collect(),
    })
}

/// Makes ready what all starts have in common. Of use before a machine is frozen.
pub fn prepare_starts() {
    inheritance();
}

/// The PID and mount namespace of a program.
pub enum Namespaces {
    /// Those of the agent.
    Agent,
    /// New ones: the program is an init.
    Own,
    /// Those of the init that runs.
    Join {
        /// Its PID namespace.
        pid: OwnedFd,
        /// Its mount namespace.
        mount: OwnedFd,
    },
}

/// Starts the program; `ended` is called once it has ended (not when this fails).
///
/// # Errors
/// The step that failed; the child is gone then.
pub fn start(plan: &Plan, ended: impl FnOnce(Ended) + Send + 'static) -> Result<i32, StartError> {
    let pointers = |list: &[CString]| {
        list.iter().map(|text| text.as_ptr()).chain([ptr::null()]).collect::<Vec<_>>()
    };
    let birth = Birth {
        plan,
        argv: &pointers(&plan.argv),
        env: &pointers(&plan.env),
        ignored: &inheritance().ignored,
        failed: AtomicU64::new(0),
    };
    let starting = Reaper::get().begin();
    let pid = fork(&birth)?;
    let failed = birth.failed.into_inner();
    if failed == 0 {
        starting.watch(pid, ended);
        return Ok(pid);
    }
    starting.watch(pid, |_| {});
    let step = match failed >> 32 {
        2 => Step::Cwd,
        3 => Step::User,
        4 => Step::Exec,
        _ => Step::Setup,
    };
    Err(StartError { step, error: io::Error::from_raw_os_error(failed as i32) })
}

fn fork(birth: &Birth) -> io::Result<i32> {
    // Joining a PID namespace concerns the children of this thread only; it is undone below.
    let own = match &birth.plan.namespaces {
        Namespaces::Join { pid, .. } => {
            let own = sys::open("/proc/thread-self/ns/pid", libc::O_RDONLY, 0)?;
            // SAFETY: setns takes integers.
            sys::check(unsafe { libc::setns(pid.as_raw_fd(), libc::CLONE_NEWPID) })?;
            Some(own)
        }
        _ => None,
    };
    let mut all: libc::sigset_t;
    let mut before: libc::sigset_t;
    let mut stack: Box<Stack> = Box::new([0; 2048]);
    // No handler of ours may run in the child, so signals are blocked until it is on its own.
    // SAFETY: the sets are plain data filled by the calls.
    let result = unsafe {
        all = std::mem::zeroed();
        before = std::mem::zeroed();
        libc::sigfillset(&mut all);
        libc::pthread_sigmask(libc::SIG_BLOCK, &all, &mut before);
        let result = clone(birth, &mut stack);
        libc::pthread_sigmask(libc::SIG_SETMASK, &before, ptr::null_mut());
        result
    };
    if let Some(own) = own {
        // SAFETY: setns takes integers.
        sys::check(unsafe { libc::setns(own.as_raw_fd(), libc::CLONE_NEWPID) })?;
    }
    result
}

/// What a child is given.
struct Birth<'a> {
    plan: &'a Plan<'a>,
    /// These two end with null.
    argv: &'a [*const libc::c_char],
    env: &'a [*const libc::c_char],
    ignored: &'a [i32],
    /// What the child leaves if it cannot exec: the step, and in the lower half its errno.
    failed: AtomicU64,
}

/// A child's stack, in the 16 bytes that the ABI aligns it to: it calls few functions, none of which
/// needs much.
type Stack = [u128; 2048];

/// clone3(2) as vfork(2), on `stack`, into the plan's cgroup and namespaces; gives the child's pid.
///
/// To be moved into a cgroup afterwards would stop every fork in the guest for a grace period of the
/// kernel's RCU.
///
/// # Safety
/// All signals must be blocked: a handler of ours would run in the child, on our memory.
unsafe fn clone(birth: &Birth, stack: &mut Stack) -> io::Result<i32> {
    let namespaces = match birth.plan.namespaces {
        Namespaces::Own => libc::CLONE_NEWPID | libc::CLONE_NEWNS,
        _ => 0,
    };
    // SAFETY: clone_args is a structure of integers, for which zero is valid.
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    args.flags = (namespaces | libc::CLONE_VM | libc::CLONE_VFORK) as u64 | CLONE_CLEAR_SIGHAND;
    args.exit_signal = libc::SIGCHLD as u64;
    args.stack = ptr::from_mut(stack) as u64;
    args.stack_size = std::mem::size_of::<Stack>() as u64;
    if let Some(cgroup) = &birth.plan.cgroup {
        args.flags |= CLONE_INTO_CGROUP;
        args.cgroup = cgroup.as_raw_fd() as u64;
    }
    let result: libc::c_long;
    // SAFETY: the arguments are those of clone3, and live until it returns here. The child, for which
    // it returns 0, continues on a stack of its own, which is empty, and never comes back: it calls
    // `begin` with what the register holds, as the ABI wants a function to be called.
    unsafe {
        asm!(
            "syscall",
            "test rax, rax",
            "jnz 2f",
            "xor ebp, ebp",
            "mov rdi, {birth}",
            "call {begin}",
            "ud2",
            "2:",
            birth = in(reg) ptr::from_ref(birth),
            begin = sym begin,
            inlateout("rax") libc::SYS_clone3 => result,
            in("rdi") ptr::from_ref(&args),
            in("rsi") std::mem::size_of_val(&args),
            // Not late: the child's input is read after the call has overwritten these.
            out("rcx") _,
            out("r11") _,
        );
    }
    // The kernel's own result, without libc: errno stands negated.
    i32::try_from(result)
        .ok()
        .filter(|pid| *pid > 0)
        .ok_or_else(|| io::Error::from_raw_os_error(-result as i32))
}

/// Where a child begins.
///
/// # Safety
/// Only in a fresh child process, with a pointer that is valid in it.
unsafe extern "C" fn begin(birth: *const Birth) -> ! {
    // SAFETY: as the caller promised; the parent waits, so what it lent us stays.
    unsafe { run(&*birth) }
}

/// The child.
///
/// # Safety
/// Only in a fresh child process; all that `birth` points to lives until it execs.
unsafe fn run(birth: &Birth) -> ! {
    // SAFETY: as the caller promised; every call below is a plain system call on prepared data.
    unsafe {
        let (step, errno) = match prepare(birth) {
            Err(failed) => failed,
            Ok(()) => {
                let mut errno = libc::ENOENT;
                for program in &birth.plan.programs {
                    libc::execve(program.as_ptr(), birth.argv.as_ptr(), birth.env.as_ptr());
                    match last_errno() {
                        // As execvp does: the next directory, but a refusal is remembered.
                        libc::ENOENT | libc::ENOTDIR => {}
                        libc::EACCES => errno = libc::EACCES,
                        other => {
                            errno = other;
                            break;
                        }
                    }
                }
                (Step::Exec, errno)
            }
        };
        // The parent waits until this process has ended, and sees it then.
        birth.failed.store((step as u64) << 32 | errno as u64, Ordering::Release);
        libc::_exit(127)
    }
}

fn last_errno() -> i32 {
    // SAFETY: the location of errno is always valid.
    unsafe { *libc::__errno_location() }
}

/// # Safety
/// As for [`run`].
unsafe fn prepare(birth: &Birth) -> Result<(), (Step, i32)> {
    let plan = birth.plan;
    let at = |step: Step, result: i64| if result < 0 { Err((step, last_errno())) } else { Ok(()) };
    let setup = |result: i32| at(Step::Setup, i64::from(result));
    // SAFETY: plain system calls on data that the plan keeps alive.
    unsafe {
        setup(libc::setsid())?;
        for (target, fd) in plan.stdio.iter().enumerate() {
            // dup2 of a descriptor onto itself would keep close-on-exec; ours are above 2.
            setup(libc::dup2(*fd, target as i32))?;
        }
        if plan.tty {
            setup(libc::ioctl(0, libc::TIOCSCTTY, 0))?;
        }
        match &plan.namespaces {
            Namespaces::Agent => {}
            Namespaces::Own => become_init()?,
            Namespaces::Join { mount, .. } => {
                setup(libc::setns(mount.as_raw_fd(), libc::CLONE_NEWNS))?;
            }
        }
        if plan.nofile > 0 {
            setup(limit_files(plan.nofile))?;
        }
        libc::umask(0o022);
        at(Step::Cwd, i64::from(libc::chdir(plan.cwd.as_ptr())))?;
        if let Some(ids) = &plan.ids {
            // The raw calls: glibc's would try to change the agent's other threads as well.
            let (gid, uid) = (ids.gid, ids.uid);
            let groups = ids.groups.as_ptr();
            at(Step::User, libc::syscall(libc::SYS_setgroups, ids.groups.len(), groups))?;
            at(Step::User, libc::syscall(libc::SYS_setresgid, gid, gid, gid))?;
            at(Step::User, libc::syscall(libc::SYS_setresuid, uid, uid, uid))?;
        }
        reset_signals(birth.ignored);
        let close_on_exec = libc::CLOSE_RANGE_CLOEXEC;
        libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, close_on_exec);
    }
    Ok(())
}

/// Sets the limit of open files; without the right to raise the hard one, as near as possible.
///
/// # Safety
/// As for [`run`].
unsafe fn limit_files(wanted: u64) -> i32 {
    // SAFETY: plain system calls on a local structure.
    unsafe {
        let mut limit = libc::rlimit { rlim_cur: wanted, rlim_max: wanted };
        if libc::setrlimit(libc::RLIMIT_NOFILE, &limit) == 0 {
            return 0;
        }
        libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit);
        limit.rlim_cur = wanted.min(limit.rlim_max);
        libc::setrlimit(libc::RLIMIT_NOFILE, &limit)
    }
}

/// An init has a /proc and a cgroup tree of its own, and mounts that do not reach the agent.
///
/// # Safety
/// As for [`run`].
unsafe fn become_init() -> Result<(), (Step, i32)> {
    let none = ptr::null();
    let check = |result: i32| if result < 0 { Err((Step::Setup, last_errno())) } else { Ok(()) };
    // SAFETY: plain system calls on constants.
    unsafe {
        let private = libc::MS_REC | libc::MS_PRIVATE;
        check(libc::mount(none, c"/".as_ptr(), none, private, none.cast()))?;
        let flags = libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC;
        let proc = c"proc".as_ptr();
        check(libc::mount(proc, c"/proc".as_ptr(), proc, flags, none.cast()))?;
        check(libc::unshare(libc::CLONE_NEWCGROUP))?;
        // The same file system cannot be mounted over itself, even with another root.
        check(libc::umount2(c"/sys/fs/cgroup".as_ptr(), libc::MNT_DETACH))?;
        let cgroup = c"cgroup2".as_ptr();
        check(libc::mount(cgroup, c"/sys/fs/cgroup".as_ptr(), cgroup, flags, none.cast()))
    }
}

/// # Safety
/// As for [`run`].
unsafe fn reset_signals(ignored: &[i32]) {
    // SAFETY: setting a signal to its default and emptying the mask need no memory but the set's.
    unsafe {
        for signal in ignored {
            libc::signal(*signal, libc::SIG_DFL);
        }
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &none, ptr::null_mut());
    }
}

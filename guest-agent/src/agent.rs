//! What all requests share: the machine's stage, the exec sessions, the worker threads, events.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, TryLockError};
use std::thread;
use std::time::{Duration, Instant};

use crate::codec::Value;
use crate::etc::Etc;
use crate::events::Events;
use crate::exec::io_loop::IoLoop;
use crate::exec::registry::Shared;
use crate::exec::ring;
use crate::failure::{Code, Failure};
use crate::generation::Generation;
use crate::link::Link;
use crate::map;
use crate::network::Network;
use crate::preamble::VERSION;
use crate::settling::Settling;
use crate::sys;
use crate::workers::Workers;

/// How far the machine has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// The initramfs.
    Boot,
    /// The image's root is mounted.
    Root,
    /// The writable disk is mounted and has become the root.
    Ready,
}

impl Stage {
    fn as_str(self) -> &'static str {
        match self {
            Stage::Boot => "boot",
            Stage::Root => "root",
            Stage::Ready => "ready",
        }
    }
}

/// How the agent runs.
pub struct Setup {
    /// Where the machine stands at the start.
    pub stage: Stage,
    /// Whether it may change users, mount and power off: PID 1 may, a test may not.
    pub privileged: bool,
    /// Where the image's /etc and /run are.
    pub root: PathBuf,
}

/// The agent.
pub struct Agent {
    /// How it runs.
    pub setup: Setup,
    /// The way to the host.
    pub link: Arc<Link>,
    /// The exec sessions.
    pub execs: Arc<Shared>,
    /// Threads for what may block.
    pub workers: Arc<Workers>,
    /// Events of stream 0.
    pub events: Arc<Events>,
    /// The writable disk's directory, once it is mounted.
    pub disk: OnceLock<OwnedFd>,
    /// Which life of its memory this machine leads.
    pub generation: Generation,
    /// The files that say who it is.
    pub etc: Etc,
    /// Its network card.
    pub network: Network,
    /// What of the last identity is still being done.
    pub settling: Settling,
    /// What does not change while the kernel runs.
    constants: Constants,
    /// Held during mounts, freezing and shutdown, which must not overlap.
    machine: Mutex<()>,
    stage: AtomicU8,
}

/// Read once: a clone is greeted before anything else, and pays for each path of the kernel anew.
struct Constants {
    kernel: String,
    boot_id: String,
    cpus: u64,
    memory_bytes: u64,
}

impl Agent {
    /// An agent that speaks through `port` (non-blocking).
    ///
    /// # Errors
    /// When its threads cannot be started.
    pub fn start(port: Arc<OwnedFd>, setup: Setup) -> io::Result<Arc<Agent>> {
        let constants = Constants::read();
        ring::set_budget((constants.memory_bytes / 8) as usize);
        let link = Link::start(port)?;
        let events = Arc::new(Events::default());
        let execs = Shared::new(IoLoop::start(link.clone())?, events.clone());
        Ok(Arc::new(Agent {
            machine: Mutex::new(()),
            stage: AtomicU8::new(setup.stage as u8),
            setup,
            link,
            execs,
            workers: Workers::new(),
            events,
            disk: OnceLock::new(),
            generation: Generation::default(),
            etc: Etc::default(),
            network: Network::default(),
            settling: Settling::default(),
            constants,
        }))
    }

    /// How far the machine has come.
    pub fn stage(&self) -> Stage {
        match self.stage.load(Ordering::Acquire) {
            0 => Stage::Boot,
            1 => Stage::Root,
            _ => Stage::Ready,
        }
    }

    /// The machine has come further.
    pub fn set_stage(&self, stage: Stage) {
        self.stage.store(stage as u8, Ordering::Release);
    }

    /// Keeps other operations on the whole machine out.
    pub fn lock_machine(&self) -> MutexGuard<'_, ()> {
        self.machine.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// As [`Agent::lock_machine`], but gives up after `limit`.
    pub fn lock_machine_within(&self, limit: Duration) -> Option<MutexGuard<'_, ()>> {
        let deadline = Instant::now() + limit;
        loop {
            match self.machine.try_lock() {
                Ok(guard) => return Some(guard),
                Err(TryLockError::Poisoned(poisoned)) => return Some(poisoned.into_inner()),
                Err(TryLockError::WouldBlock) if Instant::now() > deadline => return None,
                // The standard library's locks cannot be waited for in any other way.
                Err(TryLockError::WouldBlock) => thread::sleep(Duration::from_millis(5)),
            }
        }
    }

    /// Waits for the files of an identity.
    ///
    /// # Errors
    /// `not_ready` before the writable disk is mounted; why these files are missing.
    pub fn require_ready(&self) -> Result<(), Failure> {
        match self.stage() {
            Stage::Ready => self.settling.wait(),
            _ => Err(Failure::new(Code::NotReady, "the root file system is not mounted yet")),
        }
    }

    /// The reply of `info`.
    pub fn info(&self) -> Value {
        let constants = &self.constants;
        map! {
            "agent_version" => env!("CARGO_PKG_VERSION"),
            "protocol" => VERSION,
            "kernel" => constants.kernel.as_str(),
            "boot_id" => constants.boot_id.as_str(),
            "uptime_ns" => sys::uptime_ns(),
            "stage" => self.stage().as_str(),
            "cpus" => constants.cpus,
            "memory_bytes" => constants.memory_bytes,
            "frozen" => self.execs.gate.is_closed(),
        }
    }

    /// The event that follows each WELCOME.
    pub fn hello_event(&self) -> Value {
        let Value::Map(mut pairs) = self.info() else { return Value::Nil };
        pairs.insert(0, ("event".into(), "hello".into()));
        pairs.push(("generation".into(), self.generation.number().into()));
        Value::Map(pairs)
    }
}

impl Constants {
    fn read() -> Constants {
        let line = |path: &str| {
            let text = fs::read_to_string(path).unwrap_or_default();
            text.trim().to_owned()
        };
        Constants {
            kernel: line("/proc/sys/kernel/osrelease"),
            boot_id: line("/proc/sys/kernel/random/boot_id"),
            cpus: cpus(),
            memory_bytes: memory_bytes(),
        }
    }
}

/// The machine's memory in bytes.
pub fn memory_bytes() -> u64 {
    crate::stats::meminfo("MemTotal").unwrap_or(256 << 20)
}

/// The processors that are online.
pub fn cpus() -> u64 {
    // SAFETY: sysconf takes an integer.
    unsafe { libc::sysconf(libc::_SC_NPROCESSORS_ONLN) }.max(1) as u64
}

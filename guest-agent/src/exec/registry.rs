//! All sessions by name: which ids are taken, which sessions have ended and may be forgotten.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread;

use crate::cgroup::{Group, Workloads};
use crate::codec::Value;
use crate::console::log;
use crate::events::Events;
use crate::exec::child::Namespaces;
use crate::exec::io_loop::IoLoop;
use crate::exec::Exec;
use crate::failure::{Code, Failure};
use crate::gate::Gate;
use crate::map;
use crate::sys;

/// Sessions that may run at once.
const MAX_RUNNING: usize = 1024;
/// Ended sessions that are kept for the host to ask about.
const MAX_ENDED: usize = 256;

/// Groups that are made ahead, before any session.
const SPARES: usize = 4;
/// Below this the stock is filled up. Not at once: a clone that runs little need not make any.
const FEW_SPARES: usize = 3;

/// Groups with their numbers, made ahead of the sessions that take them.
#[derive(Default)]
struct Spares {
    stock: Mutex<Stock>,
    wanted: Condvar,
}

#[derive(Default)]
struct Stock {
    groups: VecDeque<(u64, Group)>,
    refilling: bool,
}

impl Spares {
    fn take(&self) -> Option<(u64, Group)> {
        self.lock().groups.pop_front()
    }

    fn put(&self, spare: (u64, Group)) {
        self.lock().groups.push_back(spare);
    }

    fn refill(&self) {
        let mut stock = self.lock();
        stock.refilling = stock.groups.len() < FEW_SPARES;
        if stock.refilling {
            self.wanted.notify_one();
        }
    }

    fn wait_for_room(&self) {
        let mut stock = self.lock();
        while !stock.refilling || stock.groups.len() >= FEW_SPARES {
            stock.refilling = false;
            stock = self.wanted.wait(stock).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Stock> {
        self.stock.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What all sessions share.
pub struct Shared {
    /// The thread that moves their bytes.
    pub io: Arc<IoLoop>,
    /// What every start passes.
    pub gate: Gate,
    events: Arc<Events>,
    workloads: OnceLock<Arc<Workloads>>,
    serial: AtomicU64,
    lived: AtomicBool,
    spares: Spares,
    table: Mutex<Table>,
}

#[derive(Default)]
struct Table {
    execs: HashMap<String, Arc<Exec>>,
    ended: VecDeque<Arc<Exec>>,
    /// Forgotten sessions whose background children keep their cgroup.
    lingering: Vec<Arc<Exec>>,
}

impl Table {
    fn drop_exec(&mut self, exec: &Arc<Exec>) {
        self.execs.remove(&exec.about.id);
        if exec.group.as_ref().is_some_and(|group| group.remove().is_err()) {
            self.lingering.push(exec.clone());
        }
    }
}

impl Shared {
    /// No sessions yet.
    pub fn new(io: Arc<IoLoop>, events: Arc<Events>) -> Arc<Shared> {
        Arc::new(Shared {
            io,
            gate: Gate::default(),
            events,
            workloads: OnceLock::new(),
            serial: AtomicU64::new(1),
            lived: AtomicBool::new(false),
            spares: Spares::default(),
            table: Mutex::default(),
        })
    }

    /// From now on sessions get a cgroup each.
    ///
    /// # Errors
    /// When the first of them cannot be made.
    pub fn use_cgroups(self: &Arc<Self>, workloads: Arc<Workloads>) -> io::Result<()> {
        for _ in 0..SPARES {
            self.spares.put(self.new_group(&workloads)?);
        }
        let (own, all) = (self.clone(), workloads.clone());
        let keeper = thread::Builder::new().name("groups".into()).stack_size(64 << 10);
        keeper.spawn(move || own.keep_spares(&all))?;
        let _ = self.workloads.set(workloads);
        Ok(())
    }

    /// The group of all workloads, where there is one.
    pub fn workloads(&self) -> Option<&Arc<Workloads>> {
        self.workloads.get()
    }

    /// Whether any program was ever started.
    pub fn have_lived(&self) -> bool {
        self.lived.load(Ordering::Relaxed)
    }

    /// A number for the next session, and its cgroup. For one that is an init all controllers are
    /// handed on.
    pub(crate) fn prepare(&self, init: bool) -> io::Result<(u64, Option<Group>)> {
        self.lived.store(true, Ordering::Relaxed);
        let Some(workloads) = self.workloads.get() else { return Ok((self.next_serial(), None)) };
        if init {
            workloads.delegate_all();
        }
        let (serial, group) = match self.spares.take() {
            Some(spare) => spare,
            None => self.new_group(workloads)?,
        };
        Ok((serial, Some(group)))
    }

    fn next_serial(&self) -> u64 {
        self.serial.fetch_add(1, Ordering::Relaxed)
    }

    fn new_group(&self, workloads: &Workloads) -> io::Result<(u64, Group)> {
        let serial = self.next_serial();
        Ok((serial, workloads.group(serial)?))
    }

    /// Keeps groups in stock for ever: making one is a good part of a start.
    fn keep_spares(&self, workloads: &Workloads) {
        loop {
            self.spares.wait_for_room();
            match self.new_group(workloads) {
                Ok(spare) => self.spares.put(spare),
                // A program has mounted or removed what we need: each start tries, and tells.
                Err(error) => return log(format_args!("no more groups in stock: {error}")),
            }
        }
    }

    /// Takes the id for `exec`.
    ///
    /// # Errors
    /// `exists`, or `limit`.
    pub(super) fn insert(&self, exec: &Arc<Exec>) -> Result<(), Failure> {
        let mut table = self.lock();
        if table.execs.contains_key(&exec.about.id) {
            let message = format!("there is an exec {} already", exec.about.id);
            return Err(Failure::new(Code::Exists, message));
        }
        if table.execs.len() - table.ended.len() >= MAX_RUNNING {
            return Err(Failure::new(Code::Limit, "too many execs are running"));
        }
        table.execs.insert(exec.about.id.clone(), exec.clone());
        table.lingering.retain(|exec| exec.group.as_ref().is_some_and(|it| it.remove().is_err()));
        Ok(())
    }

    /// Gives the id of a session that could not be started back.
    pub(super) fn withdraw(&self, exec: &Arc<Exec>) {
        self.lock().execs.remove(&exec.about.id);
        self.io.forget(exec.about.serial);
        if let Some(group) = &exec.group {
            // The child may not be reaped yet; its group goes with the next start then.
            if group.remove().is_err() {
                self.lock().lingering.push(exec.clone());
            }
        }
    }

    /// A session has ended: it may be released. Gives the oldest of the ended if it had to make room;
    /// the caller lets go of it once it holds no lock.
    pub(super) fn note_ended(&self, exec: &Arc<Exec>) -> Option<Arc<Exec>> {
        let mut table = self.lock();
        table.ended.push_back(exec.clone());
        let oldest = (table.ended.len() > MAX_ENDED).then(|| table.ended.pop_front()).flatten()?;
        table.drop_exec(&oldest);
        Some(oldest)
    }

    /// Tells the host that a session has ended.
    pub(super) fn report_ended(&self, exec: &Exec, result: Value) {
        let id = exec.about.id.as_str();
        self.events.emit(&map! { "event" => "exec.exit", "id" => id, "result" => result.clone() });
        if exec.about.main {
            self.events.emit(&map! { "event" => "main.exit", "result" => result });
        }
        // Now that the host has its answer, there is time.
        self.spares.refill();
    }

    /// The session with that id.
    ///
    /// # Errors
    /// `not_found`.
    pub fn find(&self, id: &str) -> Result<Arc<Exec>, Failure> {
        let missing = || Failure::new(Code::NotFound, format!("there is no exec {id}"));
        self.lock().execs.get(id).cloned().ok_or_else(missing)
    }

    /// All sessions, oldest first.
    pub fn all(&self) -> Vec<Arc<Exec>> {
        let mut execs: Vec<_> = self.lock().execs.values().cloned().collect();
        execs.sort_by_key(|exec| exec.about.serial);
        execs
    }

    /// Signals what forgotten sessions have left running.
    pub fn signal_lingering(&self, signal: i32) {
        self.lock().lingering.iter().filter_map(|it| it.group.as_ref()).for_each(|it| {
            it.signal(signal);
        });
    }

    /// Forgets an ended session.
    ///
    /// # Errors
    /// `not_found`, or `busy` while it runs.
    pub fn release(&self, id: &str) -> Result<(), Failure> {
        let exec = self.find(id)?;
        let mut table = self.lock();
        let Some(at) = table.ended.iter().position(|ended| Arc::ptr_eq(ended, &exec)) else {
            return Err(Failure::new(Code::Busy, format!("exec {id} is running")));
        };
        table.ended.remove(at);
        table.drop_exec(&exec);
        drop(table);
        exec.let_go();
        Ok(())
    }

    /// The namespaces of the init that runs, those of the agent where none does.
    pub(crate) fn namespaces(&self) -> io::Result<Namespaces> {
        let init = self.all().into_iter().find(|exec| exec.about.init && exec.is_running());
        let Some(init) = init else { return Ok(Namespaces::Agent) };
        let open = |kind: &str| -> io::Result<OwnedFd> {
            sys::open(format!("/proc/{}/ns/{kind}", init.pid()), libc::O_RDONLY, 0)
        };
        Ok(Namespaces::Join { pid: open("pid")?, mount: open("mnt")? })
    }

    /// The session with that serial, for naming processes.
    pub fn by_serial(&self, serial: u64) -> Option<Arc<Exec>> {
        self.lock().execs.values().find(|exec| exec.about.serial == serial).cloned()
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

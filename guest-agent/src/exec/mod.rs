//! One exec session: a program, the rings of its output, its standard input, its end.
//!
//! A session outlives its stream and its connection. Its state is behind one lock; nothing done under
//! that lock waits, so the dispatcher, the I/O loop and the reaper may all call in. Streams are never
//! locked under it (see `stream`): only frames are sent, which needs the link's lock alone.

pub mod child;
pub mod io_loop;
pub mod list;
mod output;
pub mod pty;
pub mod registry;
pub mod ring;
pub mod start;
mod stdin;
pub mod users;

use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicI32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::cgroup::Group;
use crate::codec::Value;
use crate::exec::output::{Attachment, Output, Overflow};
use crate::exec::registry::Shared;
use crate::exec::stdin::Stdin;
use crate::failure::{Code, Failure};
use crate::fields::Fields;
use crate::frame::{self, Kind};
use crate::map;
use crate::reaper::Ended;
use crate::stream::{Input, Stream};
use crate::sys;

/// After the program's end, output is waited for as long as it keeps coming within this time.
const DRAIN: Duration = Duration::from_millis(250);

/// What is known of a session from its start.
pub struct About {
    /// The host's name for it.
    pub id: String,
    /// Our number for it, never used twice.
    pub serial: u64,
    /// Its arguments.
    pub argv: Vec<Vec<u8>>,
    /// The user as asked for.
    pub user: String,
    /// Whether it has a terminal.
    pub tty: bool,
    /// Whether the host will not wait for it.
    pub detached: bool,
    /// Whether the sandbox ends with it.
    pub main: bool,
    /// Whether it is PID 1 of a namespace of its own.
    pub init: bool,
    /// The wall clock at its start.
    pub started_ns: u64,
    /// The signal that asks it to stop.
    pub stop_signal: i32,
    /// From SIGTERM to SIGKILL when its time is up.
    pub kill_after: Duration,
}

/// One session.
pub struct Exec {
    /// What does not change.
    pub about: About,
    pid: AtomicI32,
    oom_kills: AtomicU64,
    group: Option<Group>,
    shared: Arc<Shared>,
    inner: Mutex<Inner>,
}

struct Inner {
    /// Whether its REPLY has been sent: before that, nothing may be.
    launched: bool,
    outputs: [Option<Output>; 2],
    stdin: Stdin,
    /// The terminal's master, for resizing.
    terminal: Option<OwnedFd>,
    attached: Option<Attachment>,
    overflow: Overflow,
    timed_out: bool,
    terminate_at: Option<Instant>,
    kill_at: Option<Instant>,
    ended: Option<(Ended, u64)>,
    drain_at: Option<Instant>,
    /// The next look that the I/O loop has been asked for.
    timer: Option<Instant>,
    result: Option<Value>,
    /// Whether the registry knows it no more.
    released: bool,
}

impl Exec {
    /// Its process id, which is also its process group.
    pub fn pid(&self) -> i32 {
        self.pid.load(Ordering::Acquire)
    }

    /// The RESULT, once the program has ended and its output has been read.
    pub fn result(&self) -> Option<Value> {
        self.lock().result.clone()
    }

    /// Whether it has been started and has not ended.
    pub fn is_running(&self) -> bool {
        let inner = self.lock();
        inner.launched && inner.result.is_none()
    }

    /// (first, last) offset of each output channel.
    pub fn offsets(&self) -> [(u64, u64); 2] {
        let inner = self.lock();
        let of = |output: &Option<Output>| {
            output.as_ref().map_or((0, 0), |output| (output.ring.first(), output.ring.last()))
        };
        [of(&inner.outputs[0]), of(&inner.outputs[1])]
    }

    /// Sends `signal` to the process group, or to all that the exec started.
    ///
    /// # Errors
    /// `not_found` when there is nobody left, `bad_request` for a signal that does not exist.
    pub fn signal(&self, signal: u32, all: bool) -> Result<(), Failure> {
        let signal = i32::try_from(signal)
            .ok()
            .filter(|number| (0..=libc::SIGRTMAX()).contains(number))
            .ok_or_else(|| Failure::new(Code::BadRequest, format!("no signal {signal}")))?;
        let inner = self.lock();
        if all {
            self.signal_all(signal);
            return Ok(());
        }
        if inner.ended.is_some() || self.pid() <= 1 {
            let message = format!("exec {} has ended", self.about.id);
            return Err(Failure::new(Code::NotFound, message));
        }
        sys::kill(-self.pid(), signal)
            .map_err(|error| Failure::io(format!("signal exec {}", self.about.id), &error))
    }

    /// Without a cgroup (an agent without privileges, in tests) the process group has to do.
    fn signal_all(&self, signal: i32) {
        match &self.group {
            Some(group) => group.signal(signal),
            None if self.pid() > 1 => {
                let _ = sys::kill(-self.pid(), signal);
            }
            None => {}
        }
    }

    /// OOM kills in its cgroup since the last call.
    pub fn new_oom_kills(&self) -> u64 {
        let count = self.group.as_ref().map_or(0, Group::oom_kills);
        count.saturating_sub(self.oom_kills.fetch_max(count, Ordering::Relaxed))
    }

    /// Carries the session on `stream` from now on; `from` are offsets that the host has already.
    /// A former attachment ends with `busy`.
    ///
    /// # Errors
    /// `bad_request` for an offset that lies ahead, `not_ready` before the start is complete.
    pub fn attach(
        self: &Arc<Self>,
        stream: &Arc<Stream>,
        from: Option<[u64; 2]>,
    ) -> Result<(), Failure> {
        let mut inner = self.lock();
        if !inner.launched {
            return Err(Failure::new(Code::NotReady, "the exec is being started"));
        }
        let mut sent = [0; 2];
        for (index, output) in inner.outputs.iter_mut().enumerate() {
            let Some(output) = output else { continue };
            sent[index] = from.map_or(output.ring.first(), |from| from[index]);
            if sent[index] > output.ring.last() {
                return Err(Failure::new(Code::BadRequest, "the offset lies ahead of the output"));
            }
            // The host has what is before it, and a full ring must not wait for an
            // acknowledgement that nobody owes.
            output.ring.release(sent[index]);
        }
        let former = inner.attached.replace(Attachment::new(stream, sent));
        stream.reply(&map! {
            "pid" => self.pid(),
            "running" => inner.result.is_none(),
            "tty" => self.about.tty,
            "offsets" => map! { "1" => sent[0], "2" => sent[1] },
        });
        drop(inner);
        if let Some(former) = former {
            let busy = Failure::new(Code::Busy, "the exec has been attached to elsewhere");
            former.stream.finish(Kind::Result, Err(busy));
        }
        self.carry(stream);
        Ok(())
    }

    /// What both ends of an attachment begin with.
    fn carry(self: &Arc<Self>, stream: &Arc<Stream>) {
        stream.give_to(self);
        let mut inner = self.lock();
        self.rearm(&mut inner);
        self.pump(&mut inner);
        self.settle(inner);
    }

    /// `stream` no longer carries the session; the program runs on.
    pub fn detach(&self, stream: &Arc<Stream>) {
        let mut inner = self.lock();
        if inner.attached.as_ref().is_some_and(|it| Arc::ptr_eq(&it.stream, stream)) {
            inner.attached = None;
        }
    }

    /// The host has consumed `count` bytes of a channel.
    pub fn credit(self: &Arc<Self>, stream: &Arc<Stream>, channel: u8, count: usize) {
        let mut inner = self.lock();
        let index = usize::from(channel == 2);
        let inner_ref = &mut *inner;
        let (Some(attached), Some(output)) =
            (&mut inner_ref.attached, &mut inner_ref.outputs[index])
        else {
            return;
        };
        if Arc::ptr_eq(&attached.stream, stream) {
            attached.acknowledge(index, count, output);
            self.rearm(&mut inner);
            self.pump(&mut inner);
            self.settle(inner);
        }
    }

    /// Takes input of the host.
    pub fn input(&self, stream: &Arc<Stream>, input: Input) {
        let mut consumed = 0;
        self.input_early(stream, input, &mut |count| consumed += count);
        if consumed > 0 {
            stream.consumed(consumed);
        }
    }

    /// As [`Exec::input`], but the consumed bytes go to `consumed` (the stream is locked).
    pub fn input_early(&self, stream: &Arc<Stream>, input: Input, consumed: &mut dyn FnMut(usize)) {
        match input {
            Input::Data(bytes) => {
                let mut inner = self.lock();
                inner.stdin.push(bytes, stream);
                consumed(inner.stdin.write(&self.shared.io, self.token(0)));
            }
            Input::End => {
                let mut inner = self.lock();
                inner.stdin.end();
                consumed(inner.stdin.write(&self.shared.io, self.token(0)));
            }
            Input::Control(fields) => self.control(&fields),
        }
    }

    /// Unknown or impossible controls are ignored: there is no answer that could say so.
    fn control(&self, fields: &Fields) {
        if let Ok(Some(signal)) = fields.opt_u32("signal") {
            let _ = self.signal(signal, false);
        }
        if let Ok(Some(size)) = fields.opt_map("resize") {
            if let Some(terminal) = &self.lock().terminal {
                let _ = pty::resize(terminal.as_raw_fd(), pty::Size::of(&size));
            }
        }
        if let Ok(Some(overflow)) = fields.opt_str("overflow") {
            if let Some(overflow) = Overflow::from_name(overflow) {
                let mut inner = self.lock();
                inner.overflow = overflow;
                self.rearm(&mut inner);
            }
        }
    }

    /// The I/O loop: a descriptor of `channel` is ready.
    fn ready(self: &Arc<Self>, channel: u8) {
        let mut inner = self.lock();
        if channel == 0 {
            let consumed = inner.stdin.write(&self.shared.io, self.token(0));
            let stream = inner.stdin.stream();
            drop(inner);
            if let Some(stream) = stream.filter(|_| consumed > 0) {
                stream.consumed(consumed);
            }
            return;
        }
        let overflow = inner.overflow;
        if let Some(output) = &mut inner.outputs[usize::from(channel - 1)] {
            if output.fill(overflow, &self.shared.io) && inner.drain_at.is_some() {
                inner.drain_at = Some(Instant::now() + DRAIN);
            }
        }
        self.pump(&mut inner);
        self.settle(inner);
    }

    /// The I/O loop: the link has room again.
    fn resume(&self) {
        self.pump(&mut self.lock());
    }

    /// The I/O loop: a deadline may have passed.
    fn tick(self: &Arc<Self>) {
        let mut inner = self.lock();
        let now = Instant::now();
        let passed = |at: Option<Instant>| at.is_some_and(|at| at <= now);
        if passed(inner.timer) {
            inner.timer = None;
        }
        if passed(inner.terminate_at) {
            inner.terminate_at = None;
            if inner.ended.is_none() {
                inner.timed_out = true;
                let _ = sys::kill(-self.pid(), libc::SIGTERM);
                inner.kill_at = Some(now + self.about.kill_after);
            }
        }
        if passed(inner.kill_at) {
            inner.kill_at = None;
            self.signal_all(libc::SIGKILL);
            if inner.released {
                self.shared.io.forget(self.about.serial);
            }
        }
        self.settle(inner);
    }

    /// The reaper: the program has ended.
    fn ended(self: &Arc<Self>, ended: Ended) {
        let mut inner = self.lock();
        inner.ended = Some((ended, sys::realtime_ns()));
        inner.terminate_at = None;
        inner.drain_at = Some(Instant::now() + DRAIN);
        self.settle(inner);
    }

    /// Ends the session if nothing is left to wait for, else sets the clock for the next look.
    fn settle(self: &Arc<Self>, mut inner: MutexGuard<'_, Inner>) {
        if let (true, Some((ended, at)), None) = (inner.launched, inner.ended, &inner.result) {
            let now = Instant::now();
            // A full ring waits for the host, not for the program: the clock stands still.
            if inner.outputs.iter().flatten().any(Output::is_stalled) {
                inner.drain_at = None;
            } else {
                inner.drain_at.get_or_insert(now + DRAIN);
            }
            let drained = inner.drain_at.is_some_and(|at| at <= now);
            if drained || !inner.outputs.iter().flatten().any(Output::is_open) {
                let evicted = self.finish(&mut inner, ended, at);
                let result = inner.result.clone();
                self.schedule(&mut inner);
                drop(inner);
                self.shared.report_ended(self, result.unwrap_or(Value::Nil));
                if let Some(evicted) = evicted {
                    evicted.let_go();
                }
                return;
            }
        }
        self.schedule(&mut inner);
    }

    /// Sets the clock, unless it rings soon enough: output makes this a frequent call.
    fn schedule(&self, inner: &mut Inner) {
        let deadlines = match &inner.result {
            None => [inner.terminate_at, inner.kill_at, inner.drain_at],
            Some(_) => [inner.kill_at, None, None],
        };
        let Some(next) = deadlines.into_iter().flatten().min() else { return };
        if inner.timer.is_none_or(|known| next < known) {
            inner.timer = Some(next);
            self.shared.io.set_timer(next, self.about.serial);
        }
    }

    /// The registry has forgotten it. Only a SIGKILL that is still due keeps it in the I/O loop, and
    /// no stream keeps it alive.
    fn let_go(&self) {
        let mut inner = self.lock();
        inner.released = true;
        let attached = inner.attached.take();
        let fed_by = inner.stdin.forget_stream();
        if inner.kill_at.is_none() {
            self.shared.io.forget(self.about.serial);
        }
        // A stream's lock is taken before ours, never after.
        drop(inner);
        for stream in attached.map(|it| it.stream).into_iter().chain(fed_by) {
            stream.leave();
        }
    }

    /// Gives the session that had to make room for this one.
    fn finish(
        self: &Arc<Self>,
        inner: &mut Inner,
        ended: Ended,
        ended_ns: u64,
    ) -> Option<Arc<Exec>> {
        for output in inner.outputs.iter_mut().flatten() {
            output.close(&self.shared.io);
        }
        inner.stdin.close(&self.shared.io);
        inner.terminal = None;
        inner.drain_at = None;
        let group = self.group.as_ref();
        inner.result = Some(map! {
            "code" => ended.code(),
            "signal" => ended.signal(),
            "timed_out" => inner.timed_out,
            "oom" => group.is_some_and(|group| group.oom_kills() > 0),
            "started_ns" => self.about.started_ns,
            "ended_ns" => ended_ns,
            "cpu_ns" => group.and_then(Group::cpu_ns).unwrap_or(ended.cpu_ns),
        });
        // First, because the host may release the session as soon as it has the result.
        let evicted = self.shared.note_ended(self);
        self.pump(inner);
        evicted
    }

    /// Reads again from channels whose full ring has room now.
    fn rearm(&self, inner: &mut Inner) {
        let overflow = inner.overflow;
        for output in inner.outputs.iter_mut().flatten() {
            output.rearm(overflow, &self.shared.io);
        }
    }

    /// Sends what the window and the link allow: output, its end, the result.
    fn pump(&self, inner: &mut Inner) {
        let Some(attached) = inner.attached.as_mut().filter(|_| inner.launched) else { return };
        let mut complete = true;
        for (index, output) in inner.outputs.iter_mut().enumerate() {
            if let Some(output) = output {
                complete &= attached.send(index, output);
            }
        }
        if !complete {
            return;
        }
        if let (Some(result), false) = (&inner.result, attached.result_sent) {
            attached.result_sent = true;
            let stream = &attached.stream;
            stream.send_now(frame::map_frame(Kind::Result, stream.id, result));
        }
        // Until then the stream stays known, so that the host's acknowledgements still count.
        if attached.result_sent && attached.is_acknowledged() {
            attached.stream.forget();
        }
    }

    fn token(&self, channel: u64) -> u64 {
        io_loop::token(self.about.serial, channel)
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

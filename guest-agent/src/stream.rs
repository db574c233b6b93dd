//! One stream of one connection: what came in for it, what it may still send, how it ends.
//!
//! A worker thread reads a stream with [`Stream::receive`]; an exec takes it over with
//! [`Stream::give_to`]. The windows of section 3 are kept here for workers and by `exec` for execs.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use crate::codec::Value;
use crate::exec::Exec;
use crate::failure::{Code, Failure};
use crate::fields::Fields;
use crate::frame::{self, Header, Kind, DATA_CHUNK, HEADER_LEN, WINDOW};
use crate::link::{Gone, Link};

/// Streams that a connection may have at once.
const MAX_STREAMS: usize = 4096;
/// Consumed bytes are acknowledged when there are this many.
const CREDIT_STEP: usize = WINDOW / 4;
/// CONTROL frames that may wait for an exec that is being started.
const MAX_EARLY_CONTROLS: usize = 64;

impl From<Gone> for Failure {
    fn from(_: Gone) -> Failure {
        Failure::cancelled()
    }
}

/// One connection of the host, from its HELLO to the next.
pub struct Connection {
    /// Which connection of the link this is.
    pub epoch: u64,
    /// The way out.
    pub link: Arc<Link>,
    streams: Mutex<HashMap<u32, Arc<Stream>>>,
}

impl Connection {
    /// A connection without streams.
    pub fn new(epoch: u64, link: Arc<Link>) -> Arc<Connection> {
        Arc::new(Connection { epoch, link, streams: Mutex::new(HashMap::new()) })
    }

    /// Opens a stream.
    ///
    /// # Errors
    /// `bad_request` when the id is in use, `limit` when there are too many.
    pub fn open(self: &Arc<Self>, id: u32) -> Result<Arc<Stream>, Failure> {
        let mut streams = self.lock();
        if streams.contains_key(&id) {
            return Err(Failure::new(Code::BadRequest, format!("stream {id} is in use")));
        }
        if streams.len() >= MAX_STREAMS {
            return Err(Failure::new(Code::Limit, "too many streams"));
        }
        let stream = Arc::new(Stream {
            id,
            connection: self.clone(),
            state: Mutex::new(State::default()),
            changed: Condvar::new(),
        });
        streams.insert(id, stream.clone());
        Ok(stream)
    }

    /// The open stream with that id.
    pub fn find(&self, id: u32) -> Option<Arc<Stream>> {
        self.lock().get(&id).cloned()
    }

    /// Ends every stream: the host has begun another connection.
    pub fn close(&self) {
        let streams: Vec<_> = self.lock().drain().map(|(_, stream)| stream).collect();
        streams.iter().for_each(|stream| stream.close());
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u32, Arc<Stream>>> {
        self.streams.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the host sent on a stream after its request.
#[derive(Debug)]
pub enum Input {
    /// Bytes of channel 0.
    Data(Vec<u8>),
    /// No more bytes come.
    End,
    /// A CONTROL map.
    Control(Fields),
}

/// One stream.
pub struct Stream {
    /// Its id.
    pub id: u32,
    /// The connection that it belongs to.
    pub connection: Arc<Connection>,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    closed: bool,
    ended: bool,
    inbox: VecDeque<Input>,
    /// Bytes that came and have not been acknowledged.
    unacknowledged: usize,
    /// Of those, the bytes that have been consumed.
    consumed: usize,
    controls: usize,
    /// Bytes of channel 1 that the host has not acknowledged.
    in_flight: usize,
    exec: Option<Arc<Exec>>,
}

impl Stream {
    /// Takes a frame of the host.
    ///
    /// # Errors
    /// A reason when the frame breaks the protocol: the window or the order of its frames.
    pub fn accept(self: &Arc<Self>, header: &Header, payload: &[u8]) -> Result<(), &'static str> {
        let mut state = self.lock();
        let input = match header.kind {
            Kind::Data => {
                state.unacknowledged += payload.len();
                if state.unacknowledged > WINDOW {
                    return Err("more bytes than the window allows");
                }
                if state.ended {
                    return Err("data after the end");
                }
                Input::Data(payload.to_vec())
            }
            Kind::End => {
                state.ended = true;
                Input::End
            }
            Kind::Control => {
                let value = Value::decode(payload).map_err(|_| "a malformed CONTROL")?;
                Input::Control(Fields::new(value).map_err(|_| "a CONTROL that is no map")?)
            }
            Kind::Credit => {
                let count = payload.first_chunk().map_or(0, |bytes| u32::from_le_bytes(*bytes));
                state.in_flight = state.in_flight.saturating_sub(count as usize);
                if let Some(exec) = state.exec.clone() {
                    drop(state);
                    exec.credit(self, header.channel, count as usize);
                } else {
                    self.changed.notify_all();
                }
                return Ok(());
            }
            _ => return Ok(()),
        };
        if let Some(exec) = state.exec.clone() {
            drop(state);
            exec.input(self, input);
            return Ok(());
        }
        if let Input::Control(_) = input {
            state.controls += 1;
            if state.controls > MAX_EARLY_CONTROLS {
                return Err("too many CONTROL frames");
            }
        }
        state.inbox.push_back(input);
        self.changed.notify_all();
        Ok(())
    }

    /// The host has lost interest, or its connection is gone.
    pub fn close(self: &Arc<Self>) {
        let exec = {
            let mut state = self.lock();
            state.closed = true;
            state.inbox.clear();
            self.changed.notify_all();
            state.exec.take()
        };
        self.forget();
        if let Some(exec) = exec {
            exec.detach(self);
        }
    }

    /// From now on `exec` handles what the host sends, also what has come already.
    /// Does nothing when the stream is closed.
    pub fn give_to(self: &Arc<Self>, exec: &Arc<Exec>) {
        let mut state = self.lock();
        if state.closed {
            drop(state);
            exec.detach(self);
            return;
        }
        // The lock is held throughout, so that later input stays behind what waited.
        for input in std::mem::take(&mut state.inbox) {
            exec.input_early(self, input, &mut |count| state.consumed += count);
        }
        state.exec = Some(exec.clone());
        self.acknowledge(&mut state, 0);
    }

    /// Waits for the next input of the host.
    ///
    /// # Errors
    /// `cancelled` once the stream is closed.
    pub fn receive(&self) -> Result<Input, Failure> {
        let mut state = self.lock();
        loop {
            if state.closed {
                return Err(Failure::cancelled());
            }
            if let Some(input) = state.inbox.pop_front() {
                return Ok(input);
            }
            state = self.wait(state);
        }
    }

    /// `count` bytes of channel 0 have been used: the host may send as many more.
    pub fn consumed(&self, count: usize) {
        let mut state = self.lock();
        self.acknowledge(&mut state, count);
    }

    fn acknowledge(&self, state: &mut State, count: usize) {
        state.consumed += count;
        if state.consumed >= CREDIT_STEP && !state.closed {
            let credit = std::mem::take(&mut state.consumed);
            state.unacknowledged = state.unacknowledged.saturating_sub(credit);
            self.send_now(frame::credit_frame(self.id, credit));
        }
    }

    /// Whether the host has closed it.
    pub fn is_closed(&self) -> bool {
        self.lock().closed
    }

    /// Sends the REPLY that begins a streaming operation or is all of a unary one.
    pub fn reply(&self, value: &Value) {
        self.send_unless_closed(frame::map_frame(Kind::Reply, self.id, value));
    }

    /// Ends the stream with `outcome`: `final_kind` for a success, ERROR for a failure.
    pub fn finish(&self, final_kind: Kind, outcome: Result<Value, Failure>) {
        self.send_unless_closed(match outcome {
            Ok(value) => frame::map_frame(final_kind, self.id, &value),
            Err(failure) => frame::error_frame(self.id, &failure),
        });
        self.lock().closed = true;
        self.changed.notify_all();
        self.leave();
    }

    /// No longer known to the connection.
    pub fn forget(&self) {
        self.connection.lock().remove(&self.id);
    }

    /// No exec carries it any more, and the connection does not know it. (Each would keep the other
    /// in memory.)
    pub fn leave(&self) {
        self.forget();
        self.lock().exec = None;
    }

    /// Ends the channel that goes to the host.
    pub fn end(&self) -> Result<(), Failure> {
        let end = frame::frame(Kind::End, 1, self.id, [&[], &[]]);
        Ok(self.connection.link.send(self.connection.epoch, end)?)
    }

    /// A buffer for [`Stream::send`]: room for a header, then up to [`DATA_CHUNK`] bytes.
    pub fn buffer() -> Vec<u8> {
        let mut buffer = Vec::with_capacity(HEADER_LEN + DATA_CHUNK);
        buffer.resize(HEADER_LEN, 0);
        buffer
    }

    /// Sends a filled [`Stream::buffer`] as DATA of channel 1, within the window.
    ///
    /// # Errors
    /// `cancelled` once the stream is closed.
    pub fn send(&self, mut buffer: Vec<u8>) -> Result<(), Failure> {
        let length = buffer.len() - HEADER_LEN;
        let mut state = self.lock();
        while !state.closed && state.in_flight + length > WINDOW {
            state = self.wait(state);
        }
        if state.closed {
            return Err(Failure::cancelled());
        }
        state.in_flight += length;
        drop(state);
        let header = Header { kind: Kind::Data, channel: 1, stream: self.id, length };
        buffer[..HEADER_LEN].copy_from_slice(&header.encode());
        Ok(self.connection.link.send(self.connection.epoch, buffer)?)
    }

    /// Sends a whole frame without waiting.
    pub fn send_now(&self, frame: Vec<u8>) {
        self.connection.link.send_now(self.connection.epoch, frame);
    }

    fn send_unless_closed(&self, frame: Vec<u8>) {
        if !self.is_closed() {
            self.send_now(frame);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        self.changed.wait(state).unwrap_or_else(PoisonError::into_inner)
    }
}

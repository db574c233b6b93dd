//! A host for tests: talks to an agent in this process through a pair of sockets.
#![allow(dead_code, missing_docs, clippy::unwrap_used, clippy::expect_used)]

pub mod json;

use std::collections::{HashMap, VecDeque};
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use hutch_agent::agent::{Agent, Setup, Stage};
use hutch_agent::codec::Value;
use hutch_agent::frame::{frame, Kind, HEADER_LEN};
use hutch_agent::map;
use hutch_agent::preamble::{Hello, PREAMBLE_LEN};
use hutch_agent::session::{self, EndOfInput};

/// No answer of the agent takes longer, on however slow a machine.
const LIMIT: Duration = Duration::from_secs(30);
const CREDIT_STEP: usize = 128 << 10;

#[derive(Debug, Clone, PartialEq)]
pub struct Frame {
    pub kind: Kind,
    pub channel: u8,
    pub stream: u32,
    pub payload: Vec<u8>,
}

impl Frame {
    pub fn map(&self) -> Value {
        Value::decode(&self.payload).unwrap()
    }
}

/// What a stream came to.
#[derive(Debug)]
pub struct Outcome {
    pub reply: Option<Value>,
    pub data: [Vec<u8>; 2],
    pub gap: u64,
    pub end: Result<Value, String>,
}

impl Outcome {
    pub fn result(&self) -> &Value {
        self.end.as_ref().unwrap()
    }
}

pub struct Host {
    socket: UnixStream,
    buffer: Vec<u8>,
    next: u32,
    waiting: HashMap<u32, VecDeque<Frame>>,
    nonce: u8,
    streaming: Vec<u32>,
}

impl Host {
    /// An agent that has its root already, and a connection to it.
    pub fn ready() -> Host {
        let mut host = Host::bare(Stage::Ready);
        host.hello();
        host
    }

    pub fn bare(stage: Stage) -> Host {
        Host::at(stage, PathBuf::from("/"))
    }

    /// An agent whose image is at `root`.
    pub fn at(stage: Stage, root: PathBuf) -> Host {
        let (socket, port) = UnixStream::pair().unwrap();
        port.set_nonblocking(true).unwrap();
        socket.set_read_timeout(Some(LIMIT)).unwrap();
        let port: Arc<OwnedFd> = Arc::new(port.into());
        let setup = Setup { stage, privileged: false, root };
        let agent = Agent::start(port.clone(), setup).unwrap();
        thread::spawn(move || session::serve(&agent, &port, EndOfInput::Closed));
        Host {
            socket,
            buffer: vec![],
            next: 0,
            waiting: HashMap::new(),
            nonce: 0,
            streaming: vec![],
        }
    }

    /// Begins a (new) connection; gives the event that it begins with.
    pub fn hello(&mut self) -> Value {
        self.nonce += 1;
        let hello = Hello { version: 1, nonce: [self.nonce; 16] };
        self.raw(&hello.encode());
        let welcome = hello.welcome();
        self.waiting.clear();
        loop {
            let found = self.buffer.windows(PREAMBLE_LEN).position(|bytes| bytes == welcome);
            if let Some(at) = found {
                self.buffer.drain(..at + PREAMBLE_LEN);
                break;
            }
            self.fill();
        }
        self.next_of(0).map()
    }

    pub fn raw(&mut self, bytes: &[u8]) {
        self.socket.write_all(bytes).unwrap();
    }

    pub fn send(&mut self, kind: Kind, channel: u8, stream: u32, payload: &[u8]) {
        self.raw(&frame(kind, channel, stream, [payload, &[]]));
    }

    pub fn credit(&mut self, stream: u32, channel: u8, bytes: usize) {
        self.send(Kind::Credit, channel, stream, &(bytes as u32).to_le_bytes());
    }

    pub fn request(&mut self, request: Value) -> u32 {
        self.next += 1;
        self.send(Kind::Request, 0, self.next, &request.encode());
        self.next
    }

    /// A unary operation: its reply, or the code of its error.
    pub fn call(&mut self, request: Value) -> Result<Value, String> {
        let stream = self.request(request);
        self.collect(stream).end
    }

    fn fill(&mut self) {
        let mut bytes = vec![0; 256 << 10];
        let count = self.socket.read(&mut bytes).expect("the agent answers in time");
        assert!(count > 0, "the agent has closed the port");
        self.buffer.extend_from_slice(&bytes[..count]);
    }

    fn next_frame(&mut self) -> Frame {
        loop {
            if self.buffer.len() >= HEADER_LEN {
                let number =
                    |at: usize| u32::from_le_bytes(*self.buffer[at..].first_chunk().unwrap());
                let length = number(8) as usize;
                if self.buffer.len() >= HEADER_LEN + length {
                    let frame = Frame {
                        kind: Kind::from_byte(self.buffer[0]).unwrap(),
                        channel: self.buffer[1],
                        stream: number(4),
                        payload: self.buffer[HEADER_LEN..HEADER_LEN + length].to_vec(),
                    };
                    self.buffer.drain(..HEADER_LEN + length);
                    return frame;
                }
            }
            self.fill();
        }
    }

    pub fn next_of(&mut self, stream: u32) -> Frame {
        loop {
            if let Some(frame) = self.waiting.get_mut(&stream).and_then(VecDeque::pop_front) {
                return frame;
            }
            let frame = self.next_frame();
            self.waiting.entry(frame.stream).or_default().push_back(frame);
        }
    }

    /// The frames of a stream that have come and were not looked at.
    pub fn waiting_for(&self, stream: u32) -> Vec<Frame> {
        self.waiting.get(&stream).map(|frames| frames.iter().cloned().collect()).unwrap_or_default()
    }

    /// The next event of that name.
    pub fn event(&mut self, name: &str) -> Value {
        loop {
            let event = self.next_of(0).map();
            if event.get("event") == Some(&Value::from(name)) {
                return event;
            }
        }
    }

    /// Follows a stream to its end, acknowledging what comes.
    pub fn collect(&mut self, stream: u32) -> Outcome {
        let mut outcome =
            Outcome { reply: None, data: [vec![], vec![]], gap: 0, end: Err("open".into()) };
        let mut owed = [0, 0];
        loop {
            let frame = self.next_of(stream);
            match frame.kind {
                Kind::Reply => {
                    outcome.end = Ok(frame.map());
                    outcome.reply = Some(frame.map());
                    // A unary operation ends here; only a streaming one has more to say.
                    if !self.is_streaming(stream) {
                        return outcome;
                    }
                }
                Kind::Data => {
                    let index = usize::from(frame.channel - 1);
                    outcome.data[index].extend_from_slice(&frame.payload);
                    owed[index] += frame.payload.len();
                    if owed[index] >= CREDIT_STEP {
                        self.credit(stream, frame.channel, std::mem::take(&mut owed[index]));
                    }
                }
                Kind::Gap => {
                    outcome.gap += u64::from_le_bytes(*frame.payload.first_chunk().unwrap());
                }
                Kind::Result => {
                    outcome.end = Ok(frame.map());
                    return outcome;
                }
                Kind::Error => {
                    let Some(Value::Str(code)) = frame.map().get("code").cloned() else {
                        panic!("an error without a code")
                    };
                    outcome.end = Err(code);
                    return outcome;
                }
                _ => {}
            }
        }
    }

    fn is_streaming(&self, stream: u32) -> bool {
        self.streaming.contains(&stream)
    }

    /// Starts a program with `fields` besides the usual ones, attached.
    pub fn start(&mut self, id: &str, script: &str, fields: Value) -> u32 {
        let argv = ["/bin/sh", "-c", script].map(Value::from).to_vec();
        let Value::Map(mut request) = fields else { panic!("no map") };
        let usual = map! {
            "op" => "exec.start", "id" => id, "argv" => argv, "env" => Vec::<Value>::new(),
            "cwd" => "/", "user" => "", "attach" => true,
        };
        let Value::Map(usual) = usual else { panic!("no map") };
        for (key, value) in usual {
            if !request.iter().any(|(known, _)| *known == key) {
                request.push((key, value));
            }
        }
        self.stream(Value::Map(request))
    }

    /// A streaming operation.
    pub fn stream(&mut self, request: Value) -> u32 {
        let stream = self.request(request);
        self.streaming.push(stream);
        stream
    }

    pub fn run(&mut self, id: &str, script: &str) -> Outcome {
        let stream = self.start(id, script, map! {});
        self.collect(stream)
    }

    /// Sends `bytes` on channel 0 within the window, then END.
    pub fn feed(&mut self, stream: u32, bytes: &[u8]) {
        let mut window = 1usize << 20;
        for chunk in bytes.chunks(64 << 10) {
            while window < chunk.len() {
                let frame = self.next_of(stream);
                match frame.kind {
                    Kind::Credit => {
                        let count = u32::from_le_bytes(*frame.payload.first_chunk().unwrap());
                        window += count as usize;
                    }
                    Kind::Reply => {}
                    // It ended early; whoever collects it sees how.
                    _ => return self.waiting.entry(stream).or_default().push_front(frame),
                }
            }
            window -= chunk.len();
            self.send(Kind::Data, 0, stream, chunk);
        }
        self.send(Kind::End, 0, stream, &[]);
    }
}

pub fn uint(value: &Value, key: &str) -> u64 {
    match value.get(key) {
        Some(Value::Uint(number)) => *number,
        other => panic!("{key} is {other:?}"),
    }
}

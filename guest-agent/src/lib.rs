//! The guest side of Hutch: PID 1 of a sandbox, serving `spec/guest-protocol.md`.
//!
//! Bytes come in through `session` (parser → connection → stream → operation) and go out through
//! `link`. `init` boots the machine; everything else is one request kind per module.

#![deny(unsafe_op_in_unsafe_fn)]

pub mod agent;
pub mod canary;
pub mod cgroup;
pub mod codec;
pub mod console;
pub mod dir;
pub mod etc;
pub mod events;
pub mod exec;
pub mod failure;
pub mod fields;
pub mod files;
pub mod frame;
pub mod freeze;
pub mod gate;
pub mod generation;
pub mod hooks;
pub mod identity;
pub mod init;
pub mod link;
pub mod mount;
pub mod netlink;
pub mod network;
pub mod oom;
pub mod parser;
pub mod pit;
pub mod preamble;
pub mod prefetch;
pub mod reaper;
pub mod scratch;
pub mod session;
pub mod settling;
pub mod shutdown;
pub mod sockets;
pub mod stats;
pub mod stream;
pub mod sys;
pub mod tar;
pub mod tunnel;
pub mod workers;

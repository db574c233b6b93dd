//! The one error that goes over the wire: a stable code, a sentence and perhaps an errno.
//!
//! Every module's own error turns into a [`Failure`] at the edge of its request. Nothing here knows
//! how a failure is sent; `frame` and `session` do.

use std::fmt::Display;
use std::io;

use thiserror::Error;

/// The codes of section 4 of the protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Code {
    BadRequest,
    Unsupported,
    NotFound,
    Exists,
    NotDir,
    IsDir,
    NotEmpty,
    Permission,
    ReadOnly,
    NoSpace,
    TooLarge,
    Limit,
    Loop,
    NotExecutable,
    NoSuchUser,
    BadCwd,
    Busy,
    Refused,
    Cancelled,
    Timeout,
    NotReady,
    Io,
}

impl Code {
    /// The word that stands in an ERROR frame.
    pub fn as_str(self) -> &'static str {
        match self {
            Code::BadRequest => "bad_request",
            Code::Unsupported => "unsupported",
            Code::NotFound => "not_found",
            Code::Exists => "exists",
            Code::NotDir => "not_dir",
            Code::IsDir => "is_dir",
            Code::NotEmpty => "not_empty",
            Code::Permission => "permission",
            Code::ReadOnly => "read_only",
            Code::NoSpace => "no_space",
            Code::TooLarge => "too_large",
            Code::Limit => "limit",
            Code::Loop => "loop",
            Code::NotExecutable => "not_executable",
            Code::NoSuchUser => "no_such_user",
            Code::BadCwd => "bad_cwd",
            Code::Busy => "busy",
            Code::Refused => "refused",
            Code::Cancelled => "cancelled",
            Code::Timeout => "timeout",
            Code::NotReady => "not_ready",
            Code::Io => "io",
        }
    }

    /// The code that an errno stands for.
    pub fn of_errno(errno: i32) -> Code {
        match errno {
            libc::ENOENT | libc::ESRCH | libc::ENXIO | libc::ENODEV => Code::NotFound,
            libc::EEXIST => Code::Exists,
            libc::ENOTDIR => Code::NotDir,
            libc::EISDIR => Code::IsDir,
            libc::ENOTEMPTY => Code::NotEmpty,
            libc::EACCES | libc::EPERM => Code::Permission,
            libc::EROFS => Code::ReadOnly,
            libc::ENOSPC | libc::EDQUOT => Code::NoSpace,
            libc::EFBIG | libc::E2BIG | libc::ENAMETOOLONG => Code::TooLarge,
            libc::EMFILE | libc::ENFILE | libc::EAGAIN | libc::ENOMEM => Code::Limit,
            libc::ELOOP => Code::Loop,
            libc::ENOEXEC => Code::NotExecutable,
            libc::EBUSY | libc::ETXTBSY => Code::Busy,
            libc::ECONNREFUSED | libc::ECONNRESET | libc::ENETUNREACH | libc::EHOSTUNREACH => {
                Code::Refused
            }
            libc::ETIMEDOUT => Code::Timeout,
            libc::EINVAL | libc::EXDEV => Code::BadRequest,
            libc::EOPNOTSUPP | libc::ENOSYS | libc::ENOTTY => Code::Unsupported,
            libc::ECANCELED => Code::Cancelled,
            _ => Code::Io,
        }
    }
}

/// What a request comes to when it does not succeed.
#[derive(Debug, Error)]
#[error("{message}")]
pub struct Failure {
    /// The stable code.
    pub code: Code,
    /// One sentence for people, naming the object.
    pub message: String,
    /// The system's number, where there is one.
    pub errno: Option<i32>,
}

impl Failure {
    /// A failure that no system call is behind.
    pub fn new(code: Code, message: impl Into<String>) -> Failure {
        Failure { code, message: message.into(), errno: None }
    }

    /// A failed system call; `what` names the act and its object.
    pub fn io(what: impl Display, error: &io::Error) -> Failure {
        match error.raw_os_error() {
            Some(errno) => Failure {
                code: Code::of_errno(errno),
                message: format!("{what}: {error}"),
                errno: Some(errno),
            },
            None => Failure::new(Code::Io, format!("{what}: {error}")),
        }
    }

    /// The stream was closed by the host, or its connection is gone.
    pub fn cancelled() -> Failure {
        Failure::new(Code::Cancelled, "the host closed the stream")
    }
}

/// Adds the act and its object to an [`io::Result`].
pub trait Context<T> {
    /// Turns the error into a [`Failure`]; `what` is only called for an error.
    fn context<D: Display>(self, what: impl FnOnce() -> D) -> Result<T, Failure>;
}

impl<T> Context<T> for io::Result<T> {
    fn context<D: Display>(self, what: impl FnOnce() -> D) -> Result<T, Failure> {
        self.map_err(|error| Failure::io(what(), &error))
    }
}

/// A path as people should see it, whatever bytes it has.
pub fn show(path: &[u8]) -> String {
    String::from_utf8_lossy(path).into_owned()
}

//! Files of the sandbox, without starting a program: what an entry is, and which operation does what.

pub mod change;
pub mod copy;
pub mod read;
pub mod write;

use std::ffi::OsStr;
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use crate::codec::Value;
use crate::failure::{show, Context, Failure};
use crate::fields::Fields;
use crate::map;
use crate::sys::as_path;

/// An operation that ends with one reply.
pub type Operation = fn(&Fields) -> Result<Value, Failure>;

/// The unary operation of that name.
pub fn unary(op: &str) -> Option<Operation> {
    Some(match op {
        "fs.stat" => stat,
        "fs.mkdir" => change::mkdir,
        "fs.remove" => change::remove,
        "fs.rename" => change::rename,
        "fs.chmod" => change::chmod,
        "fs.chown" => change::chown,
        "fs.symlink" => change::symlink,
        _ => return None,
    })
}

fn stat(fields: &Fields) -> Result<Value, Failure> {
    let bytes = fields.path("path")?;
    let path = as_path(bytes);
    let meta = match fields.bool("follow", true)? {
        true => fs::metadata(path),
        false => fs::symlink_metadata(path),
    };
    let meta = meta.context(|| show(bytes))?;
    Ok(map! { "entry" => entry(name_of(path), path, &meta) })
}

/// The last part of a path; empty for the root.
pub fn name_of(path: &Path) -> &OsStr {
    path.file_name().unwrap_or_default()
}

/// The map that describes a file. `path` is asked for a link's target.
pub fn entry(name: &OsStr, path: &Path, meta: &Metadata) -> Value {
    let target = meta.is_symlink().then(|| fs::read_link(path).ok()).flatten();
    let mtime = meta.mtime().saturating_mul(1_000_000_000).saturating_add(meta.mtime_nsec());
    map! {
        "name" => name.as_bytes(),
        "type" => kind_of(meta),
        "mode" => meta.mode() & 0o7777,
        "uid" => meta.uid(),
        "gid" => meta.gid(),
        "size" => meta.size(),
        "mtime_ns" => mtime,
        "nlink" => meta.nlink(),
        "rdev" => meta.rdev(),
        "target" => target.map(|target| target.into_os_string().into_vec()),
    }
}

fn kind_of(meta: &Metadata) -> &'static str {
    let kind = meta.file_type();
    if kind.is_file() {
        "file"
    } else if kind.is_dir() {
        "dir"
    } else if kind.is_symlink() {
        "symlink"
    } else if kind.is_char_device() {
        "char"
    } else if kind.is_block_device() {
        "block"
    } else if kind.is_fifo() {
        "fifo"
    } else {
        "socket"
    }
}

/// Makes the directories that lead to `path`.
pub fn make_parents(path: &Path) -> Result<(), Failure> {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => {
            fs::create_dir_all(parent).context(|| parent.display().to_string())
        }
        _ => Ok(()),
    }
}

/// Whether the agent may change owners; a test may not.
pub fn may_chown() -> bool {
    // SAFETY: geteuid takes nothing and cannot fail.
    unsafe { libc::geteuid() == 0 }
}

/// An [`io::Error`] of that errno.
pub fn errno(number: i32) -> io::Error {
    io::Error::from_raw_os_error(number)
}

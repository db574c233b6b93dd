//! `tar.read`: a tree as a tar stream.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::{self, File, Metadata};
use std::io::{self, Read};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;

use crate::failure::{show, Context, Failure};
use crate::fields::Fields;
use crate::files::{entry as describe, name_of};
use crate::frame::{self, DATA_CHUNK, HEADER_LEN};
use crate::map;
use crate::stream::Stream;
use crate::sys::{self, as_path};
use crate::tar::header::{padding, Entry, Kind, BLOCK};

/// Links to more files than this are packed as files of their own.
const MAX_LINKS: usize = 100_000;
const MAX_XATTR: usize = 64 << 10;

/// Sends the tree at `path`, its top entry called `name`.
///
/// # Errors
/// `not_found`, `permission`, `io`; `cancelled` when the transfer breaks.
pub fn read(fields: &Fields, stream: &Arc<Stream>) -> Result<(), Failure> {
    let bytes = fields.path("path")?;
    let path = as_path(bytes);
    let meta = match fields.bool("follow", false)? {
        true => fs::metadata(path),
        false => fs::symlink_metadata(path),
    };
    let meta = meta.context(|| show(bytes))?;
    let name = fields.opt_bytes("name")?.unwrap_or(name_of(path).as_bytes());
    // The root has no name of its own.
    let name = if name.is_empty() { b"." } else { name };
    stream.reply(&map! { "entry" => describe(name_of(path), path, &meta) });
    let mut packer =
        Packer { stream, buffer: Stream::buffer(), links: HashMap::new(), entries: 0, bytes: 0 };
    packer.tree(name, path, &meta)?;
    packer.put(&[0; 2 * BLOCK])?;
    packer.flush()?;
    let (entries, bytes) = (packer.entries, packer.bytes);
    stream.end()?;
    let result = map! { "entries" => entries, "bytes" => bytes };
    stream.finish(frame::Kind::Result, Ok(result));
    Ok(())
}

struct Packer<'a> {
    stream: &'a Stream,
    buffer: Vec<u8>,
    /// The first name of each file that has several.
    links: HashMap<(u64, u64), Vec<u8>>,
    entries: u64,
    /// Of the stream, not of the files in it.
    bytes: u64,
}

impl Packer<'_> {
    fn tree(&mut self, name: &[u8], path: &Path, meta: &Metadata) -> Result<(), Failure> {
        self.one(name, path, meta)?;
        if !meta.is_dir() {
            return Ok(());
        }
        let shown = || path.display().to_string();
        let mut names = Vec::new();
        for child in fs::read_dir(path).context(shown)? {
            names.push(child.context(shown)?.file_name());
        }
        names.sort();
        for child in names {
            let path = path.join(&child);
            // What has gone meanwhile is not packed.
            let Ok(meta) = fs::symlink_metadata(&path) else { continue };
            self.tree(&[name, b"/", child.as_bytes()].concat(), &path, &meta)?;
        }
        Ok(())
    }

    fn one(&mut self, name: &[u8], path: &Path, meta: &Metadata) -> Result<(), Failure> {
        let Some(kind) = kind_of(meta) else { return Ok(()) };
        let mut entry = Entry {
            name: name.to_vec(),
            kind,
            mode: meta.mode() & 0o7777,
            uid: u64::from(meta.uid()),
            gid: u64::from(meta.gid()),
            size: 0,
            mtime: meta.mtime(),
            link: vec![],
            major: libc::major(meta.rdev()),
            minor: libc::minor(meta.rdev()),
            xattrs: vec![],
        };
        let shown = || path.display().to_string();
        if kind == Kind::Symlink {
            entry.link = fs::read_link(path).context(shown)?.into_os_string().into_vec();
        } else if let Some(first) = self.known_link(name, meta) {
            (entry.kind, entry.link) = (Kind::HardLink, first);
        } else {
            entry.xattrs = xattrs(path);
        }
        let mut content = None;
        if entry.kind == Kind::File {
            let flags = libc::O_NONBLOCK | libc::O_NOCTTY;
            let file = File::options().read(true).custom_flags(flags).open(path);
            content = Some(file.context(shown)?);
            entry.size = meta.size();
        }
        self.entries += 1;
        self.put(&entry.encode())?;
        match content {
            Some(file) => self.content(file, entry.size).map_err(|failure| match failure {
                Broken::Read(error) => Failure::io(shown(), &error),
                Broken::Send(failure) => failure,
            }),
            None => Ok(()),
        }
    }

    fn known_link(&mut self, name: &[u8], meta: &Metadata) -> Option<Vec<u8>> {
        if meta.nlink() < 2 || meta.is_dir() {
            return None;
        }
        let key = (meta.dev(), meta.ino());
        let known = self.links.get(&key).cloned();
        if known.is_none() && self.links.len() < MAX_LINKS {
            self.links.insert(key, name.to_vec());
        }
        known
    }

    /// Exactly `size` bytes, as the header says: a file that grows is cut, one that shrinks is
    /// filled up with zeros.
    fn content(&mut self, mut file: File, size: u64) -> Result<(), Broken> {
        let mut left = size;
        while left > 0 {
            let used = self.buffer.len();
            let room = (HEADER_LEN + DATA_CHUNK - used).min(left.min(1 << 30) as usize);
            if room == 0 {
                self.flush().map_err(Broken::Send)?;
                continue;
            }
            self.buffer.resize(used + room, 0);
            let count = match file.read(&mut self.buffer[used..]) {
                Ok(0) => room,
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => 0,
                Err(error) => return Err(Broken::Read(error)),
            };
            self.buffer.truncate(used + count);
            left -= count as u64;
        }
        self.put(&[0; BLOCK][..padding(size)]).map_err(Broken::Send)
    }

    fn put(&mut self, mut bytes: &[u8]) -> Result<(), Failure> {
        while !bytes.is_empty() {
            let room = HEADER_LEN + DATA_CHUNK - self.buffer.len();
            if room == 0 {
                self.flush()?;
                continue;
            }
            let (head, tail) = bytes.split_at(room.min(bytes.len()));
            self.buffer.extend_from_slice(head);
            bytes = tail;
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<(), Failure> {
        self.bytes += (self.buffer.len() - HEADER_LEN) as u64;
        self.stream.send(std::mem::replace(&mut self.buffer, Stream::buffer()))
    }
}

enum Broken {
    Read(io::Error),
    Send(Failure),
}

/// Sockets have no place in an archive: they mean nothing without their program.
fn kind_of(meta: &Metadata) -> Option<Kind> {
    let kind = meta.file_type();
    Some(match () {
        () if kind.is_file() => Kind::File,
        () if kind.is_dir() => Kind::Dir,
        () if kind.is_symlink() => Kind::Symlink,
        () if kind.is_char_device() => Kind::Char,
        () if kind.is_block_device() => Kind::Block,
        () if kind.is_fifo() => Kind::Fifo,
        () => return None,
    })
}

/// The attributes that mean the same elsewhere: the users' own, and file capabilities.
fn xattrs(path: &Path) -> Vec<(Vec<u8>, Vec<u8>)> {
    let Ok(path) = sys::c_string(path) else { return vec![] };
    let mut list = vec![0u8; MAX_XATTR];
    // SAFETY: the path is a valid C string; pointer and length are those of a live vector.
    let count = unsafe { libc::llistxattr(path.as_ptr(), list.as_mut_ptr().cast(), list.len()) };
    list.truncate(usize::try_from(count).unwrap_or(0));
    let kept = |name: &&[u8]| name.starts_with(b"user.") || *name == b"security.capability";
    let value = |name: &[u8]| {
        let key = sys::c_string(OsStr::from_bytes(name)).ok()?;
        let mut value = vec![0u8; MAX_XATTR];
        let target = value.as_mut_ptr().cast();
        // SAFETY: as above.
        let size = unsafe { libc::lgetxattr(path.as_ptr(), key.as_ptr(), target, MAX_XATTR) };
        value.truncate(usize::try_from(size).ok()?);
        Some((name.to_vec(), value))
    };
    list.split(|byte| *byte == 0).filter(kept).filter_map(value).collect()
}

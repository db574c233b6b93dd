//! `prefetch`: reads programs, with their loader and libraries, so that their pages are in memory.
//!
//! For a machine that is about to be frozen: each clone finds the pages there, instead of reading and
//! unpacking them from its image once more. Nothing is run.

use std::collections::{HashSet, VecDeque};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use crate::agent::{Agent, Stage};
use crate::codec::Value;
use crate::exec::start::DEFAULT_PATH;
use crate::failure::{Context, Failure};
use crate::fields::Fields;
use crate::map;
use crate::mount::LOWER;
use crate::sys;

/// What is read unless the request says otherwise, in bytes.
const DEFAULT_LIMIT: u64 = 64 << 20;
/// Where libraries are looked for, below the root. What an image has elsewhere is read when needed.
const LIBRARIES: [&str; 7] = [
    "lib",
    "lib64",
    "usr/lib",
    "usr/lib64",
    "usr/local/lib",
    "lib/x86_64-linux-gnu",
    "usr/lib/x86_64-linux-gnu",
];
const PART: usize = 64 << 10;
/// A file that needs more than this is not followed further.
const MAX_NEEDED: usize = 256;

/// The ELF numbers that matter here.
const PT_LOAD: u32 = 1;
const PT_DYNAMIC: u32 = 2;
const PT_INTERP: u32 = 3;
const DT_NEEDED: u64 = 1;
const DT_STRTAB: u64 = 5;

/// Reads what `programs` name: paths, or names to be looked up as a shell does; and the accounts, which
/// each start looks into.
///
/// # Errors
/// `not_ready`, `bad_request`. What does not exist is left out.
pub fn prefetch(agent: &Agent, fields: &Fields) -> Result<Value, Failure> {
    let root = match agent.stage() {
        Stage::Boot => return agent.require_ready().map(|()| Value::Nil),
        // The files are the same ones, below the writable layer that is still to come.
        Stage::Root => Path::new(LOWER),
        Stage::Ready => &agent.setup.root,
    };
    let limit = fields.u64("limit", DEFAULT_LIMIT)?;
    let mut reader = Reader::new(root, limit).context(|| "open the root")?;
    for accounts in ["/etc/passwd", "/etc/group"] {
        reader.want(accounts.as_bytes());
    }
    for program in fields.bytes_list("programs")? {
        reader.want(&program);
    }
    reader.read_all();
    Ok(map! { "files" => reader.seen.len() as u64, "bytes" => limit - reader.left })
}

struct Reader {
    root: OwnedFd,
    left: u64,
    /// Files to read, each with the places where it may be.
    queue: VecDeque<Vec<PathBuf>>,
    /// The (device, inode) of what has been read.
    seen: HashSet<(u64, u64)>,
}

impl Reader {
    fn new(root: &Path, limit: u64) -> io::Result<Reader> {
        let root = sys::open(root, libc::O_PATH | libc::O_DIRECTORY, 0)?;
        Ok(Reader { root, left: limit, queue: VecDeque::new(), seen: HashSet::new() })
    }

    fn want(&mut self, name: &[u8]) {
        let path = sys::as_path(name);
        if name.contains(&b'/') {
            self.queue.push_back(vec![path.into()]);
            return;
        }
        let directories = DEFAULT_PATH.split(|byte| *byte == b':');
        self.queue.push_back(directories.map(|dir| sys::as_path(dir).join(path)).collect());
    }

    fn want_library(&mut self, name: &[u8]) {
        let name = sys::as_path(name);
        self.queue.push_back(LIBRARIES.iter().map(|dir| Path::new(dir).join(name)).collect());
    }

    fn read_all(&mut self) {
        while let Some(places) = self.queue.pop_front() {
            // Links lead to files of the image also while that is not our root yet.
            let open = |path: &PathBuf| {
                let flags = libc::O_RDONLY | libc::O_NONBLOCK;
                sys::open_in_root(self.root.as_fd(), path, flags, 0).ok()
            };
            if let Some(found) = places.iter().find_map(open) {
                // What cannot be read now will be when it is needed, or tell then why not.
                let _ = self.read(&File::from(found));
            }
        }
    }

    fn read(&mut self, file: &File) -> io::Result<()> {
        let meta = file.metadata()?;
        if !meta.is_file() || meta.len() > self.left || !self.seen.insert((meta.dev(), meta.ino()))
        {
            return Ok(());
        }
        self.left -= meta.len();
        // Small and used again: what is freed in memory is still part of a frozen machine.
        let mut part = vec![0; PART];
        let mut at = 0;
        loop {
            let count = file.read_at(&mut part, at)?;
            if count == 0 {
                break;
            }
            at += count as u64;
        }
        let count = file.read_at(&mut part, 0)?;
        if part[..count].starts_with(b"#!") {
            let line = part[2..count].split(|byte| *byte == b'\n').next().unwrap_or_default();
            for word in line.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty()) {
                self.want(word);
            }
        } else if let Some(needs) = needs(file, &part[..count]) {
            needs.loader.iter().for_each(|path| self.want(path));
            needs.libraries.iter().for_each(|name| self.want_library(name));
        }
        Ok(())
    }
}

struct Needs {
    loader: Option<Vec<u8>>,
    libraries: Vec<Vec<u8>>,
}

/// What an ELF file of 64 bits, little-endian, is loaded with; `head` is its first part. `None` for
/// any other file and for a damaged one.
fn needs(file: &File, head: &[u8]) -> Option<Needs> {
    if !head.starts_with(b"\x7fELF\x02\x01") {
        return None;
    }
    let (at, size) = (u64_at(head, 32)? as usize, usize::from(u16_at(head, 54)?));
    let count = usize::from(u16_at(head, 56)?);
    let headers: Vec<_> =
        (0..count).map_while(|index| head.get(at.checked_add(index * size)?..)).collect();
    let of_kind = |kind| headers.iter().filter(move |it| u32_at(it, 0) == Some(kind));
    let offset_of = |address: u64| {
        of_kind(PT_LOAD).find_map(|it| {
            let inside = address.checked_sub(u64_at(it, 16)?)?;
            (inside < u64_at(it, 32)?).then(|| u64_at(it, 8)?.checked_add(inside)).flatten()
        })
    };
    let mut needs = Needs { loader: None, libraries: Vec::new() };
    if let Some(header) = of_kind(PT_INTERP).next() {
        let path = bytes(file, u64_at(header, 8)?, u64_at(header, 32)?)?;
        needs.loader = Some(until_nul(&path).to_vec());
    }
    let Some(header) = of_kind(PT_DYNAMIC).next() else { return Some(needs) };
    let table = bytes(file, u64_at(header, 8)?, u64_at(header, 32)?)?;
    let entries: Vec<_> =
        table.chunks_exact(16).filter_map(|it| Some((u64_at(it, 0)?, u64_at(it, 8)?))).collect();
    let names = entries.iter().find(|(tag, _)| *tag == DT_STRTAB)?.1;
    for (_, name) in entries.iter().filter(|(tag, _)| *tag == DT_NEEDED).take(MAX_NEEDED) {
        let name = bytes(file, offset_of(names)?.checked_add(*name)?, 256)?;
        needs.libraries.push(until_nul(&name).to_vec());
    }
    Some(needs)
}

/// Up to `length` bytes of a file, and never many.
fn bytes(file: &File, at: u64, length: u64) -> Option<Vec<u8>> {
    let mut bytes = vec![0; length.min(PART as u64) as usize];
    let count = file.read_at(&mut bytes, at).ok()?;
    bytes.truncate(count);
    Some(bytes)
}

fn until_nul(bytes: &[u8]) -> &[u8] {
    bytes.split(|byte| *byte == 0).next().unwrap_or_default()
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scratch::Scratch;
    use std::fs;

    fn read(root: &Path, program: &[u8], limit: u64) -> (usize, u64) {
        let mut reader = Reader::new(root, limit).unwrap();
        reader.want(program);
        reader.read_all();
        (reader.seen.len(), limit - reader.left)
    }

    #[test]
    fn a_program_comes_with_its_loader_and_libraries() {
        // This machine's own shell, which every distribution links dynamically.
        let (files, bytes) = read(Path::new("/"), b"sh", 1 << 30);
        assert!(files >= 3 && bytes > 1 << 20, "{files} files, {bytes} bytes");
        assert_eq!(read(Path::new("/"), b"/bin/sh", 1 << 30), (files, bytes));
        assert!(read(Path::new("/"), b"sh", 600 << 10).1 <= 600 << 10);
    }

    #[test]
    fn a_script_comes_with_what_runs_it_and_nothing_is_read_twice() {
        let scratch = Scratch::new("prefetch");
        let bin = scratch.path().join("usr/bin");
        fs::create_dir_all(&bin).unwrap();
        fs::write(bin.join("tool"), "#!/usr/bin/env runner\n/usr/bin/other").unwrap();
        fs::write(bin.join("env"), "#! /usr/bin/tool").unwrap();
        fs::write(scratch.path().join("run"), "x").unwrap();
        // As the image means it, not as this machine would.
        std::os::unix::fs::symlink("/run", bin.join("runner")).unwrap();
        let bytes = 36 + 16 + 1;
        assert_eq!(read(scratch.path(), b"tool", 1000), (3, bytes));
        assert_eq!(read(scratch.path(), b"none", 1000), (0, 0));
    }

    #[test]
    fn a_damaged_file_is_read_and_no_more() {
        let scratch = Scratch::new("prefetch");
        let path = scratch.path().join("program");
        let whole = fs::read("/proc/self/exe").unwrap();
        for end in [4, 6, 40, 60, 64, 100, 200, 1000] {
            fs::write(&path, &whole[..end]).unwrap();
            assert_eq!(read(scratch.path(), b"/program", 1 << 20), (1, end as u64));
        }
        let mut wild = whole[..4096].to_vec();
        wild[32..40].fill(0xff);
        fs::write(&path, wild).unwrap();
        assert_eq!(read(scratch.path(), b"/program", 1 << 20).0, 1);
    }
}

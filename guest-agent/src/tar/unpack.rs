//! `tar.write`: a tree from a tar stream, below a directory and nowhere else.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::failure::{show, Code, Context, Failure};
use crate::fields::Fields;
use crate::frame;
use crate::map;
use crate::stream::Stream;
use crate::sys::as_path;
use crate::tar::header::{apply_pax, parse, Entry, Extension, Header, Kind};
use crate::tar::place::{clean, Place};
use crate::tar::source::Source;

/// Directories whose time is set at the end; those beyond keep the time of their unpacking.
const MAX_TIMES: usize = 100_000;

/// Receives a tree.
///
/// # Errors
/// `bad_request` for what is no archive or tries to climb out, `unsupported` for sparse files,
/// `no_space` and the like. Entries that were whole before stay, a broken file changes nothing.
pub fn write(fields: &Fields, stream: &Arc<Stream>) -> Result<(), Failure> {
    let bytes = fields.path("path")?;
    let path = as_path(bytes);
    if fields.bool("parents", false)? {
        std::fs::create_dir_all(path).context(|| show(bytes))?;
    }
    let place = Place::open(path).context(|| show(bytes))?;
    let (uid, gid) = (fields.opt_u32("uid")?, fields.opt_u32("gid")?);
    stream.reply(&map! {});
    let mut unpacker =
        Unpacker { source: Source::new(stream), place, uid, gid, times: Vec::new(), entries: 0 };
    while let Some(entry) = unpacker.next_entry()? {
        unpacker.unpack(&entry)?;
    }
    unpacker.source.drain()?;
    unpacker.set_times();
    let result = map! { "entries" => unpacker.entries, "bytes" => unpacker.source.taken() };
    stream.finish(frame::Kind::Result, Ok(result));
    Ok(())
}

struct Unpacker<'a> {
    source: Source<'a>,
    place: Place,
    uid: Option<u32>,
    gid: Option<u32>,
    times: Vec<(PathBuf, i64)>,
    entries: u64,
}

impl Unpacker<'_> {
    /// The next entry, completed by its pax and GNU extensions; `None` at the archive's end.
    fn next_entry(&mut self) -> Result<Option<Entry>, Failure> {
        let (mut pax, mut name, mut link) = (Vec::new(), None, None);
        while let Some(block) = self.source.block()? {
            match parse(&block)? {
                Header::End => return Ok(None),
                Header::Extension(kind, size) => {
                    let bytes = self.source.metadata(size)?;
                    let text = || bytes.split(|byte| *byte == 0).next().map(<[u8]>::to_vec);
                    match kind {
                        Extension::Pax => pax = bytes,
                        Extension::LongName => name = text(),
                        Extension::LongLink => link = text(),
                        Extension::Global => {}
                    }
                }
                Header::Entry(mut entry) => {
                    entry.name = name.unwrap_or(entry.name);
                    entry.link = link.unwrap_or(entry.link);
                    apply_pax(&pax, &mut entry)?;
                    entry.uid = self.uid.map_or(entry.uid, u64::from);
                    entry.gid = self.gid.map_or(entry.gid, u64::from);
                    if entry.kind == Kind::File && (self.uid.is_some() || self.gid.is_some()) {
                        // The bits were the former owner's to give.
                        entry.mode &= !(libc::S_ISUID | libc::S_ISGID);
                    }
                    return Ok(Some(*entry));
                }
            }
        }
        Ok(None)
    }

    fn unpack(&mut self, entry: &Entry) -> Result<(), Failure> {
        let what = || show(&entry.name);
        let Some(path) = clean(&entry.name) else {
            let message = format!("the archive's entry {} leads out of the directory", what());
            return Err(Failure::new(Code::BadRequest, message));
        };
        self.entries += 1;
        if path.as_os_str().is_empty() {
            // The directory itself: it is the caller's, and keeps its attributes.
            return self.source.content(entry.size, |_| Ok(()));
        }
        if entry.kind == Kind::File {
            return self.file(&path, entry);
        }
        let fresh = self.place.node(&path, entry).context(what)?;
        if fresh && entry.kind != Kind::HardLink {
            self.place.finish(&path, entry).context(what)?;
            if entry.kind != Kind::Dir {
                self.place.set_time(&path, entry.mtime).context(what)?;
            } else if self.times.len() < MAX_TIMES {
                self.times.push((path, entry.mtime));
            }
        }
        Ok(())
    }

    fn file(&mut self, path: &Path, entry: &Entry) -> Result<(), Failure> {
        let what = || show(&entry.name);
        let mut new = self.place.file(path).context(what)?;
        self.source.content(entry.size, |bytes| new.file.write_all(bytes).context(what))?;
        self.place.settle(new, path, entry).context(what)
    }

    /// A directory that a later entry replaced has no time to set.
    fn set_times(&mut self) {
        for (path, mtime) in std::mem::take(&mut self.times) {
            let _ = self.place.set_time(&path, mtime);
        }
    }
}

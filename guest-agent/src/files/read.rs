//! `fs.list` and `fs.read`.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;
use std::sync::Arc;

use crate::failure::{show, Code, Context, Failure};
use crate::fields::Fields;
use crate::files::{entry, name_of};
use crate::frame::{Kind, DATA_CHUNK, HEADER_LEN};
use crate::map;
use crate::stream::Stream;
use crate::sys::as_path;

/// Sends the entries of a directory, sorted by name.
///
/// # Errors
/// `not_found`, `not_dir`, `permission`.
pub fn list(fields: &Fields, stream: &Stream) -> Result<(), Failure> {
    let bytes = fields.path("path")?;
    let path = as_path(bytes);
    let mut names: Vec<OsString> = Vec::new();
    for found in fs::read_dir(path).context(|| show(bytes))? {
        names.push(found.context(|| show(bytes))?.file_name());
    }
    names.sort();
    stream.reply(&map! {});
    let mut buffer = Stream::buffer();
    let mut entries = 0u64;
    for name in names {
        let child = path.join(&name);
        // What has gone meanwhile is not there.
        let Ok(meta) = fs::symlink_metadata(&child) else { continue };
        let mut record = Vec::new();
        entry(&name, &child, &meta).encode_into(&mut record);
        if buffer.len() + record.len() > HEADER_LEN + DATA_CHUNK {
            stream.send(std::mem::replace(&mut buffer, Stream::buffer()))?;
        }
        buffer.extend_from_slice(&record);
        entries += 1;
    }
    if buffer.len() > HEADER_LEN {
        stream.send(buffer)?;
    }
    stream.end()?;
    stream.finish(Kind::Result, Ok(map! { "entries" => entries }));
    Ok(())
}

/// Sends the bytes of a file.
///
/// # Errors
/// `not_found`, `is_dir`, `permission`; `bad_request` for what has no end, like a device.
pub fn read(fields: &Fields, stream: &Arc<Stream>) -> Result<(), Failure> {
    let bytes = fields.path("path")?;
    let path = as_path(bytes);
    let offset = fields.u64("offset", 0)?;
    let length = fields.u64("length", u64::MAX)?;
    // Not waiting for a fifo's writer, nor becoming a terminal's owner.
    let flags = libc::O_NONBLOCK | libc::O_NOCTTY;
    let mut options = File::options();
    let mut file = options.read(true).custom_flags(flags).open(path).context(|| show(bytes))?;
    let meta = file.metadata().context(|| show(bytes))?;
    if meta.is_dir() {
        return Err(Failure::new(Code::IsDir, format!("{} is a directory", show(bytes))));
    }
    if !meta.is_file() {
        let message = format!("{} is not a regular file", show(bytes));
        return Err(Failure::new(Code::BadRequest, message));
    }
    if offset > 0 {
        file.seek(SeekFrom::Start(offset)).context(|| show(bytes))?;
    }
    stream.reply(&map! { "entry" => entry(name_of(path), path, &meta) });
    let sent = copy_out(&mut file.take(length), stream).context_of(bytes)?;
    stream.end()?;
    stream.finish(Kind::Result, Ok(map! { "bytes" => sent }));
    Ok(())
}

/// Sends all of `source`; gives how much that was.
fn copy_out(source: &mut impl Read, stream: &Stream) -> Result<u64, CopyError> {
    let mut sent = 0;
    loop {
        let mut buffer = Stream::buffer();
        buffer.resize(HEADER_LEN + DATA_CHUNK, 0);
        let count = match source.read(&mut buffer[HEADER_LEN..]) {
            Ok(0) => return Ok(sent),
            Ok(count) => count,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(CopyError::Read(error)),
        };
        buffer.truncate(HEADER_LEN + count);
        stream.send(buffer).map_err(CopyError::Send)?;
        sent += count as u64;
    }
}

enum CopyError {
    Read(std::io::Error),
    Send(Failure),
}

trait ContextOf {
    fn context_of(self, path: &[u8]) -> Result<u64, Failure>;
}

impl ContextOf for Result<u64, CopyError> {
    fn context_of(self, path: &[u8]) -> Result<u64, Failure> {
        self.map_err(|error| match error {
            CopyError::Read(error) => Failure::io(show(path), &error),
            CopyError::Send(failure) => failure,
        })
    }
}

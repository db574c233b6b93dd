//! `fs.write`: a file appears whole or not at all.

use std::fs::{self, File, Metadata, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{fchown, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;

use crate::failure::{show, Code, Context, Failure};
use crate::fields::Fields;
use crate::files::{change, errno, make_parents, may_chown};
use crate::frame::Kind;
use crate::map;
use crate::stream::{Input, Stream};
use crate::sys::as_path;

/// A chain of links longer than this is a loop.
const MAX_LINKS: usize = 40;

/// Receives a file and puts it in its place.
///
/// # Errors
/// `exists` (exclusive), `is_dir`, `no_space` and the like; `cancelled` when the transfer breaks.
/// Nothing has changed then.
pub fn write(fields: &Fields, stream: &Arc<Stream>) -> Result<(), Failure> {
    let asked = fields.path("path")?;
    let what = || show(asked);
    if fields.bool("parents", false)? {
        make_parents(as_path(asked))?;
    }
    let target = resolve(as_path(asked)).context(what)?;
    let existing = fs::symlink_metadata(&target).ok();
    let exclusive = fields.bool("exclusive", false)?;
    check_target(existing.as_ref(), exclusive, asked)?;
    let append = fields.bool("append", false)? && existing.is_some();
    let mut draft = match append {
        true => Draft::append(&target),
        false => Draft::beside(&target),
    }
    .context(what)?;
    stream.reply(&map! {});
    let mut bytes = 0u64;
    while let Input::Data(chunk) = next(stream)? {
        draft.file.write_all(&chunk).context(what)?;
        stream.consumed(chunk.len());
        bytes += chunk.len() as u64;
    }
    let attributes = Attributes::of(fields, existing.as_ref(), append)?;
    attributes.apply(&draft.file).context(what)?;
    draft.commit(&target, exclusive).context(what)?;
    stream.finish(Kind::Result, Ok(map! { "bytes" => bytes }));
    Ok(())
}

fn next(stream: &Stream) -> Result<Input, Failure> {
    loop {
        match stream.receive()? {
            Input::Control(_) => {}
            input => return Ok(input),
        }
    }
}

fn check_target(existing: Option<&Metadata>, exclusive: bool, path: &[u8]) -> Result<(), Failure> {
    let Some(meta) = existing else { return Ok(()) };
    let path = show(path);
    if meta.is_dir() {
        return Err(Failure::new(Code::IsDir, format!("{path} is a directory")));
    }
    if exclusive {
        return Err(Failure::new(Code::Exists, format!("{path} exists")));
    }
    if !meta.is_file() {
        let message = format!("{path} is not a regular file");
        return Err(Failure::new(Code::BadRequest, message));
    }
    Ok(())
}

/// Where `path` leads when its last part is a link, also one to nothing.
fn resolve(path: &Path) -> io::Result<PathBuf> {
    let mut path = path.to_path_buf();
    for _ in 0..MAX_LINKS {
        match fs::read_link(&path) {
            Ok(target) => path = path.parent().unwrap_or(Path::new("/")).join(target),
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => return Ok(path),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(path),
            Err(error) => return Err(error),
        }
    }
    Err(errno(libc::ELOOP))
}

/// Mode and owner that the finished file gets.
struct Attributes {
    mode: Option<u32>,
    uid: Option<u32>,
    gid: Option<u32>,
}

impl Attributes {
    fn of(
        fields: &Fields,
        existing: Option<&Metadata>,
        append: bool,
    ) -> Result<Attributes, Failure> {
        // An appended file is the existing one: it has its attributes already.
        let kept = existing.filter(|_| !append);
        let default = if append { None } else { Some(0o644) };
        Ok(Attributes {
            mode: fields.opt_u32("mode")?.or(kept.map(Metadata::mode)).or(default),
            uid: fields.opt_u32("uid")?.or(kept.map(Metadata::uid)),
            gid: fields.opt_u32("gid")?.or(kept.map(Metadata::gid)),
        })
    }

    /// The owner first: changing it takes setuid away.
    fn apply(&self, file: &File) -> io::Result<()> {
        if may_chown() && (self.uid.is_some() || self.gid.is_some()) {
            fchown(file, self.uid, self.gid)?;
        }
        match self.mode {
            Some(mode) => file.set_permissions(Permissions::from_mode(mode & 0o7777)),
            None => Ok(()),
        }
    }
}

/// A file that is being written; dropping it undoes everything.
struct Draft {
    file: File,
    undo: Undo,
}

enum Undo {
    Nothing,
    Unlink(PathBuf),
    Truncate(u64),
}

impl Draft {
    fn beside(target: &Path) -> io::Result<Draft> {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        loop {
            let count = COUNT.fetch_add(1, Ordering::Relaxed);
            let path = target.with_file_name(format!(".hutch-{count}.part"));
            let mut options = OpenOptions::new();
            match options.write(true).create_new(true).mode(0o600).open(&path) {
                Ok(file) => return Ok(Draft { file, undo: Undo::Unlink(path) }),
                // Left by an agent that died; the next number is as good.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error),
            }
        }
    }

    fn append(target: &Path) -> io::Result<Draft> {
        let mut options = OpenOptions::new();
        let file = options.append(true).custom_flags(libc::O_NOFOLLOW).open(target)?;
        let length = file.metadata()?.len();
        Ok(Draft { file, undo: Undo::Truncate(length) })
    }

    fn commit(mut self, target: &Path, exclusive: bool) -> io::Result<()> {
        if let Undo::Unlink(path) = &self.undo {
            change::move_file(path, target, !exclusive)?;
        }
        self.undo = Undo::Nothing;
        Ok(())
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        match &self.undo {
            Undo::Nothing => {}
            Undo::Unlink(path) => drop(fs::remove_file(path)),
            Undo::Truncate(length) => drop(self.file.set_len(*length)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scratch::Scratch;
    use std::os::unix::fs::symlink;

    #[test]
    fn links_are_followed_to_their_end() {
        let scratch = Scratch::new("resolve");
        let at = |name: &str| scratch.path().join(name);
        symlink("b", at("a")).unwrap();
        symlink("none", at("b")).unwrap();
        symlink("loop", at("loop")).unwrap();
        assert_eq!(resolve(&at("a")).unwrap(), at("none"));
        assert_eq!(resolve(&at("loop")).unwrap_err().raw_os_error(), Some(libc::ELOOP));
    }

    #[test]
    fn a_dropped_draft_leaves_nothing() {
        let scratch = Scratch::new("draft");
        let target = scratch.path().join("file");
        fs::write(&target, "old").unwrap();
        let mut draft = Draft::beside(&target).unwrap();
        draft.file.write_all(b"new").unwrap();
        drop(draft);
        let mut draft = Draft::append(&target).unwrap();
        draft.file.write_all(b"more").unwrap();
        drop(draft);
        assert_eq!(fs::read_to_string(&target).unwrap(), "old");
        assert_eq!(fs::read_dir(scratch.path()).unwrap().count(), 1);
        let mut draft = Draft::beside(&target).unwrap();
        draft.file.write_all(b"new").unwrap();
        draft.commit(&target, false).unwrap();
        assert_eq!(fs::read_to_string(&target).unwrap(), "new");
        let draft = Draft::beside(&target).unwrap();
        assert!(draft.commit(&target, true).is_err());
        assert_eq!(fs::read_to_string(&target).unwrap(), "new");
    }
}

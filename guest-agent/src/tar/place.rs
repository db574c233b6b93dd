//! Where an archive is unpacked: a directory that nothing in the archive can lead out of.
//!
//! Parents are opened as if the directory were the root (links in it are followed, but only within
//! it), and the last part of a name is never followed.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};

use crate::files::{errno, may_chown};
use crate::sys::{self, as_path, check};
use crate::tar::header::{Entry, Kind};
use crate::tar::new_file::NewFile;

const DIR: i32 = libc::O_PATH | libc::O_DIRECTORY;

/// The directory.
pub struct Place {
    root: OwnedFd,
    may_chown: bool,
    /// The parent of the last entry, which is most often that of the next one.
    last: Option<(PathBuf, OwnedFd)>,
}

/// A name within the place: the directory that it is in, and its last part.
pub struct Spot<'a> {
    dir: &'a OwnedFd,
    name: CString,
}

/// The parts of an archive's name, without a leading slash and dots; `None` if it climbs up.
pub fn clean(name: &[u8]) -> Option<PathBuf> {
    let mut path = PathBuf::new();
    for part in name.split(|byte| *byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." => return None,
            part if part.contains(&0) => return None,
            part => path.push(as_path(part)),
        }
    }
    Some(path)
}

impl Place {
    /// The directory `path`.
    ///
    /// # Errors
    /// When it is none.
    pub fn open(path: &Path) -> io::Result<Place> {
        let root = sys::open(path, libc::O_RDONLY | libc::O_DIRECTORY, 0)?;
        Ok(Place { root, may_chown: may_chown(), last: None })
    }

    /// Finds the spot of a clean, non-empty name; missing parents are made.
    pub fn spot(&mut self, path: &Path) -> io::Result<Spot<'_>> {
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
            return Err(errno(libc::EINVAL));
        };
        if self.last.as_ref().is_none_or(|(known, _)| known != parent) {
            let dir = self.make_dirs(parent)?;
            self.last = Some((parent.to_path_buf(), dir));
        }
        let dir = self.last.as_ref().map_or(&self.root, |(_, dir)| dir);
        Ok(Spot { dir, name: sys::c_string(name)? })
    }

    /// Directories or links may have changed: forgets what is open.
    pub fn forget(&mut self) {
        self.last = None;
    }

    fn make_dirs(&self, path: &Path) -> io::Result<OwnedFd> {
        let open = |path: &Path| {
            let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
            sys::open_in_root(self.root.as_fd(), path, DIR, 0)
        };
        match open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            result => return result,
        }
        // Part by part, since a name may have thousands.
        let mut done = PathBuf::new();
        let mut dir = open(&done)?;
        for part in path {
            done.push(part);
            dir = match open(&done) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    let name = sys::c_string(part)?;
                    // SAFETY: the name is a valid C string.
                    check(unsafe { libc::mkdirat(dir.as_raw_fd(), name.as_ptr(), 0o755) })?;
                    open(&done)?
                }
                result => result?,
            };
        }
        Ok(dir)
    }

    /// Makes a file that will have the name `path`, for its content to be written.
    pub fn file(&mut self, path: &Path) -> io::Result<NewFile> {
        NewFile::create(self.spot(path)?.dir)
    }

    /// Gives a file whose content is whole its attributes and its name.
    pub fn settle(&mut self, file: NewFile, path: &Path, entry: &Entry) -> io::Result<()> {
        let may_chown = self.may_chown;
        file.settle(&self.spot(path)?.name, entry, may_chown)
    }

    /// Makes anything but a file. Gives whether it is new.
    pub fn node(&mut self, path: &Path, entry: &Entry) -> io::Result<bool> {
        if entry.kind == Kind::HardLink {
            return self.hard_link(path, &entry.link).map(|()| true);
        }
        let own = sys::open_in_root(self.root.as_fd(), path, DIR, 0).is_ok();
        if entry.kind == Kind::Dir && own {
            // Also a link to a directory stays, as /bin is in many images.
            return Ok(false);
        }
        let spot = self.spot(path)?;
        spot.clear()?;
        let (dir, name) = (spot.dir.as_raw_fd(), spot.name.as_ptr());
        let device = libc::makedev(entry.major, entry.minor);
        let link = CString::new(entry.link.clone()).map_err(|_| errno(libc::EINVAL))?;
        // SAFETY: both texts are valid C strings.
        check(unsafe {
            match entry.kind {
                Kind::Dir => libc::mkdirat(dir, name, 0o700),
                Kind::Symlink => libc::symlinkat(link.as_ptr(), dir, name),
                Kind::Char => libc::mknodat(dir, name, libc::S_IFCHR | 0o600, device),
                Kind::Block => libc::mknodat(dir, name, libc::S_IFBLK | 0o600, device),
                _ => libc::mknodat(dir, name, libc::S_IFIFO | 0o600, 0),
            }
        })?;
        self.forget();
        Ok(true)
    }

    fn hard_link(&mut self, path: &Path, target: &[u8]) -> io::Result<()> {
        let target = clean(target).ok_or_else(|| errno(libc::EINVAL))?;
        let (Some(parent), Some(name)) = (target.parent(), target.file_name()) else {
            return Err(errno(libc::EINVAL));
        };
        if target == path {
            return Ok(());
        }
        let from = self.make_dirs(parent)?;
        let from_name = sys::c_string(name)?;
        let spot = self.spot(path)?;
        spot.clear()?;
        // SAFETY: both names are valid C strings. Without AT_SYMLINK_FOLLOW no link is followed.
        check(unsafe {
            libc::linkat(
                from.as_raw_fd(),
                from_name.as_ptr(),
                spot.dir.as_raw_fd(),
                spot.name.as_ptr(),
                0,
            )
        })
        .map(drop)
    }

    /// Gives what `path` names the attributes of `entry`.
    pub fn finish(&mut self, path: &Path, entry: &Entry) -> io::Result<()> {
        let may_chown = self.may_chown;
        let spot = self.spot(path)?;
        let (dir, name) = (spot.dir.as_raw_fd(), spot.name.as_ptr());
        let node = libc::O_PATH | libc::O_NOFOLLOW | libc::O_CLOEXEC;
        // SAFETY: the name is a valid C string, and the descriptor returned is ours.
        let node = unsafe { OwnedFd::from_raw_fd(check(libc::openat(dir, name, node))?) };
        set_attributes(node.as_raw_fd(), entry, may_chown)
    }

    /// Sets the time of a directory, after its content.
    pub fn set_time(&mut self, path: &Path, mtime: i64) -> io::Result<()> {
        let spot = self.spot(path)?;
        set_time(spot.dir.as_raw_fd(), &spot.name, mtime)
    }
}

impl Spot<'_> {
    /// Removes what is there, unless it is a directory with something in it.
    fn clear(&self) -> io::Result<()> {
        let remove = |flags| {
            // SAFETY: the name is a valid C string.
            check(unsafe { libc::unlinkat(self.dir.as_raw_fd(), self.name.as_ptr(), flags) })
        };
        match remove(0) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) if error.raw_os_error() == Some(libc::EISDIR) => {
                remove(libc::AT_REMOVEDIR).map(drop)
            }
            result => result.map(drop),
        }
    }
}

/// The owner first: changing it takes setuid and capabilities away.
pub(super) fn set_attributes(node: RawFd, entry: &Entry, may_chown: bool) -> io::Result<()> {
    let id = |id: u64| u32::try_from(id).map_err(|_| errno(libc::EINVAL));
    let path = sys::c_string(format!("/proc/self/fd/{node}"))?;
    let symlink = entry.kind == Kind::Symlink;
    // SAFETY: every text is a valid C string, and pointers to values come with their length.
    unsafe {
        if may_chown {
            let (uid, gid) = (id(entry.uid)?, id(entry.gid)?);
            check(libc::fchownat(node, c"".as_ptr(), uid, gid, libc::AT_EMPTY_PATH))?;
        }
        if symlink {
            return Ok(());
        }
        check(libc::chmod(path.as_ptr(), entry.mode))?;
        for (key, value) in &entry.xattrs {
            let key = CString::new(key.clone()).map_err(|_| errno(libc::EINVAL))?;
            let result =
                libc::setxattr(path.as_ptr(), key.as_ptr(), value.as_ptr().cast(), value.len(), 0);
            match check(result) {
                // A file system without them, or an agent without the right: as tar does, go on.
                Err(error)
                    if !matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::EPERM)) =>
                {
                    return Err(error);
                }
                _ => {}
            }
        }
    }
    Ok(())
}

pub(super) fn set_time(dir: RawFd, name: &CString, mtime: i64) -> io::Result<()> {
    let omit = libc::timespec { tv_sec: 0, tv_nsec: libc::UTIME_OMIT };
    let times = [omit, libc::timespec { tv_sec: mtime, tv_nsec: 0 }];
    let flags = libc::AT_SYMLINK_NOFOLLOW;
    // SAFETY: the name is a valid C string and the array has the two times.
    check(unsafe { libc::utimensat(dir, name.as_ptr(), times.as_ptr(), flags) }).map(drop)
}

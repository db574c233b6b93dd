//! A file from an archive, which takes its name only when it is whole.
//!
//! Until then it stands beside its place under a name of its own; dropped before that, it is gone,
//! and what had the name has kept it.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::sys::{self, check};
use crate::tar::header::Entry;
use crate::tar::place::{set_attributes, set_time};

const FLAGS: i32 =
    libc::O_WRONLY | libc::O_CREAT | libc::O_EXCL | libc::O_NOFOLLOW | libc::O_CLOEXEC;

/// The file, open for its content.
pub struct NewFile {
    /// Where the content goes.
    pub file: File,
    dir: OwnedFd,
    temporary: Option<CString>,
}

impl NewFile {
    /// A new file in `dir`.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn create(dir: &OwnedFd) -> io::Result<NewFile> {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        loop {
            let count = COUNT.fetch_add(1, Ordering::Relaxed);
            let name = sys::c_string(format!(".hutch-{count}.tar.part"))?;
            // SAFETY: the name is a valid C string, and the descriptor returned is ours.
            let made = unsafe { check(libc::openat(dir.as_raw_fd(), name.as_ptr(), FLAGS, 0o600)) };
            match made {
                Ok(fd) => {
                    // SAFETY: as above.
                    let file = unsafe { File::from(OwnedFd::from_raw_fd(fd)) };
                    return Ok(NewFile { file, dir: dir.try_clone()?, temporary: Some(name) });
                }
                // Left by an agent that died; the next number is as good.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Gives the file its attributes and the name; what had the name is gone, unless it is a
    /// directory with something in it.
    ///
    /// # Errors
    /// Those of the file system; the file is gone then.
    pub fn settle(mut self, name: &CString, entry: &Entry, may_chown: bool) -> io::Result<()> {
        let Some(temporary) = &self.temporary else { return Ok(()) };
        set_attributes(self.file.as_raw_fd(), entry, may_chown)?;
        set_time(self.dir.as_raw_fd(), temporary, entry.mtime)?;
        match self.rename(temporary, name) {
            Err(error) if error.raw_os_error() == Some(libc::EISDIR) => {
                self.unlink(name, libc::AT_REMOVEDIR)?;
                self.rename(temporary, name)?;
            }
            result => result?,
        }
        self.temporary = None;
        Ok(())
    }

    fn rename(&self, from: &CString, to: &CString) -> io::Result<()> {
        let dir = self.dir.as_raw_fd();
        // SAFETY: both names are valid C strings.
        check(unsafe { libc::renameat(dir, from.as_ptr(), dir, to.as_ptr()) }).map(drop)
    }

    fn unlink(&self, name: &CString, flags: i32) -> io::Result<()> {
        // SAFETY: the name is a valid C string.
        check(unsafe { libc::unlinkat(self.dir.as_raw_fd(), name.as_ptr(), flags) }).map(drop)
    }
}

impl Drop for NewFile {
    fn drop(&mut self) {
        if let Some(temporary) = &self.temporary {
            let _ = self.unlink(temporary, 0);
        }
    }
}

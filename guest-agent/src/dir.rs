//! Directories by descriptor: what is in them, and how a whole tree is removed while programs of the
//! sandbox may be changing it.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, IntoRawFd, OwnedFd};

use crate::sys::{self, check};

/// Deeper trees are refused: a removal holds a descriptor for each level.
const MAX_DEPTH: usize = 2048;

/// An entry of a directory.
pub struct Entry {
    /// Its name.
    pub name: CString,
    /// Whether it is a directory, as far as the file system told.
    pub is_dir: bool,
}

/// Everything in `dir` but itself and its parent.
///
/// # Errors
/// When it cannot be read.
pub fn entries(dir: BorrowedFd) -> io::Result<Vec<Entry>> {
    // A description of its own: reading moves the position.
    let own = sys::open_here(dir, ".", libc::O_RDONLY | libc::O_DIRECTORY)?;
    // SAFETY: the descriptor is ours and valid; the stream takes it over if it is made.
    let stream = unsafe { libc::fdopendir(own.as_raw_fd()) };
    if stream.is_null() {
        return Err(io::Error::last_os_error());
    }
    let _ = own.into_raw_fd();
    let mut list = Vec::new();
    // SAFETY: the stream is valid until it is closed, an entry until the next call, and its name ends
    // with NUL.
    unsafe {
        loop {
            let entry = libc::readdir(stream);
            if entry.is_null() {
                break;
            }
            let name = CStr::from_ptr((*entry).d_name.as_ptr());
            if ![c".", c".."].contains(&name) {
                list.push(Entry { name: name.into(), is_dir: (*entry).d_type == libc::DT_DIR });
            }
        }
        libc::closedir(stream);
    }
    Ok(list)
}

/// Removes the directory `name` in `parent` with all that is in it. No link is followed.
///
/// # Errors
/// The first file that cannot be removed; `ELOOP` for a tree that is too deep.
pub fn remove_tree(parent: BorrowedFd, name: &CStr) -> io::Result<()> {
    remove_at(parent, name, MAX_DEPTH)
}

fn remove_at(parent: BorrowedFd, name: &CStr, depth: usize) -> io::Result<()> {
    let Some(depth) = depth.checked_sub(1) else {
        return Err(io::Error::from_raw_os_error(libc::ELOOP));
    };
    let flags = libc::O_RDONLY | libc::O_DIRECTORY | libc::O_NOFOLLOW;
    let dir = sys::open_at(parent, name, flags)?;
    for entry in entries(dir.as_fd())? {
        match unlink(dir.as_fd(), &entry.name, 0) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) if error.raw_os_error() == Some(libc::EISDIR) || entry.is_dir => {
                remove_at(dir.as_fd(), &entry.name, depth)?;
            }
            Err(error) => return Err(error),
        }
    }
    drop(dir);
    unlink(parent, name, libc::AT_REMOVEDIR)
}

/// unlinkat(2).
pub fn unlink(dir: BorrowedFd, name: &CStr, flags: i32) -> io::Result<()> {
    // SAFETY: the name is a valid C string.
    check(unsafe { libc::unlinkat(dir.as_raw_fd(), name.as_ptr(), flags) }).map(drop)
}

/// A directory that is to be read or searched.
pub fn open(path: &std::path::Path) -> io::Result<OwnedFd> {
    sys::open(path, libc::O_RDONLY | libc::O_DIRECTORY, 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scratch::Scratch;
    use std::fs;
    use std::os::unix::fs::symlink;

    #[test]
    fn a_tree_goes_and_what_its_links_name_stays() {
        let scratch = Scratch::new("dir");
        let at = |name: &str| scratch.path().join(name);
        fs::create_dir_all(at("tree/a/b")).unwrap();
        fs::create_dir(at("other")).unwrap();
        fs::write(at("other/kept"), "").unwrap();
        fs::write(at("tree/a/file"), "").unwrap();
        symlink(at("other"), at("tree/link")).unwrap();
        let top = open(scratch.path()).unwrap();
        assert!(remove_tree(top.as_fd(), c"tree").is_ok());
        assert!(!at("tree").exists() && at("other/kept").exists());
        symlink(at("other"), at("link")).unwrap();
        assert!(remove_tree(top.as_fd(), c"link").is_err());
    }

    #[test]
    fn a_tree_deeper_than_any_path_is_refused_and_does_not_end_us() {
        let scratch = Scratch::new("deep");
        let top = open(scratch.path()).unwrap();
        let mut dirs = vec![top];
        for _ in 0..MAX_DEPTH + 10 {
            let here = dirs.last().unwrap();
            // SAFETY: the name is a valid C string.
            check(unsafe { libc::mkdirat(here.as_raw_fd(), c"d".as_ptr(), 0o755) }).unwrap();
            let below = sys::open_at(here.as_fd(), c"d", libc::O_PATH).unwrap();
            dirs.push(below);
            if dirs.len() > 64 {
                dirs.remove(1);
            }
        }
        drop(dirs.split_off(1));
        let run = move || remove_tree(dirs[0].as_fd(), c"d").map_err(|error| error.raw_os_error());
        // The stack of a worker.
        let worker = std::thread::Builder::new().stack_size(8 << 20).spawn(run).unwrap();
        assert_eq!(worker.join().unwrap(), Err(Some(libc::ELOOP)));
        let deep = std::process::Command::new("rm").arg("-rf").arg(scratch.path()).status();
        assert!(deep.unwrap().success());
    }
}

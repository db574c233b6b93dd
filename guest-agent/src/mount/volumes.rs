//! Directories that live on the writable disk itself, because an overlay must not lie on an overlay.

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use crate::failure::{show, Context, Failure};
use crate::files::copy;
use crate::preamble::crc32;
use crate::sys::{self, as_path};

/// Where container engines in the sandbox keep their layers.
const ALWAYS: [&[u8]; 2] = [b"/var/lib/docker", b"/var/lib/containers"];
const DIR: i32 = libc::O_PATH | libc::O_DIRECTORY;

/// Binds a directory of `store` over each volume below `merged`; at its first use it gets what the
/// image has there. The names come from an image: nothing outside `merged` is reached.
///
/// # Errors
/// The volume that could not be made.
pub fn bind(merged: &Path, store: &Path, volumes: &[Vec<u8>]) -> Result<(), Failure> {
    let root = sys::open(merged, DIR, 0).context(|| "open the root")?;
    for volume in ALWAYS.into_iter().chain(volumes.iter().map(Vec::as_slice)) {
        let Some(path) = normal(volume) else { continue };
        bind_one(root.as_fd(), store, &path).context(|| format!("volume {}", show(volume)))?;
    }
    Ok(())
}

fn bind_one(root: BorrowedFd, store: &Path, path: &Path) -> io::Result<()> {
    let target = make_path(root, path)?;
    let target = Path::new("/proc/self/fd").join(target.as_raw_fd().to_string());
    let kept = store.join(name_of(path));
    if !kept.exists() {
        // Only a complete copy gets its final name.
        let fresh = kept.with_extension("new");
        if fresh.exists() {
            fs::remove_dir_all(&fresh)?;
        }
        copy::tree(&target.join("."), &fresh)?;
        fs::rename(&fresh, &kept)?;
    }
    let source = kept.to_string_lossy();
    sys::mount(&source, &target, "", libc::MS_BIND, "")
}

/// The path below the root, without dots; `None` for the root itself and for nonsense.
fn normal(volume: &[u8]) -> Option<PathBuf> {
    let parts: Vec<_> = as_path(volume)
        .components()
        .filter(|part| !matches!(part, Component::RootDir | Component::CurDir))
        .collect();
    let plain = parts.iter().all(|part| matches!(part, Component::Normal(_)));
    (plain && !parts.is_empty() && !volume.contains(&0)).then(|| parts.iter().collect())
}

/// The same volume has the same name at each start: readable, and unique by its checksum.
fn name_of(path: &Path) -> String {
    let bytes = path.as_os_str().as_bytes();
    let safe = |byte: &u8| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'_' => char::from(*byte),
        _ => '-',
    };
    let words: String = bytes.iter().take(100).map(safe).collect();
    format!("{words}-{:08x}", crc32(bytes))
}

/// Opens the directory `path` below `root`, making what is missing.
fn make_path(root: BorrowedFd, path: &Path) -> io::Result<OwnedFd> {
    let mut done = PathBuf::new();
    let mut parent = sys::open_in_root(root, Path::new("."), DIR, 0)?;
    for part in path {
        done.push(part);
        parent = match sys::open_in_root(root, &done, DIR, 0) {
            Ok(dir) => dir,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let name = sys::c_string(part)?;
                // SAFETY: the name is a valid C string.
                sys::check(unsafe { libc::mkdirat(parent.as_raw_fd(), name.as_ptr(), 0o755) })?;
                sys::open_in_root(root, &done, DIR, 0)?
            }
            Err(error) => return Err(error),
        };
    }
    Ok(parent)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn volumes_have_safe_and_stable_names() {
        assert_eq!(normal(b"/data/./db/").unwrap(), Path::new("data/db"));
        assert_eq!(normal(b"data").unwrap(), Path::new("data"));
        for bad in [&b"/"[..], b"", b"/a/../b", b"a\0b"] {
            assert_eq!(normal(bad), None);
        }
        assert_ne!(name_of(Path::new("a/b")), name_of(Path::new("a-b")));
        assert!(!name_of(Path::new("a/b")).contains('/'));
    }

    #[test]
    fn missing_directories_are_made_below_the_root_only() {
        let scratch = crate::scratch::Scratch::new("volumes");
        let outside = scratch.path().join("outside");
        let root = scratch.path().join("root");
        fs::create_dir_all(&outside).unwrap();
        fs::create_dir_all(root.join("real")).unwrap();
        std::os::unix::fs::symlink("/real", root.join("link")).unwrap();
        std::os::unix::fs::symlink("../../outside", root.join("escape")).unwrap();
        let dir = sys::open(&root, DIR, 0).unwrap();
        make_path(dir.as_fd(), Path::new("link/a/b")).unwrap();
        assert!(root.join("real/a/b").is_dir());
        assert!(make_path(dir.as_fd(), Path::new("escape/x")).is_err());
        assert_eq!(fs::read_dir(outside).unwrap().count(), 0);
    }
}

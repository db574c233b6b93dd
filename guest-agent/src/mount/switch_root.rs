//! Leaving the initramfs: its files are deleted to free their memory, its mounts move along.

use std::fs;
use std::io;
use std::os::unix::fs::{symlink, MetadataExt};
use std::path::Path;

use crate::console::log;
use crate::failure::{Context, Failure};
use crate::sys;

/// Makes `merged` the root of every thread.
///
/// # Errors
/// When a mount cannot be moved; the machine is of no use then.
pub fn switch(merged: &Path) -> Result<(), Failure> {
    for name in ["dev", "proc", "sys"] {
        let target = merged.join(name);
        replace_with_dir(&target).context(|| format!("make /{name}"))?;
        let source = format!("/{name}");
        sys::mount(&source, &target, "", libc::MS_MOVE, "").context(|| format!("move /{name}"))?;
    }
    // Before the move: afterwards "/" would be the image.
    if let Err(error) = delete_own_files(Path::new("/")) {
        log(format_args!("cannot delete the initramfs: {error}"));
    }
    std::env::set_current_dir(merged).context(|| "enter the new root")?;
    sys::mount(".", Path::new("/"), "", libc::MS_MOVE, "").context(|| "move the new root")?;
    // SAFETY: the path is a valid C string. All threads of the agent share their root.
    sys::check(unsafe { libc::chroot(c".".as_ptr()) }).context(|| "change the root")?;
    std::env::set_current_dir("/").context(|| "enter the root")
}

/// An image may have a link or a file where a mount point must be.
fn replace_with_dir(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Ok(meta) if meta.is_dir() => return Ok(()),
        Ok(_) => fs::remove_file(path)?,
        Err(_) => {}
    }
    fs::create_dir(path)
}

/// Deletes the files of the initramfs, and only there: what is mounted is not entered.
fn delete_own_files(root: &Path) -> io::Result<()> {
    let path = sys::c_string(root)?;
    // SAFETY: statfs is plain data, for which zero is valid, and the call fills it.
    let kind = unsafe {
        let mut stat: libc::statfs = std::mem::zeroed();
        sys::check(libc::statfs(path.as_ptr(), &mut stat))?;
        stat.f_type
    };
    const RAMFS_MAGIC: i64 = 0x8584_58f6;
    if kind != RAMFS_MAGIC && kind != libc::TMPFS_MAGIC {
        return Err(io::Error::other("the root is no initramfs"));
    }
    delete_children(root, fs::metadata(root)?.dev())
}

fn delete_children(dir: &Path, device: u64) -> io::Result<()> {
    for entry in fs::read_dir(dir)?.flatten() {
        let path = entry.path();
        let meta = fs::symlink_metadata(&path)?;
        if meta.dev() != device {
            continue;
        }
        if meta.is_dir() {
            delete_children(&path, device)?;
            // A mount point stays, and with it its parents.
            let _ = fs::remove_dir(&path);
        } else {
            fs::remove_file(&path)?;
        }
    }
    Ok(())
}

/// Unmounts `target` with all that is mounted below it.
pub fn unmount_tree(target: &Path) -> io::Result<()> {
    let path = sys::c_string(target)?;
    // SAFETY: the path is a valid C string.
    sys::check(unsafe { libc::umount2(path.as_ptr(), libc::MNT_DETACH) }).map(drop)
}

/// Makes a standard link such as /dev/fd, replacing whatever is there.
pub fn link(target: &str, path: &str) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    symlink(target, path)
}

//! Copies a directory tree with owners, modes and links: the first content of a volume.

use std::fs::{self, Metadata, Permissions};
use std::io;
use std::os::unix::fs::{lchown, symlink, MetadataExt, PermissionsExt};
use std::path::Path;

use crate::files::may_chown;
use crate::sys;

/// Copies the directory `from` to `to`, which must not exist. Links are copied as links.
///
/// # Errors
/// The first file that cannot be copied.
pub fn tree(from: &Path, to: &Path) -> io::Result<()> {
    let meta = fs::metadata(from)?;
    fs::create_dir(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let (source, target) = (entry.path(), to.join(entry.file_name()));
        let meta = fs::symlink_metadata(&source)?;
        if meta.is_dir() {
            tree(&source, &target)?;
        } else {
            one(&source, &target, &meta)?;
        }
    }
    attributes(to, &meta)
}

fn one(from: &Path, to: &Path, meta: &Metadata) -> io::Result<()> {
    if meta.is_symlink() {
        symlink(fs::read_link(from)?, to)?;
        return owner(to, meta);
    }
    if meta.is_file() {
        fs::copy(from, to)?;
    } else {
        let path = sys::c_string(to)?;
        // SAFETY: the path is a valid C string.
        sys::check(unsafe { libc::mknod(path.as_ptr(), meta.mode(), meta.rdev()) })?;
    }
    attributes(to, meta)
}

/// The owner first: changing it takes setuid away.
fn attributes(path: &Path, meta: &Metadata) -> io::Result<()> {
    owner(path, meta)?;
    fs::set_permissions(path, Permissions::from_mode(meta.mode() & 0o7777))
}

fn owner(path: &Path, meta: &Metadata) -> io::Result<()> {
    match may_chown() {
        true => lchown(path, Some(meta.uid()), Some(meta.gid())),
        false => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scratch::Scratch;

    #[test]
    fn a_tree_is_copied_with_modes_and_links() {
        let scratch = Scratch::new("copy");
        let (from, to) = (scratch.path().join("from"), scratch.path().join("to"));
        fs::create_dir_all(from.join("sub")).unwrap();
        fs::write(from.join("sub/file"), "text").unwrap();
        fs::set_permissions(from.join("sub/file"), Permissions::from_mode(0o4711)).unwrap();
        symlink("/nowhere", from.join("link")).unwrap();
        tree(&from, &to).unwrap();
        assert_eq!(fs::read_to_string(to.join("sub/file")).unwrap(), "text");
        assert_eq!(fs::metadata(to.join("sub/file")).unwrap().mode() & 0o7777, 0o4711);
        assert_eq!(fs::read_link(to.join("link")).unwrap(), Path::new("/nowhere"));
    }
}

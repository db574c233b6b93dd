//! Operations that change names and attributes. Trees are walked through descriptors and links are
//! never followed on the way, so a program in the sandbox cannot lead the agent astray.

use std::fs::{self, Permissions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::codec::Value;
use crate::dir;
use crate::failure::{show, Code, Context, Failure};
use crate::fields::Fields;
use crate::files::make_parents;
use crate::map;
use crate::sys::{self, as_path};

/// Deeper trees are refused: the walk is recursive.
const MAX_DEPTH: usize = 256;

/// `fs.mkdir`. With `parents` an existing directory is no error.
///
/// # Errors
/// `exists`, `not_found`, `not_dir`.
pub fn mkdir(fields: &Fields) -> Result<Value, Failure> {
    let bytes = fields.path("path")?;
    let path = as_path(bytes);
    let parents = fields.bool("parents", false)?;
    let (uid, gid) = (fields.opt_u32("uid")?, fields.opt_u32("gid")?);
    let mode = fields.opt_u32("mode")?.unwrap_or(0o755);
    if parents {
        make_parents(path)?;
        if fs::metadata(path).is_ok_and(|meta| meta.is_dir()) {
            return Ok(map! {});
        }
    }
    fs::create_dir(path).context(|| show(bytes))?;
    // Explicitly, so that the agent's umask has no say.
    let set = || {
        std::os::unix::fs::lchown(path, uid, gid)?;
        fs::set_permissions(path, Permissions::from_mode(mode & 0o7777))
    };
    set().context(|| show(bytes))?;
    Ok(map! {})
}

/// `fs.remove`.
///
/// # Errors
/// `not_found`, `not_empty`, `busy` for a mount point.
pub fn remove(fields: &Fields) -> Result<Value, Failure> {
    let bytes = fields.path("path")?;
    let path = as_path(bytes);
    let meta = fs::symlink_metadata(path).context(|| show(bytes))?;
    let removed = match (meta.is_dir(), fields.bool("recursive", false)?) {
        (false, _) => fs::remove_file(path),
        (true, false) => fs::remove_dir(path),
        (true, true) if path.file_name().is_none() => {
            return Err(Failure::new(Code::BadRequest, "the root cannot be removed"));
        }
        (true, true) => remove_tree(path),
    };
    removed.context(|| show(bytes))?;
    Ok(map! {})
}

fn remove_tree(path: &Path) -> io::Result<()> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    };
    let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
    let parent = sys::open(parent, libc::O_PATH | libc::O_DIRECTORY, 0)?;
    dir::remove_tree(parent.as_fd(), &sys::c_string(name)?)
}

/// `fs.rename`.
///
/// # Errors
/// `exists` without `replace`, `not_found`.
pub fn rename(fields: &Fields) -> Result<Value, Failure> {
    let (from, to) = (fields.path("from")?, fields.path("to")?);
    move_file(as_path(from), as_path(to), fields.bool("replace", true)?)
        .context(|| format!("rename {} to {}", show(from), show(to)))?;
    Ok(map! {})
}

/// Renames; without `replace` an existing target is an error.
pub fn move_file(from: &Path, to: &Path, replace: bool) -> io::Result<()> {
    let (from, to) = (sys::c_string(from)?, sys::c_string(to)?);
    let flags = if replace { 0 } else { libc::RENAME_NOREPLACE };
    let here = libc::AT_FDCWD;
    // SAFETY: both paths are valid C strings.
    let result = unsafe {
        libc::syscall(libc::SYS_renameat2, here, from.as_ptr(), here, to.as_ptr(), flags)
    };
    sys::check(result as i32).map(drop)
}

/// `fs.symlink`.
///
/// # Errors
/// `exists`, `not_found`.
pub fn symlink(fields: &Fields) -> Result<Value, Failure> {
    let (target, path) = (fields.path("target")?, fields.path("path")?);
    std::os::unix::fs::symlink(as_path(target), as_path(path)).context(|| show(path))?;
    Ok(map! {})
}

/// `fs.chmod`. A link as `path` is followed; links below it are left alone.
///
/// # Errors
/// `not_found`, `permission`.
pub fn chmod(fields: &Fields) -> Result<Value, Failure> {
    let bytes = fields.path("path")?;
    let mode = fields.opt_u32("mode")?;
    let mode = mode.ok_or_else(|| Failure::new(Code::BadRequest, "mode is missing"))? & 0o7777;
    let top = sys::open(as_path(bytes), libc::O_PATH, 0).context(|| show(bytes))?;
    let change = |node: &Node| match node.is_link {
        true => Ok(()),
        false => fs::set_permissions(node.path(), Permissions::from_mode(mode)),
    };
    walk(top, fields.bool("recursive", false)?, &change).context(|| show(bytes))?;
    Ok(map! {})
}

/// `fs.chown`. Links themselves change their owner, unless `path` is one and `follow` is set.
///
/// # Errors
/// `not_found`, `permission`.
pub fn chown(fields: &Fields) -> Result<Value, Failure> {
    let bytes = fields.path("path")?;
    let id = |id: Option<u32>| id.unwrap_or(u32::MAX);
    let (uid, gid) = (id(fields.opt_u32("uid")?), id(fields.opt_u32("gid")?));
    let follow = if fields.bool("follow", false)? { 0 } else { libc::O_NOFOLLOW };
    let top = sys::open(as_path(bytes), libc::O_PATH | follow, 0).context(|| show(bytes))?;
    let change = |node: &Node| {
        let fd = node.fd.as_raw_fd();
        // SAFETY: the path is an empty C string, so the descriptor itself is meant.
        let result = unsafe { libc::fchownat(fd, c"".as_ptr(), uid, gid, libc::AT_EMPTY_PATH) };
        sys::check(result).map(drop)
    };
    walk(top, fields.bool("recursive", false)?, &change).context(|| show(bytes))?;
    Ok(map! {})
}

/// A file that has been reached without following a link.
struct Node {
    fd: OwnedFd,
    is_link: bool,
}

impl Node {
    /// A path to exactly this file.
    fn path(&self) -> PathBuf {
        Path::new("/proc/self/fd").join(self.fd.as_raw_fd().to_string())
    }
}

fn walk(top: OwnedFd, recursive: bool, change: &dyn Fn(&Node) -> io::Result<()>) -> io::Result<()> {
    walk_at(top, if recursive { MAX_DEPTH } else { 0 }, recursive, change)
}

/// Children first, so that taking away the right to enter a directory comes last.
fn walk_at(
    fd: OwnedFd,
    depth: usize,
    recursive: bool,
    change: &dyn Fn(&Node) -> io::Result<()>,
) -> io::Result<()> {
    let mut node = Node { fd, is_link: false };
    // Through the descriptor's link in /proc this is the file itself, also when that is a link.
    let kind = fs::metadata(node.path().join(".")).ok();
    let is_dir = kind.is_some_and(|meta| meta.is_dir());
    if !is_dir {
        node.is_link = fs::metadata(node.path()).is_ok_and(|meta| meta.is_symlink());
    }
    if recursive && is_dir {
        let Some(depth) = depth.checked_sub(1) else {
            return Err(io::Error::from_raw_os_error(libc::ELOOP));
        };
        for child in fs::read_dir(node.path())? {
            let path = node.path().join(child?.file_name());
            match sys::open(path, libc::O_PATH | libc::O_NOFOLLOW, 0) {
                Ok(fd) => walk_at(fd, depth, recursive, change)?,
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
    }
    change(&node)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scratch::Scratch;
    use std::os::unix::ffi::OsStrExt;
    use std::os::unix::fs::MetadataExt;

    fn fields(pairs: &[(&str, Value)]) -> Fields {
        let pairs = pairs.iter().map(|(key, value)| (key.to_string(), value.clone())).collect();
        Fields::new(Value::Map(pairs)).unwrap()
    }

    fn path(path: &Path) -> Value {
        Value::from(path.as_os_str().as_bytes())
    }

    #[test]
    fn chmod_of_a_tree_leaves_link_targets_alone() {
        let scratch = Scratch::new("chmod");
        let outside = scratch.path().join("outside");
        let tree = scratch.path().join("tree");
        fs::write(&outside, "").unwrap();
        fs::set_permissions(&outside, Permissions::from_mode(0o600)).unwrap();
        fs::create_dir_all(tree.join("sub")).unwrap();
        fs::write(tree.join("sub/file"), "").unwrap();
        std::os::unix::fs::symlink(&outside, tree.join("link")).unwrap();
        let request =
            [("path", path(&tree)), ("mode", 0o750u32.into()), ("recursive", true.into())];
        chmod(&fields(&request)).unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().mode() & 0o7777;
        assert_eq!(mode(&tree.join("sub/file")), 0o750);
        assert_eq!(mode(&tree), 0o750);
        assert_eq!(mode(&outside), 0o600);
    }

    #[test]
    fn names_change_as_asked() {
        let scratch = Scratch::new("change");
        let at = |name: &str| scratch.path().join(name);
        mkdir(&fields(&[("path", path(&at("a/b"))), ("parents", true.into())])).unwrap();
        let twice = mkdir(&fields(&[("path", path(&at("a/b")))]));
        assert_eq!(twice.unwrap_err().code, Code::Exists);
        fs::write(at("x"), "x").unwrap();
        fs::write(at("y"), "y").unwrap();
        let keep = [("from", path(&at("x"))), ("to", path(&at("y"))), ("replace", false.into())];
        assert_eq!(rename(&fields(&keep)).unwrap_err().code, Code::Exists);
        rename(&fields(&keep[..2])).unwrap();
        assert_eq!(fs::read_to_string(at("y")).unwrap(), "x");
        let full = remove(&fields(&[("path", path(&at("a")))]));
        assert_eq!(full.unwrap_err().code, Code::NotEmpty);
        std::os::unix::fs::symlink(at("a"), at("link")).unwrap();
        let all = |name| fields(&[("path", path(&at(name))), ("recursive", true.into())]);
        remove(&all("link")).unwrap();
        assert!(at("a/b").is_dir());
        remove(&all("a")).unwrap();
        assert_eq!(remove(&all("a")).unwrap_err().code, Code::NotFound);
    }
}

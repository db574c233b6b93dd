//! The files of /etc that say who the machine is, as the host gives them.
//!
//! Only what differs from what the host gave last is written: what a program has made of a file
//! since stays, and a clone does not pay for what it has in common with its source.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use crate::failure::{Context, Failure};

const LOCALHOST: &str = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n";
/// A hosts file that has grown beyond this is not looked into, but replaced.
const MAX_HOSTS: u64 = 1 << 20;

/// What an identity says; what is `None` stays as it is.
#[derive(Default)]
pub struct Names<'a> {
    /// The host's name.
    pub hostname: Option<&'a str>,
    /// 32 hexadecimal digits.
    pub machine_id: Option<&'a [u8]>,
    /// Addresses and names after those of localhost.
    pub hosts: Option<&'a [(String, String)]>,
    /// Addresses of name servers.
    pub nameservers: Option<&'a [String]>,
}

/// What was written last.
#[derive(Default)]
pub struct Etc(Mutex<HashMap<&'static str, Vec<u8>>>);

impl Etc {
    /// Writes what is new below `root`. What programs have added since is only looked for where
    /// some have run (`lived`).
    ///
    /// # Errors
    /// What the file system says, with the file's name.
    pub fn write(&self, root: &Path, names: &Names, lived: bool) -> Result<(), Failure> {
        if let Some(name) = names.hostname {
            self.put(root, "etc/hostname", format!("{name}\n").into_bytes(), replace)?;
        }
        if let Some(id) = names.machine_id {
            let line = [id, b"\n"].concat();
            self.put(root, "etc/machine-id", line.clone(), replace)?;
            // Most often a link to the other.
            self.put(root, "var/lib/dbus/machine-id", line, |path, bytes| {
                regular(path, Access::Write)?.map_or(Ok(()), |file| fill(file, bytes))
            })?;
        }
        if let Some(hosts) = names.hosts {
            let line = |(address, name): &(String, String)| format!("{address}\t{name}\n");
            let lines: String = hosts.iter().map(line).collect();
            let last = self.last("etc/hosts").filter(|_| lived);
            let write = |path: &Path, lines: &[u8]| write_hosts(path, last.as_deref(), lines);
            self.put(root, "etc/hosts", lines.into_bytes(), write)?;
        }
        if let Some(servers) = names.nameservers {
            let text: String = servers.iter().map(|it| format!("nameserver {it}\n")).collect();
            self.put(root, "etc/resolv.conf", text.into_bytes(), replace)?;
        }
        Ok(())
    }

    fn last(&self, path: &str) -> Option<Vec<u8>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(path).cloned()
    }

    fn put(
        &self,
        root: &Path,
        path: &'static str,
        bytes: Vec<u8>,
        write: impl FnOnce(&Path, &[u8]) -> io::Result<()>,
    ) -> Result<(), Failure> {
        if self.last(path).as_ref() != Some(&bytes) {
            write(&root.join(path), &bytes).context(|| format!("write /{path}"))?;
            self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(path, bytes);
        }
        Ok(())
    }
}

/// Puts `lines` where the `last` ones stand, and keeps what else there is; without such a place the
/// file is made anew.
fn write_hosts(path: &Path, last: Option<&[u8]>, lines: &[u8]) -> io::Result<()> {
    let whole = || [LOCALHOST.as_bytes(), lines].concat();
    let Some(last) = last.filter(|last| !last.is_empty()) else { return replace(path, &whole()) };
    let mut text = Vec::new();
    if let Some((file, length)) = regular(path, Access::Read)? {
        if length < MAX_HOSTS {
            file.take(MAX_HOSTS).read_to_end(&mut text)?;
        }
    }
    match memchr::memmem::find(&text, last) {
        Some(at) => replace(path, &[&text[..at], lines, &text[at + last.len()..]].concat()),
        None => replace(path, &whole()),
    }
}

/// Writes a regular file, replacing whatever is there; a link is never followed.
///
/// In place, not by renaming: a program that watches or binds the file keeps seeing it. Not truncated
/// first: ext4 would write to the disk at once when such a file is closed.
///
/// # Errors
/// What the file system says.
pub fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    if let Some(file) = regular(path, Access::Write)? {
        return fill(file, bytes);
    }
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    create(path)?.write_all(bytes)
}

/// Makes a regular file, and fails where there is anything.
///
/// # Errors
/// What the file system says.
pub fn create(path: &Path) -> io::Result<File> {
    fs::OpenOptions::new().write(true).create_new(true).mode(0o644).open(path)
}

/// How an open fails where there is nothing, or something else: a link, a directory, a socket, a fifo
/// that nobody reads, a device that there is not.
const NO_FILE: [i32; 6] =
    [libc::ENOENT, libc::ENOTDIR, libc::ELOOP, libc::EISDIR, libc::ENXIO, libc::ENODEV];

#[derive(Clone, Copy, PartialEq)]
enum Access {
    Read,
    Write,
}

/// Opens what is there, with its length; `None` if that is nothing, or no regular file.
///
/// The path is looked at once: whatever is put there meanwhile, what was opened is what is used. A
/// link is not followed, and a fifo not waited for.
fn regular(path: &Path, access: Access) -> io::Result<Option<(File, u64)>> {
    let mut options = fs::OpenOptions::new();
    options.read(access == Access::Read).write(access == Access::Write);
    options.custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_NOCTTY);
    let file = match options.open(path) {
        Ok(file) => file,
        Err(error) if error.raw_os_error().is_some_and(|code| NO_FILE.contains(&code)) => {
            return Ok(None);
        }
        Err(error) => return Err(error),
    };
    let meta = file.metadata()?;
    Ok(meta.is_file().then_some((file, meta.len())))
}

/// Has an open file of that length say `bytes`.
fn fill((mut file, length): (File, u64), bytes: &[u8]) -> io::Result<()> {
    file.write_all(bytes)?;
    if length > bytes.len() as u64 {
        file.set_len(bytes.len() as u64)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scratch::Scratch;
    use std::os::unix::fs::symlink;

    fn text(scratch: &Scratch, path: &str) -> String {
        fs::read_to_string(scratch.path().join(path)).unwrap()
    }

    fn fifo(path: &Path) {
        let path = crate::sys::c_string(path).unwrap();
        // SAFETY: the path is a valid C string.
        assert_eq!(unsafe { libc::mkfifo(path.as_ptr(), 0o600) }, 0);
    }

    #[test]
    fn files_take_the_place_of_links_and_fifos() {
        let scratch = Scratch::new("etc");
        let etc = scratch.path().join("etc");
        fs::create_dir(&etc).unwrap();
        symlink(scratch.path().join("elsewhere"), etc.join("machine-id")).unwrap();
        fs::write(scratch.path().join("elsewhere"), "kept").unwrap();
        fifo(&etc.join("hostname"));
        let names =
            Names { hostname: Some("box"), machine_id: Some(&[b'1'; 32]), ..Names::default() };
        Etc::default().write(scratch.path(), &names, false).unwrap();
        assert_eq!(text(&scratch, "etc/hostname"), "box\n");
        assert_eq!(text(&scratch, "etc/machine-id"), "1".repeat(32) + "\n");
        assert_eq!(text(&scratch, "elsewhere"), "kept");
        assert!(fs::symlink_metadata(scratch.path().join("var")).is_err());
    }

    #[test]
    fn a_copy_of_the_machine_id_is_kept_in_step() {
        let scratch = Scratch::new("etc");
        let dbus = scratch.path().join("var/lib/dbus");
        fs::create_dir_all(&dbus).unwrap();
        fs::write(dbus.join("machine-id"), "0".repeat(40)).unwrap();
        let names = Names { machine_id: Some(&[b'2'; 32]), ..Names::default() };
        Etc::default().write(scratch.path(), &names, true).unwrap();
        assert_eq!(text(&scratch, "var/lib/dbus/machine-id"), "2".repeat(32) + "\n");
        assert_eq!(text(&scratch, "etc/machine-id"), "2".repeat(32) + "\n");
    }

    #[test]
    fn a_fifo_is_neither_read_nor_written() {
        let scratch = Scratch::new("etc");
        let etc = Etc::default();
        let give = |name: &str| {
            let hosts = [("127.0.1.1".to_owned(), name.to_owned())];
            let id = Some(name.as_bytes());
            let names = Names { machine_id: id, hosts: Some(&hosts), ..Names::default() };
            etc.write(scratch.path(), &names, true).unwrap();
        };
        give("one");
        let dbus = scratch.path().join("var/lib/dbus");
        fs::create_dir_all(&dbus).unwrap();
        fs::remove_file(scratch.path().join("etc/hosts")).unwrap();
        for path in ["etc/hosts", "var/lib/dbus/machine-id"] {
            fifo(&scratch.path().join(path));
        }
        // Somebody reads the one, so that it could be written to.
        let flags = libc::O_NONBLOCK;
        let mut options = fs::OpenOptions::new();
        let copy = dbus.join("machine-id");
        let mut reader = options.read(true).custom_flags(flags).open(&copy).unwrap();
        give("two");
        assert!(text(&scratch, "etc/hosts").ends_with("127.0.1.1\ttwo\n"));
        assert_eq!(reader.read(&mut [0; 8]).unwrap(), 0);
        assert!(!fs::symlink_metadata(&copy).unwrap().is_file());
        // Nor is it an error that there is no place for one.
        fs::remove_file(&copy).unwrap();
        fs::create_dir(&copy).unwrap();
        give("three");
        fs::remove_dir_all(&dbus).unwrap();
        fs::write(&dbus, "").unwrap();
        give("four");
    }

    #[test]
    fn what_programs_have_written_since_stays() {
        let scratch = Scratch::new("etc");
        let etc = Etc::default();
        let give = |name: &str, servers: &[String]| {
            let hosts = [("127.0.1.1".to_owned(), name.to_owned())];
            let names =
                Names { hosts: Some(&hosts), nameservers: Some(servers), ..Names::default() };
            etc.write(scratch.path(), &names, true).unwrap();
        };
        give("one", &[]);
        let fresh = text(&scratch, "etc/hosts");
        assert!(fresh.starts_with("127.0.0.1\tlocalhost\n") && fresh.ends_with("\tone\n"));
        fs::write(scratch.path().join("etc/hosts"), fresh + "10.0.0.9\tdb\n").unwrap();
        fs::write(scratch.path().join("etc/resolv.conf"), "nameserver 9.9.9.9\n").unwrap();
        give("another", &[]);
        assert!(text(&scratch, "etc/hosts").ends_with("127.0.1.1\tanother\n10.0.0.9\tdb\n"));
        assert!(!text(&scratch, "etc/hosts").contains("one\n"));
        assert_eq!(text(&scratch, "etc/resolv.conf"), "nameserver 9.9.9.9\n");
        // Without the lines that were given there is no telling: the file is made anew.
        fs::write(scratch.path().join("etc/hosts"), "something else\n".repeat(9)).unwrap();
        give("third", &["10.0.0.1".to_owned()]);
        assert!(text(&scratch, "etc/hosts")
            .ends_with("::1\tlocalhost ip6-localhost ip6-loopback\n127.0.1.1\tthird\n"));
        assert_eq!(text(&scratch, "etc/resolv.conf"), "nameserver 10.0.0.1\n");
    }
}

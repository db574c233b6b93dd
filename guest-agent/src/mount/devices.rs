//! Disks by their serial number, as the host has them now.

use std::fs;
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use crate::failure::{Code, Context, Failure};
use crate::sys;

/// BLKFLSBUF, `_IO(0x12, 97)`.
const BLKFLSBUF: u64 = 0x1261;
const SECTOR: u64 = 512;

/// A hot-plugged disk takes up to 0.6 s under software emulation.
const LIMIT: Duration = Duration::from_secs(10);
const LOOK_AGAIN: Duration = Duration::from_millis(2);

/// The device node of the virtio disk with that serial, once it is there.
///
/// # Errors
/// `not_found` when it does not appear.
pub fn wait_for(serial: &str) -> Result<String, Failure> {
    let deadline = Instant::now() + LIMIT;
    loop {
        if let Some(name) = find(Path::new("/sys/block"), serial) {
            let node = format!("/dev/{name}");
            if Path::new(&node).exists() {
                return Ok(node);
            }
        }
        if Instant::now() > deadline {
            return Err(Failure::new(Code::NotFound, format!("there is no disk {serial}")));
        }
        thread::sleep(LOOK_AGAIN);
    }
}

/// Sees to it that nothing the kernel knows of a disk is older than this request: what it has read of
/// it before, and its size, where the host says what that is.
///
/// In a clone another disk may be behind the device than the one that it was when it appeared.
///
/// # Errors
/// `io` when the disk does not get that size.
pub fn renew(node: &str, size: Option<u64>) -> Result<(), Failure> {
    let device = sys::open(node, libc::O_RDONLY, 0).context(|| format!("open {node}"))?;
    sys::ioctl_int(device.as_raw_fd(), BLKFLSBUF, 0).context(|| format!("flush {node}"))?;
    let Some(size) = size else { return Ok(()) };
    let name = Path::new(node).file_name().unwrap_or_default();
    let path = Path::new("/sys/class/block").join(name).join("size");
    let deadline = Instant::now() + LIMIT;
    loop {
        let now = read_size(&path).context(|| format!("read the size of {node}"))?;
        if now == size / SECTOR * SECTOR {
            return Ok(());
        }
        if Instant::now() > deadline {
            let message = format!("{node} has {now} bytes instead of {size}");
            return Err(Failure::new(Code::Io, message));
        }
        // The kernel is told by an interrupt, and looks when it has time.
        thread::sleep(LOOK_AGAIN);
    }
}

/// The bytes that a `size` file of sysfs says.
///
/// # Errors
/// What the file system says; `InvalidData` for a file that is none.
pub fn read_size(path: &Path) -> io::Result<u64> {
    let invalid = |_| io::Error::from(io::ErrorKind::InvalidData);
    let sectors: u64 = fs::read_to_string(path)?.trim().parse().map_err(invalid)?;
    Ok(sectors.saturating_mul(SECTOR))
}

fn find(block: &Path, serial: &str) -> Option<String> {
    fs::read_dir(block).ok()?.flatten().find_map(|entry| {
        let name = entry.file_name().to_string_lossy().into_owned();
        let text = fs::read_to_string(entry.path().join("serial")).ok()?;
        (name.starts_with("vd") && text.trim() == serial).then_some(name)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn disks_are_found_by_serial() {
        let scratch = crate::scratch::Scratch::new("block");
        for (name, serial) in [("vda", "root"), ("vdb", "disk\n"), ("sda", "other")] {
            fs::create_dir(scratch.path().join(name)).unwrap();
            fs::write(scratch.path().join(name).join("serial"), serial).unwrap();
        }
        assert_eq!(find(scratch.path(), "disk").as_deref(), Some("vdb"));
        assert_eq!(find(scratch.path(), "other"), None);
    }

    #[test]
    fn sizes_are_in_sectors() {
        let scratch = crate::scratch::Scratch::new("size");
        let path = scratch.path().join("size");
        fs::write(&path, "2097152\n").unwrap();
        assert_eq!(read_size(&path).unwrap(), 1 << 30);
        fs::write(&path, "none").unwrap();
        assert_eq!(read_size(&path).unwrap_err().kind(), io::ErrorKind::InvalidData);
    }
}

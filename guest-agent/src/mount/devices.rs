//! Disks by their serial number.

use std::fs;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use crate::failure::{Code, Failure};

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
}

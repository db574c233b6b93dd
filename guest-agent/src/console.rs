//! One line per stage and error on the machine's console, for whoever reads the boot log.

use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;

/// Writes `hutch-agent: {text}`. A console that cannot be written is nobody's concern.
pub fn log(text: impl std::fmt::Display) {
    let line = format!("hutch-agent: {text}\n");
    // A program may have stopped the console's output: that must not stop us. Nor must it become our
    // terminal.
    let flags = libc::O_NOCTTY | libc::O_NONBLOCK;
    let console = OpenOptions::new().write(true).custom_flags(flags).open("/dev/console");
    let written = console.is_ok_and(|mut console| console.write_all(line.as_bytes()).is_ok());
    if !written {
        let _ = std::io::stderr().write_all(line.as_bytes());
    }
}

//! `hutch-agent`: the initramfs's /init.
//!
//! As PID 1 it boots the machine; started otherwise it says what it is and does nothing.

use std::process::ExitCode;

use hutch_agent::{console, init};

fn main() -> ExitCode {
    if std::process::id() != 1 {
        println!("hutch-agent {}: runs as PID 1 of a sandbox", env!("CARGO_PKG_VERSION"));
        return ExitCode::from(u8::from(!std::env::args().any(|word| word == "--version")));
    }
    std::panic::set_hook(Box::new(|panic| console::log(panic)));
    if let Err(error) = init::run() {
        console::log(error);
    }
    // The kernel panics when PID 1 ends, which the host sees at once.
    ExitCode::FAILURE
}

//! Pseudo terminals.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use crate::fields::Fields;
use crate::sys;

/// Rows and columns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size {
    rows: u16,
    cols: u16,
}

impl Size {
    /// The size in a map `{rows, cols}`; 24 by 80 where it has none.
    pub fn of(fields: &Fields) -> Size {
        let side = |key, default| {
            let number = fields.opt_u32(key).ok().flatten();
            number.and_then(|number| u16::try_from(number).ok()).unwrap_or(default)
        };
        Size { rows: side("rows", 24), cols: side("cols", 80) }
    }
}

/// Opens a terminal: (master, slave).
///
/// # Errors
/// When there is no /dev/ptmx, or no terminal left.
pub fn open(size: Size) -> io::Result<(OwnedFd, OwnedFd)> {
    let flags = libc::O_RDWR | libc::O_NOCTTY;
    let master = sys::open("/dev/ptmx", flags, 0)?;
    let mut unlock: libc::c_int = 0;
    // SAFETY: TIOCSPTLCK takes a pointer to an int.
    unsafe { sys::ioctl(master.as_raw_fd(), libc::TIOCSPTLCK, &mut unlock)? };
    let peer = flags | libc::O_CLOEXEC;
    let slave = sys::ioctl_int(master.as_raw_fd(), libc::TIOCGPTPEER, peer as libc::c_ulong)?;
    // SAFETY: TIOCGPTPEER has just made this descriptor for us.
    let slave = unsafe { OwnedFd::from_raw_fd(slave) };
    resize(master.as_raw_fd(), size)?;
    Ok((master, slave))
}

/// Changes the size; the foreground group gets SIGWINCH.
pub fn resize(master: RawFd, size: Size) -> io::Result<()> {
    let mut window =
        libc::winsize { ws_row: size.rows, ws_col: size.cols, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: TIOCSWINSZ takes a pointer to a winsize.
    unsafe { sys::ioctl(master, libc::TIOCSWINSZ, &mut window) }.map(drop)
}

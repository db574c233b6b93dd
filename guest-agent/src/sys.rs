//! Safe wrappers of the system calls that the standard library lacks.
//!
//! Every wrapper takes and gives owned or borrowed descriptors, and reports errno as [`io::Error`].
//! What runs between fork and exec is in `exec::child`, not here.

use std::ffi::{CStr, CString, OsStr};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::ptr;
use std::time::Duration;

/// A system call's result, with errno for -1.
pub fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result == -1 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

fn check_size(result: libc::ssize_t) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}

fn own(result: libc::c_int) -> io::Result<OwnedFd> {
    let fd = check(result)?;
    // SAFETY: the kernel has just made this descriptor for us, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// A path or text as a C string; a NUL in it is EINVAL.
pub fn c_string(bytes: impl AsRef<OsStr>) -> io::Result<CString> {
    CString::new(bytes.as_ref().as_bytes()).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))
}

/// Bytes as a path.
pub fn as_path(bytes: &[u8]) -> &Path {
    Path::new(OsStr::from_bytes(bytes))
}

/// Repeats a call that a signal interrupted.
pub fn retry<T>(mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

/// read(2).
pub fn read(fd: RawFd, buffer: &mut [u8]) -> io::Result<usize> {
    // SAFETY: the pointer and length are those of a live, writable slice.
    check_size(unsafe { libc::read(fd, buffer.as_mut_ptr().cast(), buffer.len()) })
}

/// write(2).
pub fn write(fd: RawFd, bytes: &[u8]) -> io::Result<usize> {
    // SAFETY: the pointer and length are those of a live slice.
    check_size(unsafe { libc::write(fd, bytes.as_ptr().cast(), bytes.len()) })
}

/// open(2) with any flags; `O_CLOEXEC` is added.
pub fn open(path: impl AsRef<Path>, flags: i32, mode: u32) -> io::Result<OwnedFd> {
    let path = c_string(path.as_ref())?;
    // SAFETY: `path` is a valid C string for the duration of the call.
    own(unsafe { libc::open(path.as_ptr(), flags | libc::O_CLOEXEC, mode) })
}

/// openat2(2) of `path` as if `dir` were the root directory: nothing outside it can be reached.
pub fn open_in_root(dir: BorrowedFd, path: &Path, flags: i32, mode: u32) -> io::Result<OwnedFd> {
    let path = c_string(path)?;
    // SAFETY: open_how is a plain structure of integers, for which zero is valid.
    let mut how: libc::open_how = unsafe { std::mem::zeroed() };
    how.flags = (flags | libc::O_CLOEXEC) as u64;
    how.mode = u64::from(mode);
    how.resolve = libc::RESOLVE_IN_ROOT | libc::RESOLVE_NO_MAGICLINKS;
    openat2(dir, &path, &how)
}

/// openat2(2) of the name `name` in `dir`, which is neither a link nor a mount point: where a program
/// in the sandbox may mount over a file, nothing foreign is opened. Never waits for a fifo's peer.
pub fn open_here(dir: BorrowedFd, name: &str, flags: i32) -> io::Result<OwnedFd> {
    let name = c_string(name)?;
    // SAFETY: open_how is a plain structure of integers, for which zero is valid.
    let mut how: libc::open_how = unsafe { std::mem::zeroed() };
    how.flags = (flags | libc::O_CLOEXEC | libc::O_NONBLOCK) as u64;
    how.resolve = libc::RESOLVE_BENEATH | libc::RESOLVE_NO_SYMLINKS | libc::RESOLVE_NO_XDEV;
    openat2(dir, &name, &how)
}

/// openat(2).
pub fn open_at(dir: BorrowedFd, name: &CStr, flags: i32) -> io::Result<OwnedFd> {
    // SAFETY: the name is a valid C string for the duration of the call.
    own(unsafe { libc::openat(dir.as_raw_fd(), name.as_ptr(), flags | libc::O_CLOEXEC) })
}

fn openat2(dir: BorrowedFd, path: &CStr, how: &libc::open_how) -> io::Result<OwnedFd> {
    // Anything that is renamed anywhere meanwhile may make the kernel unsure of "..": EAGAIN.
    let mut tries = 0;
    loop {
        // SAFETY: all pointers are valid for the call, and the size is that of the structure.
        let result = unsafe {
            libc::syscall(
                libc::SYS_openat2,
                dir.as_raw_fd(),
                path.as_ptr(),
                ptr::from_ref(how),
                std::mem::size_of::<libc::open_how>(),
            )
        };
        match own(result as libc::c_int) {
            Err(error) if error.raw_os_error() == Some(libc::EAGAIN) && tries < 64 => tries += 1,
            result => return result,
        }
    }
}

/// A pipe, close-on-exec: (read end, write end).
pub fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let mut fds = [0; 2];
    // SAFETY: the array has room for the two descriptors.
    check(unsafe { libc::pipe2(fds.as_mut_ptr(), libc::O_CLOEXEC) })?;
    Ok((own(fds[0])?, own(fds[1])?))
}

/// Makes a descriptor non-blocking.
pub fn set_nonblocking(fd: RawFd) -> io::Result<()> {
    // SAFETY: these fcntl commands take and give integers only.
    unsafe {
        let flags = check(libc::fcntl(fd, libc::F_GETFL))?;
        check(libc::fcntl(fd, libc::F_SETFL, flags | libc::O_NONBLOCK))?;
    }
    Ok(())
}

/// A small file of the kernel's, from its start.
pub fn read_again(file: &OwnedFd) -> io::Result<String> {
    let mut buffer = [0; 1024];
    // SAFETY: the pointer and length are those of a live array.
    let count =
        unsafe { libc::pread(file.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len(), 0) };
    let count = usize::try_from(count).map_err(|_| io::Error::last_os_error())?;
    Ok(String::from_utf8_lossy(&buffer[..count]).into_owned())
}

/// Gives a pipe the room that saves wake-ups; that it stays small is no error.
pub fn grow_pipe(fd: RawFd) {
    const ROOM: i32 = 1 << 20;
    // SAFETY: the command takes an integer.
    unsafe { libc::fcntl(fd, libc::F_SETPIPE_SZ, ROOM) };
}

/// kill(2).
pub fn kill(pid: i32, signal: i32) -> io::Result<()> {
    // SAFETY: kill takes integers only.
    check(unsafe { libc::kill(pid, signal) }).map(drop)
}

/// Our supplementary groups.
pub fn groups() -> Vec<u32> {
    // SAFETY: without room the call only counts; then the pointer and count are a live vector's.
    unsafe {
        let mut groups = vec![0; libc::getgroups(0, ptr::null_mut()).max(0) as usize];
        let count = libc::getgroups(groups.len() as i32, groups.as_mut_ptr());
        groups.truncate(count.max(0) as usize);
        groups
    }
}

/// Takes supplementary groups, for all threads.
pub fn set_groups(groups: &[u32]) -> io::Result<()> {
    // SAFETY: the pointer and count are those of a live slice.
    check(unsafe { libc::setgroups(groups.len(), groups.as_ptr()) }).map(drop)
}

/// Whether we ignore a signal.
pub fn is_ignored(signal: i32) -> bool {
    // SAFETY: sigaction is a structure of integers, for which zero is valid; the call fills it.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        libc::sigaction(signal, ptr::null(), &mut action) == 0
            && action.sa_sigaction == libc::SIG_IGN
    }
}

/// An ioctl whose argument is a pointer to `value`, read and written by the kernel.
///
/// # Safety
/// `request` must take a pointer to a `T`.
pub unsafe fn ioctl<T>(fd: RawFd, request: u64, value: &mut T) -> io::Result<i32> {
    // SAFETY: the caller vouches for the type, and the pointer is to a live value.
    check(unsafe { libc::ioctl(fd, request as _, ptr::from_mut(value)) })
}

/// An ioctl whose argument is an integer.
pub fn ioctl_int(fd: RawFd, request: u64, value: libc::c_ulong) -> io::Result<i32> {
    // SAFETY: an integer argument cannot be a dangling pointer unless the request takes one; the
    // callers' requests (constants of this crate) take integers.
    check(unsafe { libc::ioctl(fd, request as _, value) })
}

/// Waits until `fd` has one of `events`, at most `timeout`; gives the events that it has.
pub fn poll(fd: RawFd, events: i16, timeout: Duration) -> io::Result<i16> {
    let mut entry = libc::pollfd { fd, events, revents: 0 };
    // Rounded up, so that a wait for a fraction of a millisecond does not spin.
    let milliseconds = timeout.as_micros().div_ceil(1000).min(i32::MAX as u128) as i32;
    // SAFETY: the pointer is to one valid pollfd.
    retry(|| check(unsafe { libc::poll(&mut entry, 1, milliseconds) }))?;
    Ok(entry.revents)
}

/// mount(2); empty texts are passed as null.
pub fn mount(source: &str, target: &Path, kind: &str, flags: u64, data: &str) -> io::Result<()> {
    let source = c_string(source)?;
    let target = c_string(target)?;
    let kind = c_string(kind)?;
    let data = c_string(data)?;
    let or_null = |text: &CString| if text.is_empty() { ptr::null() } else { text.as_ptr() };
    // SAFETY: every pointer is null or a C string that outlives the call.
    check(unsafe {
        libc::mount(
            or_null(&source),
            target.as_ptr(),
            or_null(&kind),
            flags as libc::c_ulong,
            or_null(&data).cast(),
        )
    })
    .map(drop)
}

/// syncfs(2).
pub fn syncfs(fd: RawFd) -> io::Result<()> {
    // SAFETY: syncfs takes an integer.
    check(unsafe { libc::syncfs(fd) }).map(drop)
}

/// statvfs of an open file.
pub fn statvfs(fd: RawFd) -> io::Result<libc::statvfs> {
    // SAFETY: statvfs is a structure of integers, for which zero is valid; the call fills it.
    unsafe {
        let mut stat: libc::statvfs = std::mem::zeroed();
        check(libc::fstatvfs(fd, &mut stat))?;
        Ok(stat)
    }
}

/// Nanoseconds of a clock.
pub fn clock_ns(clock: libc::clockid_t) -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the pointer is to a valid timespec. The clocks used here always exist.
    unsafe { libc::clock_gettime(clock, &mut time) };
    (time.tv_sec as u64).wrapping_mul(1_000_000_000).wrapping_add(time.tv_nsec as u64)
}

/// The wall clock in nanoseconds.
pub fn realtime_ns() -> u64 {
    clock_ns(libc::CLOCK_REALTIME)
}

/// Time since boot in nanoseconds.
pub fn uptime_ns() -> u64 {
    clock_ns(libc::CLOCK_BOOTTIME)
}

/// An epoll instance whose events carry a number.
pub struct Epoll(OwnedFd);

impl Epoll {
    /// A new, empty instance.
    pub fn new() -> io::Result<Epoll> {
        // SAFETY: epoll_create1 takes an integer.
        own(unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) }).map(Epoll)
    }

    /// Watches `fd` for `events`; they are reported with `token`.
    pub fn add(&self, fd: RawFd, events: i32, token: u64) -> io::Result<()> {
        let mut event = libc::epoll_event { events: events as u32, u64: token };
        // SAFETY: the pointer is to a valid event.
        check(unsafe { libc::epoll_ctl(self.0.as_raw_fd(), libc::EPOLL_CTL_ADD, fd, &mut event) })
            .map(drop)
    }

    /// No longer watches `fd`.
    pub fn remove(&self, fd: RawFd) {
        // SAFETY: deletion takes no event. That `fd` was not watched does not matter.
        unsafe {
            libc::epoll_ctl(self.0.as_raw_fd(), libc::EPOLL_CTL_DEL, fd, ptr::null_mut());
        }
    }

    /// Waits for events, for ever without a `timeout`; gives (token, events) pairs.
    pub fn wait(&self, timeout: Option<Duration>) -> io::Result<Vec<(u64, i32)>> {
        let mut events = [libc::epoll_event { events: 0, u64: 0 }; 32];
        let milliseconds = match timeout {
            Some(time) => time.as_micros().div_ceil(1000).min(i32::MAX as u128) as i32,
            None => -1,
        };
        // SAFETY: the pointer and count are those of a live array.
        let result = check(unsafe {
            libc::epoll_wait(self.0.as_raw_fd(), events.as_mut_ptr(), 32, milliseconds)
        });
        match result {
            Ok(count) => {
                Ok(events[..count as usize].iter().map(|e| (e.u64, e.events as i32)).collect())
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(Vec::new()),
            Err(error) => Err(error),
        }
    }
}

/// A counter that wakes an epoll loop.
pub struct Waker(OwnedFd);

impl Waker {
    /// A new one, not raised.
    pub fn new() -> io::Result<Waker> {
        // SAFETY: eventfd takes integers.
        own(unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) }).map(Waker)
    }

    /// Raises it. The only possible error is that it is raised 2^64 times already.
    pub fn wake(&self) {
        let _ = write(self.0.as_raw_fd(), &1u64.to_ne_bytes());
    }

    /// Lowers it; that it was not raised does not matter.
    pub fn clear(&self) {
        let _ = read(self.0.as_raw_fd(), &mut [0; 8]);
    }

    /// The descriptor to watch.
    pub fn fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

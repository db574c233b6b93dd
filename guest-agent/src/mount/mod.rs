//! `mount.root`, `mount.overlay`, `sync`: from two disks to the root that the image's programs see.

pub mod devices;
pub mod guest_env;
pub mod switch_root;
pub mod volumes;

use std::fs;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{chown, MetadataExt, PermissionsExt};
use std::path::Path;

use crate::agent::{Agent, Stage};
use crate::codec::Value;
use crate::console::log;
use crate::failure::{Code, Context, Failure};
use crate::fields::Fields;
use crate::map;
use crate::sys;

/// Where the image, the writable disk and both together are mounted in the initramfs.
pub const LOWER: &str = "/mnt/root";
const DISK: &str = "/mnt/disk";
const MERGED: &str = "/mnt/merged";

/// EXT4_IOC_RESIZE_FS, `_IOW('f', 16, __u64)`.
const EXT4_IOC_RESIZE_FS: u64 = 0x4008_6610;
/// Kept for the agent and the kernel when the workloads use all they can.
const RESERVED_MEMORY: u64 = 24 << 20;
/// Kept for the same: the threads of requests, and the programs that are to help.
const RESERVED_TASKS: u64 = 256;

/// Mounts the image's root read-only.
///
/// # Errors
/// `exists` when that has been done, `not_found` when the disk does not appear.
pub fn root(agent: &Agent, fields: &Fields) -> Result<Value, Failure> {
    let _alone = agent.lock_machine();
    require_stage(agent, Stage::Boot, "the root is mounted already")?;
    let kind = fields.str("fstype")?;
    if !["squashfs", "erofs", "ext4"].contains(&kind) {
        let message = format!("{kind} is not squashfs, erofs or ext4");
        return Err(Failure::new(Code::BadRequest, message));
    }
    let device = devices::wait_for(fields.str("serial")?)?;
    make_dir(LOWER)?;
    let flags = libc::MS_RDONLY | libc::MS_NOATIME;
    sys::mount(&device, Path::new(LOWER), kind, flags, "")
        .context(|| format!("mount {device} as {kind}"))?;
    // Not at boot, which they would delay, and not later, when each clone of what is frozen here would
    // load them anew.
    crate::init::load_modules(Path::new("/modules.extra"));
    agent.set_stage(Stage::Root);
    log(format_args!("root mounted: {device} ({kind})"));
    Ok(map! {})
}

/// Mounts the writable disk, joins it with the root and makes that the machine's root.
///
/// # Errors
/// `not_ready` before `mount.root`, `exists` when that has been done, `not_found` when the disk
/// does not appear, `io` when it does not get the size that the host says.
pub fn overlay(agent: &Agent, fields: &Fields) -> Result<Value, Failure> {
    let _alone = agent.lock_machine();
    require_stage(agent, Stage::Root, "the writable disk is mounted already")?;
    let volumes = fields.bytes_list("volumes")?;
    let size = fields.opt_u64("size")?;
    let device = devices::wait_for(fields.str("serial")?)?;
    devices::renew(&device, size)?;
    let disk = Path::new(DISK);
    make_dir(DISK)?;
    if let Err(failure) = join(&device, &volumes, fields.bool("grow", false)?) {
        // The host may try again with another disk.
        for target in [MERGED, DISK] {
            let _ = switch_root::unmount_tree(Path::new(target));
        }
        return Err(failure);
    }
    let opened = sys::open(disk, libc::O_RDONLY | libc::O_DIRECTORY, 0)
        .context(|| "open the writable disk")?;
    switch_root::switch(Path::new(MERGED))?;
    // It cannot have been set: this stage is passed once.
    let _ = agent.disk.set(opened);
    let workloads = guest_env::prepare()?;
    // Of what is available, not of the total: the kernel itself has taken its part already, and a
    // machine that runs out before the workloads' limit thrashes for minutes instead of killing.
    let available = crate::stats::meminfo("MemAvailable").unwrap_or(u64::MAX);
    let limit = available.saturating_sub(RESERVED_MEMORY).max(RESERVED_MEMORY);
    if let Err(error) = workloads.limit_memory(limit) {
        log(format_args!("cannot limit the workloads' memory: {error}"));
    }
    if let Err(error) = workloads.limit_tasks(most_tasks()) {
        log(format_args!("cannot limit the workloads' tasks: {error}"));
    }
    let workloads = std::sync::Arc::new(workloads);
    agent.execs.use_cgroups(workloads.clone()).context(|| "prepare cgroups")?;
    crate::oom::watch(agent.events.clone(), agent.execs.clone(), workloads);
    agent.set_stage(Stage::Ready);
    log(format_args!("ready: {device}"));
    Ok(map! {})
}

/// The processes and threads that the workloads may have: what the kernel takes, less a part for the
/// agent and the kernel's own.
fn most_tasks() -> u64 {
    let limit = |path| fs::read_to_string(path).ok()?.trim().parse::<u64>().ok();
    let paths = ["/proc/sys/kernel/threads-max", "/proc/sys/kernel/pid_max"];
    let most = paths.into_iter().filter_map(limit).min().unwrap_or(u64::from(u16::MAX) / 2);
    most - (most / 8).max(RESERVED_TASKS).min(most / 2)
}

/// Writes everything to the writable disk.
///
/// # Errors
/// `not_ready`, `io`.
pub fn sync(agent: &Agent) -> Result<Value, Failure> {
    agent.require_ready()?;
    if let Some(disk) = agent.disk.get() {
        sys::syncfs(disk.as_raw_fd()).context(|| "sync the writable disk")?;
    }
    Ok(map! {})
}

fn require_stage(agent: &Agent, stage: Stage, done: &str) -> Result<(), Failure> {
    match agent.stage() {
        now if now == stage => Ok(()),
        now if now > stage => Err(Failure::new(Code::Exists, done)),
        _ => Err(Failure::new(Code::NotReady, "the root is not mounted yet")),
    }
}

fn join(device: &str, volumes: &[Vec<u8>], grow: bool) -> Result<(), Failure> {
    let disk = Path::new(DISK);
    mount_ext4(device, disk).context(|| format!("mount {device} as ext4"))?;
    if grow {
        // A disk that stays small is better than a sandbox that does not start.
        if let Err(error) = grow_to_device(device, disk) {
            log(format_args!("cannot grow {device}: {error}"));
        }
    }
    prepare_upper(&disk.join("upper")).context(|| "prepare the writable layer")?;
    make_dir(&format!("{DISK}/work"))?;
    make_dir(&format!("{DISK}/volumes"))?;
    make_dir(MERGED)?;
    // Without redirect_dir renaming a directory of the image fails with EXDEV, without index hard
    // links break at the first write; both are off by default.
    let options = format!(
        "lowerdir={LOWER},upperdir={DISK}/upper,workdir={DISK}/work,\
         redirect_dir=on,index=on,xino=auto"
    );
    sys::mount("overlay", Path::new(MERGED), "overlay", libc::MS_NOATIME, &options)
        .context(|| "join the image and the writable disk")?;
    volumes::bind(Path::new(MERGED), &disk.join("volumes"), volumes)
}

fn mount_ext4(device: &str, disk: &Path) -> io::Result<()> {
    let mount = |options| sys::mount(device, disk, "ext4", libc::MS_NOATIME, options);
    // Or a thread of the kernel would read all over the disk where it is free, some seconds later: in
    // each clone.
    match mount("discard,no_prefetch_block_bitmaps") {
        // Before Linux 5.13 there is neither the thread nor the word; or it is no ext4.
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => mount("discard"),
        result => result,
    }
}

/// The merged root has the attributes of the upper directory, which must be those of the image's.
fn prepare_upper(upper: &Path) -> io::Result<()> {
    match fs::create_dir(upper) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(error),
        Ok(()) => {
            let root = fs::metadata(LOWER)?;
            chown(upper, Some(root.uid()), Some(root.gid()))?;
            fs::set_permissions(upper, fs::Permissions::from_mode(root.mode() & 0o7777))
        }
    }
}

fn grow_to_device(device: &str, disk: &Path) -> io::Result<()> {
    let name = Path::new(device).file_name().unwrap_or_default();
    let bytes = devices::read_size(&Path::new("/sys/class/block").join(name).join("size"))?;
    let opened = sys::open(disk, libc::O_RDONLY | libc::O_DIRECTORY, 0)?;
    let stat = sys::statvfs(opened.as_raw_fd())?;
    let mut blocks = bytes / stat.f_bsize.max(1);
    // f_blocks leaves the metadata out; a disk that is nearly its device's size has been grown.
    if blocks <= stat.f_blocks {
        return Ok(());
    }
    // SAFETY: EXT4_IOC_RESIZE_FS takes a pointer to a u64.
    unsafe { sys::ioctl(opened.as_raw_fd(), EXT4_IOC_RESIZE_FS, &mut blocks) }.map(drop)
}

/// Makes a directory and its parents.
pub fn make_dir(path: &str) -> Result<(), Failure> {
    fs::create_dir_all(path).context(|| format!("make {path}"))
}

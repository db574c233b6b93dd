"""What a QEMU process is handed and who it is: files, sockets, a user without rights.

QEMU runs as the machine's own uid and needs no path of ours: files and sockets are opened here,
with the daemon's rights, and inherited. The sockets stay connectable by path, so that a restarted
daemon finds them.
"""

import contextlib
import errno
import logging
import os
import resource
import shutil
import socket
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from hutch.engine.argv import Descriptors, DriveDescriptors
from hutch.engine.base import Accelerator, Drive, MachineSpec
from hutch.engine.failures import os_failure
from hutch.errors import error

log = logging.getLogger(__name__)

KVM_DEVICE = Path("/dev/kvm")
SOCKET_PATH_LIMIT = 100

QMP_SOCKET, CONSOLE_SOCKET, AGENT_SOCKET = "qmp.sock", "console.sock", "agent.sock"
SOCKETS = (QMP_SOCKET, CONSOLE_SOCKET, AGENT_SOCKET)

OPEN_FILES, THREADS = 4096, 512
"""Several times what the largest machine needs, and little to the host."""
OOM_SCORE = 300
"""In thousandths of the host's memory: when it runs out a VM goes, not the daemon or a service."""


@dataclass(frozen=True, slots=True)
class Handover:
    """What `prepare` opened: descriptors for QEMU, and our own ends, connected before QEMU exists.

    The connections wait in the sockets' backlogs, so that no byte is missed and no file has to be
    waited for.
    """

    fds: Descriptors
    inherited: tuple[int, ...]
    close: Callable[[], None]
    qmp: socket.socket
    console: socket.socket


def identity(uid: int | None, accelerator: Accelerator) -> tuple[int | None, int | None]:
    """Return the user and group of a QEMU process: the uid's own, or KVM's where it needs it."""
    if uid is None:
        return None, None
    if accelerator is Accelerator.KVM:
        with contextlib.suppress(OSError):
            node = KVM_DEVICE.stat()
            if node.st_gid != 0 and node.st_mode & stat.S_IRGRP and node.st_mode & stat.S_IWGRP:
                return uid, node.st_gid
    return uid, uid


def confine(pid: int, uid: int | None) -> None:
    """Limit what a QEMU process, which has not run its guest yet, can take from the host.

    It cannot leave its memory in a core file either. `uid` is the one that is its alone, if any.
    """
    limits = {resource.RLIMIT_CORE: 0, resource.RLIMIT_NOFILE: OPEN_FILES}
    if uid is not None:
        # Of the user, not of the process: without a user of its own it would count others' too.
        limits[resource.RLIMIT_NPROC] = THREADS
    with contextlib.suppress(OSError):  # it ended at once, which its caller finds out
        Path(f"/proc/{pid}/oom_score_adj").write_text(str(OOM_SCORE), "ascii")
    try:
        for limit, most in limits.items():
            _, hard = resource.prlimit(pid, limit)
            if hard == resource.RLIM_INFINITY or hard > most:
                resource.prlimit(pid, limit, (most, most))
    except ProcessLookupError:
        pass
    except OSError as cause:
        # In a container root may lack the right to limit other users' processes.
        log.info("the QEMU process %d cannot be limited: %s", pid, cause.strerror)


@contextlib.contextmanager
def prepare(
    spec: MachineSpec, *, memory: int | None = None, incoming: bool = False
) -> Iterator[Handover]:
    """Open what the machine needs, for the length of the block.

    `memory` is a file that becomes its guest's, and stays the caller's to close, as its TAP does.
    An `incoming` machine boots nothing, and gets no file for it. Leaving the block closes the
    descriptors meant for QEMU; the sockets' paths and our own ends stay unless it raises. Raises
    EngineError (engine_failed), NoCapacity (disk_full).
    """
    with contextlib.ExitStack() as always, contextlib.ExitStack() as on_error:
        drives = [_open_drive(drive, always) for drive in spec.drives]
        kernel, initramfs = (None, None) if incoming else _open_boot(spec, always)
        _make_private(spec.directory, on_error)
        servers, clients = {}, {}
        for name in SOCKETS:
            path = spec.directory / name
            servers[name] = always.enter_context(_listen(path))
            on_error.callback(path.unlink, missing_ok=True)
            if name != AGENT_SOCKET:
                clients[name] = _connect(path)
                on_error.callback(clients[name].close)
        fds = Descriptors(
            kernel=kernel,
            initramfs=initramfs,
            qmp=servers[QMP_SOCKET].fileno(),
            console=servers[CONSOLE_SOCKET].fileno(),
            agent=servers[AGENT_SOCKET].fileno(),
            drives=drives,
            memory=memory,
            tap=spec.tap,
        )
        inherited = [fds.kernel, fds.initramfs, fds.qmp, fds.console, fds.agent]
        inherited += [fds.memory, fds.tap]
        for drive in fds.drives:
            inherited += [drive.image, drive.twin, drive.backing, *drive.layers]
        own_ends = clients[QMP_SOCKET], clients[CONSOLE_SOCKET]
        passed = tuple(fd for fd in inherited if fd is not None)
        yield Handover(fds, passed, always.close, *own_ends)
        on_error.pop_all()


def remove_sockets(directory: Path) -> None:
    """Remove the sockets of a machine that is gone. The directory stays its owner's."""
    for name in SOCKETS:
        with contextlib.suppress(OSError):
            (directory / name).unlink(missing_ok=True)


def reopen(directory: Path, name: str) -> socket.socket:
    """Connect to a socket of a running machine, without waiting. Raises OSError."""
    return _connect(directory / name)


def _make_private(directory: Path, on_error: contextlib.ExitStack) -> None:
    try:
        directory.mkdir(mode=0o700, parents=True)
    except FileExistsError:
        return
    except OSError as cause:
        raise os_failure(f"the directory {directory} cannot be made", cause) from cause
    on_error.callback(_remove_empty, directory)


def _remove_empty(directory: Path) -> None:
    with contextlib.suppress(OSError):
        directory.rmdir()


def _open_boot(spec: MachineSpec, stack: contextlib.ExitStack) -> tuple[int, int]:
    kernel = _open_readable(spec.boot.kernel, "kernel", spec.uid, stack)
    return kernel, _open_readable(spec.boot.initramfs, "initramfs", spec.uid, stack)


def _open_drive(drive: Drive, stack: contextlib.ExitStack) -> DriveDescriptors:
    what = f"disk {drive.serial}"
    image = _open(drive.path, what, os.O_RDONLY if drive.read_only else os.O_RDWR, stack)
    twin = None if drive.read_only else _open(drive.path, what, os.O_RDONLY, stack)
    if drive.backing is None:
        return DriveDescriptors(image, twin=twin)
    base = _open(drive.backing, f"{what}'s base", os.O_RDONLY, stack)
    layers = [_open(layer, f"{what}'s layer", os.O_RDONLY, stack) for layer in drive.layers]
    return DriveDescriptors(image, base, layers, twin)


def _open(path: Path, what: str, flags: int, stack: contextlib.ExitStack) -> int:
    try:
        fd = os.open(path, flags | os.O_CLOEXEC)
    except OSError as cause:
        raise os_failure(f"the {what} {path} cannot be opened", cause) from cause
    stack.callback(os.close, fd)
    return fd


def _open_readable(path: Path, what: str, uid: int | None, stack: contextlib.ExitStack) -> int:
    """Open a file that QEMU opens once more by descriptor, hence with its own rights."""
    fd = _open(path, what, os.O_RDONLY, stack)
    info = os.fstat(fd)
    if uid is None or info.st_mode & stat.S_IROTH:
        return fd
    copy = os.memfd_create(f"hutch-{what}", os.MFD_CLOEXEC)
    stack.callback(os.close, copy)
    try:
        with open(fd, "rb", closefd=False) as source, open(copy, "wb", closefd=False) as target:
            shutil.copyfileobj(source, target, 1 << 20)
        os.fchmod(copy, 0o444)
    except OSError as cause:
        raise os_failure(f"the {what} {path} cannot be read", cause) from cause
    return copy


def _listen(path: Path) -> socket.socket:
    if len(os.fsencode(path)) > SOCKET_PATH_LIMIT:
        raise error(
            "engine_failed",
            f"the socket path {path} is longer than {SOCKET_PATH_LIMIT} bytes",
            hint="set runtime_dir to a shorter path",
        )
    server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        try:
            server.bind(os.fspath(path))
        except OSError as cause:
            if cause.errno != errno.EADDRINUSE or _answers(path):
                raise
            # Left by a machine that ended while no daemon was there.
            path.unlink(missing_ok=True)
            server.bind(os.fspath(path))
        server.listen(8)
    except OSError as cause:
        server.close()
        if cause.errno == errno.EADDRINUSE:
            raise error(
                "engine_failed",
                f"another VM serves {path}",
                hint="end that QEMU process, or restart the daemon so that it finds it",
            ) from cause
        raise os_failure(f"the socket {path} cannot be made", cause) from cause
    except BaseException:
        server.close()
        raise
    return server


def _answers(path: Path) -> bool:
    try:
        _connect(path).close()
    except ConnectionRefusedError:
        return False
    except OSError:
        return True
    return True


def _connect(path: Path) -> socket.socket:
    client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        # A full backlog must not block the event loop: a peer that stopped accepting is as good as
        # none.
        client.setblocking(False)
        client.connect(os.fspath(path))
    except BaseException:
        client.close()
        raise
    return client

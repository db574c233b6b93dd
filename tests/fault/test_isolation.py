"""An escaped QEMU: what a process with a VM's uid finds, and what QEMU itself holds."""

import contextlib
import ctypes
import json
import mmap
import os
import re
import socket
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.harness.fixtures import NewHutch
from tests.harness.hutch import Hutch
from tests.waiting import wait_until

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="VMs have users of their own under root")

PTRACE_ATTACH = 16


@dataclass(frozen=True, slots=True)
class Targets:
    """What an intruder tries itself on."""

    private: Sequence[Path]
    readable: Sequence[Path]
    sockets: Sequence[Path]
    directories: Sequence[Path]
    processes: Sequence[int]
    handed: Sequence[Path]
    """What its own QEMU has open for reading only."""


def _connect(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))


def _trace(pid: int) -> None:
    if ctypes.CDLL(None, use_errno=True).ptrace(PTRACE_ATTACH, pid, 0, 0) < 0:
        raise OSError(ctypes.get_errno(), "ptrace")


def _deeds(targets: Targets) -> Iterator[tuple[str, Callable[[], object]]]:
    for path in targets.private:
        yield f"read {path}", partial(os.open, path, os.O_RDONLY)
    for path in (*targets.private, *targets.readable):
        yield f"write {path}", partial(os.open, path, os.O_WRONLY)
    for path in targets.sockets:
        yield f"connect {path}", partial(_connect, path)
    for path in targets.directories:
        yield f"list {path}", partial(os.listdir, path)
        yield f"make a file in {path}", partial(os.open, path / "x", os.O_CREAT | os.O_WRONLY)
    for pid in targets.processes:
        yield f"signal {pid}", partial(os.kill, pid, 0)
        yield f"trace {pid}", partial(_trace, pid)
        yield f"open the memory of {pid}", partial(os.open, f"/proc/{pid}/mem", os.O_RDWR)
        yield f"list the descriptors of {pid}", partial(os.listdir, f"/proc/{pid}/fd")
    for path in targets.handed:
        yield f"write {path}", partial(os.open, path, os.O_WRONLY)
        yield f"empty {path}", partial(os.open, path, os.O_RDONLY | os.O_TRUNC)
    yield "become root", partial(os.setuid, 0)


def _done_as(uid: int, targets: Targets) -> list[str]:
    """Return the deeds that a process of that user, and of no group, can do."""
    reader, writer = os.pipe()
    child = os.fork()  # not a program of its own: that user may not even see our Python
    if child == 0:
        done = []
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
        for what, deed in _deeds(targets):
            with contextlib.suppress(OSError):
                deed()
                done.append(what)
        os.write(writer, json.dumps(done).encode())
        os._exit(0)
    os.close(writer)
    with open(reader, "rb") as said:
        done = json.loads(said.read())
    os.waitpid(child, 0)
    return list(done)


def _status(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}


def _boxes(hutch: Hutch) -> tuple[dict[str, Any], dict[str, Any]]:
    for name in ("one", "two"):
        hutch.run("run", "-d", "--idle", "--name", name, "busybox")
    first, second = hutch.json("inspect", "one", "two")
    return first, second


@needs_root
def test_a_vms_user_reaches_nothing_of_others(new_hutch: NewHutch) -> None:
    hutch = new_hutch(templates=True)
    hutch.home.chmod(0o700)  # as the daemon makes it
    mine, other = _boxes(hutch)
    uid = int(_status(mine["pid"])["Uid"].split()[0])
    assert uid != int(_status(other["pid"])["Uid"].split()[0])
    daemon = hutch.daemon
    assert daemon is not None
    # What others have at rest: a snapshot, a parked memory, layers under disks in use.
    hutch.run("snapshot", "create", "two")
    hutch.run("fork", "two", "three")
    hutch.run("park", "three")
    home = hutch.home
    # Nor has the source itself a way to what they have taken of it.
    wait_until(
        lambda: len([name for name in _writable(other["pid"]) if str(home) in name]) == 1,
        what="it has its disk alone open",
    )
    private = [
        *home.glob("sandboxes/*/**/*"),
        *home.glob("templates/*/*"),
        *home.glob("snapshots/*/**/*"),
        *home.glob("layers/*"),
        *home.glob("hutch.db*"),
        *home.glob("daemon.*"),
        *home.glob("network/*"),
    ]
    shared = [*home.glob("images/**/*"), *home.glob("kernels/**/*"), *home.glob("disks/*")]
    sockets = [path for path in hutch.runtime.rglob("*") if path.is_socket()]
    # Where there are networks, those of the processes that carry them are beside these.
    assert len([path for path in sockets if path.parent.name != "network"]) == 7
    targets = Targets(
        private=[path for path in private if path.is_file()],
        readable=[path for path in shared if path.is_file()],
        sockets=sockets,
        directories=[home, home / "sandboxes", hutch.runtime],
        processes=[daemon.pid, other["pid"], os.getppid(), 1],
        handed=_read_only(mine["pid"], home),
    )
    assert {path.parts[len(home.parts)] for path in targets.private} > {"layers", "snapshots"}
    assert targets.handed
    assert _done_as(uid, targets) == []


def _writable(pid: int) -> set[str]:
    """Return what a process has open for writing."""
    found = set()
    for path in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # it was closed meanwhile
            info = Path(f"/proc/{pid}/fdinfo/{path.name}").read_text()
            (flags,) = re.findall(r"^flags:\s*(\d+)$", info, re.M)
            if int(flags, 8) & os.O_ACCMODE:
                found.add(os.readlink(path))
    return found


def _read_only(pid: int, home: Path) -> list[Path]:
    """Return the descriptors of a process that it cannot write with, of files of a home."""
    descriptors = Path(f"/proc/{pid}/fd").iterdir()
    own = _writable(pid)
    return [
        path for path in descriptors if str(home) in (to := os.readlink(path)) and to not in own
    ]


def _memories_are_sealed(pid: int) -> None:
    """Try, as whoever we are, to change the memory that a clone has in common with others."""
    descriptors = list(Path(f"/proc/{pid}/fd").iterdir())
    shared = [path for path in descriptors if "memfd:hutch-memory" in os.readlink(path)]
    assert shared
    for path in shared:
        fd = os.open(path, os.O_RDWR)
        try:
            size = os.fstat(fd).st_size
            with pytest.raises(PermissionError):
                os.pwrite(fd, b"x", 0)
            with pytest.raises(PermissionError):
                os.ftruncate(fd, size // 2)
            with pytest.raises(PermissionError):
                mmap.mmap(fd, size, mmap.MAP_SHARED)
        finally:
            os.close(fd)


def test_qemu_has_no_rights_and_only_its_own_files(new_hutch: NewHutch) -> None:
    hutch = new_hutch(templates=True)
    first, second = _boxes(hutch)
    disks: set[str] = set()
    for box, other in ((first, second), (second, first)):
        pid = box["pid"]
        _memories_are_sealed(pid)
        status = _status(pid)
        assert status["Seccomp"] == "2"
        assert status["NoNewPrivs"] == "1"
        if os.geteuid() == 0:
            assert int(status["Uid"].split()[0]) >= 2_000_000
            for rights in ("CapInh", "CapPrm", "CapEff", "CapAmb"):
                assert int(status[rights], 16) == 0, rights
        opened = [os.readlink(path) for path in Path(f"/proc/{pid}/fd").iterdir()]
        files = [name for name in opened if str(hutch.home) in name]
        assert not any(other["id"] in name for name in opened)
        (disk,) = [name for name in _writable(pid) if str(hutch.home) in name]
        assert Path(disk).parent == hutch.home / "layers"
        disks.add(disk)
        allowed = re.compile(rf"/(images/rootfs|kernels|disks|templates/{box['template']})/")
        # Of the files of others, and its own but for its disk, none.
        assert [name for name in files if name != disk and not allowed.search(name)] == []
        environment = Path(f"/proc/{pid}/environ").read_bytes()
        assert b"HUTCH_" not in environment
        everyone_sees = Path(f"/proc/{pid}/cmdline").read_bytes()
        assert str(hutch.home).encode() not in everyone_sees
    assert len(disks) == 2

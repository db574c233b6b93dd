"""A disk put over another, against a peer that plays QEMU's part by hand."""

import fcntl
import os
from pathlib import Path
from typing import Any

import pytest

from hutch.engine import disks
from hutch.engine.argv import PASSING
from hutch.engine.base import Drive
from hutch.engine.qmp import Qmp
from hutch.errors import EngineError, HutchError
from tests.unit.descriptors import descriptors
from tests.unit.engine.test_migration import Refusal, session

ROOT = {"device": "", "qdev": "root", "inserted": {"node-name": "drive0", "ro": True}}
DISK = {"device": "", "qdev": "disk", "inserted": {"node-name": "disk-12", "ro": False}}
EMPTY = {"device": "cd"}


class Peer:
    """A QEMU with some disks; `refuse` names the command that it will not do."""

    def __init__(self, *devices: dict[str, Any], refuse: str = "") -> None:
        self.devices = devices
        self.refuse = refuse
        self.open: dict[int, str | None] = {}
        self.nodes: list[str] = []
        self.said: list[dict[str, Any]] = []

    def __call__(self, command: str, arguments: dict[str, Any], files: list[int]) -> object:
        if command == self.refuse:
            return Refusal("told to")
        match command:
            case "query-block":
                return list(self.devices)
            case "add-fd":
                fd = files.pop()
                writable = fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDWR
                # The way for reading alone is what stays.
                assert arguments == ({"opaque": PASSING} if writable else {"fdset-id": 4})
                self.open[fd] = arguments.get("opaque")
                return {"fdset-id": 4, "fd": fd}
            case "query-fdsets":
                fds = [{"fd": fd} | ({"opaque": it} if it else {}) for fd, it in self.open.items()]
                return [{"fdset-id": 2, "fds": [{"fd": 999}]}, {"fdset-id": 4, "fds": fds}]
            case "remove-fd":
                assert arguments.pop("fdset-id") == 4
                for fd in [arguments["fd"]] if arguments else list(self.open):
                    os.close(fd)
                    del self.open[fd]
            case "blockdev-add":
                self.nodes.append(arguments["node-name"])
                self.said.append(arguments)
            case "blockdev-del":
                self.nodes.remove(arguments["node-name"])
            case "blockdev-snapshot" | "block_resize":
                self.said.append(arguments)
        return {}


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    path = tmp_path / "next.qcow2"
    path.write_bytes(b"QFI\xfb")
    return path


async def test_the_disk_is_put_over_the_one_that_the_guest_writes_to(disk: Path) -> None:
    peer = Peer(ROOT, EMPTY, DISK)

    async def use(qmp: Qmp) -> None:
        async with disks.opened(qmp, disk) as following:
            assert not following.in_use
            await following.switch()
            assert following.in_use

    commands = await session(peer, use)
    assert commands == [
        *("query-block", "add-fd", "add-fd", "blockdev-add", "blockdev-snapshot"),
        *("query-fdsets", "remove-fd"),
    ]
    added, switched = peer.said
    assert added["file"]["filename"] == "/dev/fdset/4"
    assert added["backing"] is None  # what its header says is never followed
    assert switched == {"node": "disk-12", "overlay": added["node-name"]}
    (left,) = peer.open  # with which it can be read when another one is put over it
    assert fcntl.fcntl(left, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY
    os.close(left)


async def test_a_disk_that_did_not_come_into_use_is_closed_again(disk: Path) -> None:
    peer = Peer(ROOT, DISK)

    async def use(qmp: Qmp) -> None:
        async with disks.opened(qmp, disk):
            pass

    assert (await session(peer, use))[-2:] == ["blockdev-del", "remove-fd"]
    assert (peer.open, peer.nodes) == ({}, [])


@pytest.mark.parametrize("refuse", ["add-fd", "blockdev-add", "blockdev-snapshot", "query-block"])
async def test_a_refusal_leaves_nothing_open(disk: Path, refuse: str) -> None:
    peer = Peer(ROOT, DISK, refuse=refuse)
    before = descriptors()

    async def use(qmp: Qmp) -> None:
        with pytest.raises(EngineError, match="told to"):
            async with disks.opened(qmp, disk) as following:
                await following.switch()

    await session(peer, use)
    assert (peer.open, peer.nodes) == ({}, [])
    assert descriptors() == before


@pytest.mark.parametrize("devices", [[ROOT], [DISK, DISK], []])
async def test_the_disk_must_be_the_only_one(disk: Path, devices: list[dict[str, Any]]) -> None:
    async def use(qmp: Qmp) -> None:
        with pytest.raises(EngineError, match="writable disks instead of one"):
            async with disks.opened(qmp, disk):
                pass

    assert await session(Peer(*devices), use) == ["query-block"]


async def test_a_disk_that_is_not_there_is_named(tmp_path: Path) -> None:
    async def use(qmp: Qmp) -> None:
        with pytest.raises(EngineError, match=r"gone\.qcow2"):
            async with disks.opened(qmp, tmp_path / "gone.qcow2"):
                pass

    assert await session(Peer(ROOT, DISK), use) == ["query-block"]


async def test_a_guest_is_told_the_sizes_that_are_not_those_it_knows() -> None:
    peer, nowhere = Peer(), Path("/")
    drives = [Drive("root", nowhere), Drive("disk", nowhere, "qcow2", size=3 << 30)]

    async def use(qmp: Qmp) -> None:
        await disks.announce_sizes(qmp, drives)

    assert await session(peer, use) == ["block_resize"]
    assert peer.said == [{"node-name": "drive1", "size": 3 << 30}]


async def test_a_size_that_qemu_refuses() -> None:
    async def use(qmp: Qmp) -> None:
        with pytest.raises(EngineError, match="told to"):
            await disks.announce_sizes(qmp, [Drive("disk", Path("/"), "qcow2", size=1 << 30)])

    assert await session(Peer(refuse="block_resize"), use) == ["block_resize"]


async def test_a_machine_has_so_many_layers_open_at_most(disk: Path) -> None:
    inserted = {"node-name": "disk-12", "ro": False, "backing_file_depth": disks.DEEPEST}
    peer = Peer(ROOT, {"device": "", "qdev": "disk", "inserted": inserted})

    async def use(qmp: Qmp) -> None:
        with pytest.raises(HutchError, match="layers") as caught:
            async with disks.opened(qmp, disk):
                pass
        assert caught.value.code == "no_capacity"

    assert await session(peer, use) == ["query-block"]

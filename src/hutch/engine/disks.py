"""A running machine's writable disk, and how another one takes its place.

Knows QMP's block layer alone: which node the guest writes to is asked of QEMU each time, so that it
is known after a restart of the daemon. The files come open, for QEMU has access to no path of ours.
"""

import contextlib
import os
import secrets
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

from hutch.engine.argv import drive_node
from hutch.engine.base import Drive
from hutch.engine.failures import os_failure
from hutch.engine.qmp import Qmp
from hutch.errors import EngineError, error

DEEPEST: Final = 200
"""How many layers a machine can have open: each takes its part of the stack that a read has."""


class NextDisk:
    """A disk that QEMU has open beside the one in use, until `switch`."""

    def __init__(self, qmp: Qmp, node: str, active: str) -> None:
        self._qmp = qmp
        self._node = node
        self._active = active
        self.in_use = False

    async def switch(self) -> None:
        """Put it over the disk in use, which is only read from now on. Raises EngineError.

        QEMU opens that one's file again, for reading only, with the descriptor that it has for it.
        Of a stopped machine this takes a millisecond: nothing is under way.
        """
        await self._qmp.execute("blockdev-snapshot", {"node": self._active, "overlay": self._node})
        self.in_use = True


@asynccontextmanager
async def opened(qmp: Qmp, path: Path) -> AsyncIterator[NextDisk]:
    """Have QEMU open an empty disk, and close it again unless it came into use.

    Raises EngineError: engine_failed, sandbox_died.
    """
    active = await active_node(qmp)
    number = await _hand_over(qmp, path)
    node = f"disk-{secrets.token_hex(6)}"
    disk = NextDisk(qmp, node, active)
    try:
        # No backing file: the one in its header is never followed, and `switch` gives it one.
        file = {"driver": "file", "filename": f"/dev/fdset/{number}", "discard": "unmap"}
        image = {"driver": "qcow2", "node-name": node, "file": file, "backing": None}
        modes = {"discard": "unmap", "detect-zeroes": "unmap"}
        await qmp.execute("blockdev-add", image | modes)
        try:
            yield disk
        finally:
            if not disk.in_use:
                with contextlib.suppress(EngineError):
                    await qmp.execute("blockdev-del", {"node-name": node})
    finally:
        if disk.in_use:
            # With it goes what the machine could write the disks below with.
            await qmp.sweep()
        else:
            await qmp.remove_fd(number)


async def _hand_over(qmp: Qmp, path: Path) -> int:
    """Hand a disk's file to QEMU for writing, and to stay for reading; return its number."""
    with contextlib.ExitStack() as stack:
        fds = []
        for mode in (os.O_RDWR, os.O_RDONLY):
            try:
                fds.append(os.open(path, mode | os.O_CLOEXEC | os.O_NOFOLLOW))
            except OSError as cause:
                raise os_failure(f"the disk {path} cannot be opened", cause) from cause
            stack.callback(os.close, fds[-1])
        writable, readable = fds
        number = await qmp.add_fd(writable)
        try:
            await qmp.add_fd(readable, beside=number)
        except BaseException:
            await qmp.remove_fd(number)
            raise
        return number


async def announce_sizes(qmp: Qmp, drives: Sequence[Drive]) -> None:
    """Tell a clone's guest the sizes of its drives that may not be those of the frozen machine.

    It learns them by an interrupt, some time after it runs. Raises EngineError.
    """
    for index, drive in enumerate(drives):
        if drive.size is not None:
            # The file has that size already; it is the guest that remembers another.
            resized = {"node-name": drive_node(index), "size": drive.size}
            await qmp.execute("block_resize", resized)


async def active_node(qmp: Qmp) -> str:
    """Return the name of the one node that the guest can write to. Raises EngineError."""
    devices = await qmp.execute("query-block")
    try:
        found = [
            (
                str(device["inserted"]["node-name"]),
                int(device["inserted"].get("backing_file_depth", 0)),
            )
            for device in devices
            if "inserted" in device and not device["inserted"]["ro"]
        ]
    except (KeyError, TypeError, ValueError, AttributeError) as cause:
        raise error("engine_failed", "QEMU answered query-block with nonsense") from cause
    if len(found) != 1:
        raise error("engine_failed", f"the VM has {len(found)} writable disks instead of one")
    ((name, depth),) = found
    if depth >= DEEPEST:
        raise error(
            "no_capacity",
            f"the VM's disk has had {depth} layers since it started, one for each moment taken",
            hint="let it begin anew with `hutch restart`",
        )
    return name

"""From a sandbox on record to a VM whose agent answers and whose disks are mounted.

Boots under a watchdog: a VM that makes no progress is killed and tried again, then on the board
that never hung. Whatever was made is gone when a boot fails or is cancelled. It must not know of
states, nor of the programs that run later.
"""

import asyncio
import contextlib
import hashlib
import logging
import os
import secrets
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, cast

from hutch.engine.base import (
    BootFiles,
    Drive,
    Machine,
    MachineSpec,
    MachineType,
    Verdict,
)
from hutch.errors import HutchError, error
from hutch.guest.base import Guest, Identity
from hutch.images.base import RootFs, no_report
from hutch.models import SandboxInfo
from hutch.service.parts import Parts
from hutch.state.base import SandboxRow
from hutch.tasks import in_thread, settle_in_thread

log = logging.getLogger(__name__)

ROOT_SERIAL: Final = "hutch-root"
DISK_SERIAL: Final = "hutch-disk"
STALL_SHARE: Final = 0.25
"""A boot without a sign of life for this share of the boot timeout is tried again."""

_CONSOLE_TAIL: Final = 20
_END_GRACE: Final = 5.0
"""Seconds for a VM whose port has closed to be gone, and its end to be known."""
_LAST_WORDS_BYTES: Final = 16 << 10

Record = Callable[[Mapping[str, Any] | None], Awaitable[object]]


@dataclass(frozen=True, slots=True)
class Booted:
    """A VM ready for its first program."""

    machine: Machine
    guest: Guest
    kernel: str
    verdict: Verdict
    seconds: float


class _Stalled(Exception):
    """A boot made no progress, or its VM ended: worth another attempt."""


class _Late(Exception):
    """The time for a boot was over before its VM could be asked anything."""


class Booter:
    """Boots the machines of one host."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    async def boot(self, row: SandboxRow, record: Record) -> Booted:
        """Boot a sandbox's VM up to the point where programs can run.

        `record` puts the machine on record as soon as it exists, and takes it off again. Raises
        boot_failed (with the console's last lines), image_not_found, kernel_*, engine_*, disk_full,
        tool_missing.
        """
        parts, info = self._parts, row.info
        kernel = await parts.kernels.ensure(info.kernel, no_report)
        rootfs = await in_thread(parts.images.rootfs_path, info.image_id)
        if rootfs is None:
            raise error(
                "image_not_found",
                f"the image {info.image} of sandbox {info.name} is gone",
                hint=f"get it back with `hutch image pull {info.image}`",
            )
        files = BootFiles(kernel.vmlinux, kernel.initramfs)
        verdict = await parts.engine.probe(files)
        disk = await self._prepare_disk(info)
        drives = [
            Drive(ROOT_SERIAL, rootfs.path, read_only=True),
            Drive(DISK_SERIAL, parts.places.disk(info.id), "qcow2", backing=disk),
        ]
        deadline = time.monotonic() + parts.settings.boot_timeout
        boards, why = _boards(parts.settings.machine), ""
        for number, board in enumerate(boards, 1):
            spec = self._spec(row, files, drives, board, verdict)
            began = time.monotonic()
            try:
                machine, guest = await self._attempt(spec, row, rootfs, record, deadline)
            except _Late:
                raise await self._failed(info, why or "no time was left to boot") from None
            except _Stalled as cause:
                why = str(cause)
                # The board was not at fault if there is no time left to try it again.
                if number == len(boards) or time.monotonic() >= deadline:
                    raise await self._failed(info, str(cause)) from cause
                log.warning("boot %d of %s (%s): %s", number, info.name, board, cause)
                continue
            return Booted(machine, guest, kernel.name, verdict, time.monotonic() - began)
        raise AssertionError("there is no board to boot on")

    async def _prepare_disk(self, info: SandboxInfo) -> Path:
        """Make the writable disk if it is not there yet; returns the base behind it."""
        parts = self._parts
        base = await parts.base_disk(parts.settings.home, info.disk)
        path = parts.places.disk(info.id)
        if not await in_thread(path.exists):
            if info.started_at is not None:
                raise error(
                    "engine_failed",
                    f"the disk of sandbox {info.name} is gone: {path}",
                    hint=f"remove the sandbox with `hutch rm {info.name}`",
                )
            await settle_in_thread(path.parent.mkdir, mode=0o700, parents=True, exist_ok=True)
            await settle_in_thread(parts.engine.create_disk, path, info.disk, base)
        return base

    def _spec(
        self,
        row: SandboxRow,
        files: BootFiles,
        drives: list[Drive],
        board: MachineType,
        verdict: Verdict,
    ) -> MachineSpec:
        info, settings = row.info, self._parts.settings
        own_uid = os.geteuid() == 0 and settings.jail
        return MachineSpec(
            id=info.id,
            boot=files,
            cpus=info.cpus,
            memory=info.memory,
            drives=drives,
            directory=self._parts.places.machine(info.id),
            console_log=self._parts.places.console(info.id),
            machine=board,
            accelerator=verdict.accelerator,
            tsc_khz=verdict.tsc_khz,
            uid=settings.uid_base + row.slot if own_uid else None,
        )

    async def _attempt(
        self,
        spec: MachineSpec,
        row: SandboxRow,
        rootfs: RootFs,
        record: Record,
        deadline: float,
    ) -> tuple[Machine, Guest]:
        async with contextlib.AsyncExitStack() as undo:
            undo.push_async_callback(self._remove_directory, spec.directory)
            await settle_in_thread(spec.directory.mkdir, mode=0o700, parents=True, exist_ok=True)
            machine = await self._parts.engine.boot(spec)
            undo.push_async_callback(record, None)
            undo.push_async_callback(machine.kill)
            await record(machine.record.to_json())
            guest = await self._reach(machine, deadline)
            undo.push_async_callback(guest.close)
            try:
                await _set_up(guest, row.info, rootfs, row.generation)
            except HutchError as cause:
                if cause.code in ("sandbox_died", "guest_timeout", "guest_protocol"):
                    raise _Stalled(cause.message) from cause
                raise
            undo.pop_all()
            return machine, guest

    async def _remove_directory(self, directory: Path) -> None:
        await self._parts.engine.discard(directory)
        await in_thread(_remove_tree, directory)

    async def _reach(self, machine: Machine, deadline: float) -> Guest:
        """Connect to the agent, watching for signs of life. Raises _Stalled."""
        limit = deadline - time.monotonic()
        if limit <= 0:
            raise _Late
        watchdog = _Watchdog(machine, min(limit, self._parts.settings.boot_timeout * STALL_SHARE))
        try:
            async with asyncio.TaskGroup() as group:
                watching = group.create_task(watchdog.run())
                connecting = self._parts.connect_guest(machine.agent_socket, timeout=limit)
                guest = await connecting
                watching.cancel()
        except BaseExceptionGroup as failures:
            # Not except*: Python before 3.11.4 puts what its clause raises into another group.
            ours, others = failures.split((_Stalled, HutchError))
            if ours is None or others is not None:
                raise
            raise _Stalled(await _why(machine, _first(ours))) from failures
        return guest

    async def _failed(self, info: SandboxInfo, why: str) -> HutchError:
        lines = await in_thread(_last_lines, self._parts.places.console(info.id))
        return error(
            "boot_failed",
            f"sandbox {info.name} did not boot: {why}",
            hint=f"read its console with `hutch logs --boot {info.name}`, and see `hutch doctor`",
            details={"console": lines},
        )


class _Watchdog:
    """Ends a boot whose VM has ended or shown no sign of life for a while."""

    def __init__(self, machine: Machine, patience: float) -> None:
        self._machine = machine
        self._patience = patience

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(self._watch_end())
            group.create_task(self._watch_console())

    async def _watch_end(self) -> None:
        end = await self._machine.wait()
        raise _Stalled(f"the VM ended ({end.kind}) {end.message}".rstrip())

    async def _watch_console(self) -> None:
        source = cast(AsyncGenerator[int, None], self._machine.console_progress())
        try:
            async with contextlib.aclosing(source) as progress:
                async with asyncio.timeout(self._patience) as limit:
                    async for _ in progress:
                        loop = asyncio.get_running_loop()
                        limit.reschedule(loop.time() + self._patience)
        except TimeoutError:
            raise _Stalled(
                f"neither agent nor console gave a sign of life for {self._patience:g} s"
            ) from None


async def _why(machine: Machine, failure: BaseException) -> str:
    """Return why the agent was not reached: its port closes when the VM ends, which says more."""
    if isinstance(failure, HutchError):
        if failure.code == "sandbox_died":
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_END_GRACE):
                    end = await machine.wait()
                return f"the VM ended ({end.kind}) {end.message}".rstrip()
        return failure.message
    return str(failure)


def _first(failures: BaseExceptionGroup[BaseException]) -> BaseException:
    first = failures.exceptions[0]
    return _first(first) if isinstance(first, BaseExceptionGroup) else first


def _boards(setting: str) -> list[MachineType]:
    """Return the boards to try: the fast one twice, then the one that never hung."""
    if setting == "auto":
        return [MachineType.MICROVM, MachineType.MICROVM, MachineType.Q35]
    try:
        return [MachineType(setting)] * 2
    except ValueError:
        raise error(
            "bad_setting",
            f"{setting!r} is no machine",
            hint="use auto, microvm or q35 for the setting machine",
        ) from None


async def _set_up(guest: Guest, info: SandboxInfo, rootfs: RootFs, generation: int) -> None:
    await guest.mount_root(ROOT_SERIAL, rootfs.fstype)
    await guest.mount_overlay(DISK_SERIAL, volumes=info.volumes)
    await guest.identify(
        Identity(
            hostname=info.hostname,
            machine_id=hashlib.sha256(info.id.encode()).hexdigest()[:32],
            entropy=secrets.token_bytes(64),
            nonce=secrets.token_bytes(16),
            generation=generation,
            hosts=[("127.0.1.1", info.hostname)],
        )
    )
    if info.workdir != "/":
        # As container runtimes do: an image may name a working directory that it does not have.
        await guest.files.mkdir(info.workdir, parents=True)


def _last_lines(console: Path) -> list[str]:
    try:
        with open(console, "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - _LAST_WORDS_BYTES))
            text = file.read().decode(errors="replace")
    except OSError:
        return []
    return [line.rstrip("\r") for line in text.splitlines()[-_CONSOLE_TAIL:]]


def _remove_tree(directory: Path) -> None:
    for path in directory.glob("*"):
        path.unlink(missing_ok=True)
    with contextlib.suppress(FileNotFoundError):
        directory.rmdir()

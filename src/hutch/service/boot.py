"""From a description of a VM to one whose agent answers and that is set up.

Boots under a watchdog: a VM that makes no progress is killed and tried again, then on the board
that never hung. Whatever was made is gone when a boot fails or is cancelled. It must not know what
the VM is for: sandboxes and templates both come from here.
"""

import asyncio
import contextlib
import dataclasses
import logging
import os
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, cast

from hutch.engine.base import Machine, MachineSpec, MachineType
from hutch.errors import HutchError, error
from hutch.guest.base import Guest
from hutch.service.capacity import Need, boot_need, clone_need
from hutch.service.parts import Parts
from hutch.service.plugs import Plug
from hutch.service.remains import clear_away
from hutch.tasks import give_way, in_thread, settle, settle_in_thread

log = logging.getLogger(__name__)

STALL_SHARE: Final = 0.25
"""A boot without a sign of life for this share of the boot timeout is tried again."""

_CONSOLE_TAIL: Final = 20
_END_GRACE: Final = 5.0
"""Seconds for a VM whose port has closed to be gone, and its end to be known."""
_LAST_WORDS_BYTES: Final = 16 << 10
_LINE_LENGTH: Final = 300

Record = Callable[[Mapping[str, Any] | None], Awaitable[object]]
"""Puts a machine on record as soon as it exists, and takes it off again (None)."""


class Stalled(Exception):
    """A boot made no progress, or its VM ended: worth another attempt."""


class Late(Exception):
    """The time for a boot was over before its VM could be asked anything."""


@dataclass(frozen=True, slots=True)
class Order:
    """A VM to make.

    `subject` names it in messages; `plug` says how it is attached to the network before it is
    started; `start` begins it, `set_up` readies what answers in it; `hint` is where to look when it
    does not come up. A clone says what `load` is: the bytes of frozen memory that must be read in
    for it (None: it boots).
    """

    subject: str
    spec: MachineSpec
    plug: Plug
    start: Callable[[MachineSpec], Awaitable[Machine]]
    set_up: Callable[[Guest], Awaitable[None]]
    record: Record
    hint: str
    load: int | None = None

    @property
    def need(self) -> Need:
        """What of the host it takes until it is up."""
        if self.load is None:
            return boot_need(self.spec.id, self.subject, self.spec.memory)
        return clone_need(self.spec.id, self.subject, self.spec.memory, self.load)


class Boots:
    """Carries out orders for one host's VMs."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    async def boot(self, order: Order) -> tuple[Machine, Guest]:
        """Boot on the boards that the settings name, one after the other, until one comes up.

        Raises boot_failed (with the console's last lines), no_capacity, engine_*, disk_full, and
        what `set_up` raises.
        """
        deadline = time.monotonic() + self._parts.settings.boot_timeout
        choices, why = boards(self._parts.settings.machine), ""
        for number, board in enumerate(choices, 1):
            attempt = dataclasses.replace(
                order, spec=dataclasses.replace(order.spec, machine=board)
            )
            try:
                return await self.attempt(attempt, deadline)
            except Late:
                raise await self._failed(order, why or "no time was left to boot") from None
            except Stalled as cause:
                why = str(cause)
                # The board was not at fault if there is no time left to try it again.
                if number == len(choices) or time.monotonic() >= deadline:
                    raise await self._failed(order, why) from cause
                log.warning("boot %d of %s (%s): %s", number, order.subject, board, cause)
        raise AssertionError("there is no board to boot on")

    async def attempt(self, order: Order, deadline: float | None = None) -> tuple[Machine, Guest]:
        """Start the VM once and set it up. Raises Stalled, Late, and what `boot` raises.

        Without a deadline it has a clone's time, from when it runs.
        """
        directory = order.spec.directory
        async with (
            self._parts.capacity.admit(order.need),
            contextlib.AsyncExitStack() as undo,
        ):
            undo.push_async_callback(self.remove_directory, directory)
            await settle_in_thread(directory.mkdir, mode=0o700, parents=True, exist_ok=True)
            async with self._parts.plugs.attached(order.spec.id, order.plug) as tap:
                machine = await order.start(dataclasses.replace(order.spec, tap=tap))
            undo.push_async_callback(order.record, None)
            undo.push_async_callback(lambda: settle(machine.kill()))
            if deadline is None:
                deadline = time.monotonic() + self._parts.settings.boot_timeout * STALL_SHARE
            guest = await self._reach(machine, deadline, order.record)
            undo.push_async_callback(guest.close)
            try:
                await order.set_up(guest)
            except HutchError as cause:
                if cause.code in ("sandbox_died", "guest_timeout", "guest_protocol"):
                    raise Stalled(cause.message) from cause
                raise
            undo.pop_all()
            return machine, guest

    async def undo(self, machine: Machine, guest: Guest, record: Record) -> None:
        """End a VM that is up, and remove what there is of it."""
        await guest.close()
        await machine.kill()
        await record(None)
        await self.remove_directory(machine.record.directory)

    async def remove_directory(self, directory: Path) -> None:
        """Remove a VM's directory and its network, and end what still serves its sockets."""
        await settle(clear_away(self._parts, directory))

    async def _reach(self, machine: Machine, deadline: float, record: Record) -> Guest:
        """Put the machine on record, and connect to its agent, watching for signs of life.

        Nothing is asked of the guest before it is on record. Raises Stalled, Late, and what
        `record` raises.
        """
        limit = deadline - time.monotonic()
        if limit <= 0:
            raise Late
        watchdog = _Watchdog(machine, min(limit, self._parts.settings.boot_timeout * STALL_SHARE))
        recorded, guest = _Recorded(record, machine), None
        try:
            async with asyncio.TaskGroup() as group:
                watching = group.create_task(watchdog.run())
                recording = group.create_task(recorded.run())
                guest = await self._parts.connect_guest(machine.agent_socket, timeout=limit)
                await recording
                watching.cancel()
        except BaseException as cause:
            if guest is not None:
                await guest.close()
            if recorded.failure is not None and not isinstance(cause, asyncio.CancelledError):
                raise recorded.failure from None
            # Not except*: Python before 3.11.4 puts what its clause raises into another group.
            if not isinstance(cause, BaseExceptionGroup):
                raise
            ours, others = cause.split((Stalled, HutchError))
            if ours is None or others is not None:
                raise
            raise Stalled(await _why(machine, _first(ours))) from cause
        return guest

    async def _failed(self, order: Order, why: str) -> HutchError:
        lines = await in_thread(_last_lines, order.spec.console_log)
        return error(
            "boot_failed",
            f"{order.subject} did not boot: {why}",
            hint=order.hint,
            details={"console": lines},
        )


class _Recorded:
    """Puts a machine on record, and keeps apart why that has failed: the boot is not at fault."""

    def __init__(self, record: Record, machine: Machine) -> None:
        self._record = record
        self._machine = machine
        self.failure: Exception | None = None

    async def run(self) -> None:
        await give_way()  # to the greeting
        try:
            await self._record(self._machine.record.to_json())
        except Exception as cause:
            self.failure = cause
            raise


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
        raise Stalled(f"the VM ended ({end.kind}) {end.message}".rstrip())

    async def _watch_console(self) -> None:
        source = cast(AsyncGenerator[int, None], self._machine.console_progress())
        try:
            async with contextlib.aclosing(source) as progress:
                async with asyncio.timeout(self._patience) as limit:
                    async for _ in progress:
                        loop = asyncio.get_running_loop()
                        limit.reschedule(loop.time() + self._patience)
        except TimeoutError:
            raise Stalled(
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


def boards(setting: str) -> Sequence[MachineType]:
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


def _last_lines(console: Path) -> list[str]:
    try:
        with open(console, "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - _LAST_WORDS_BYTES))
            text = file.read().decode(errors="replace")
    except OSError:
        return []
    # The guest's own bytes, on their way to somebody's terminal: nothing that a terminal obeys.
    shown = ("".join(filter(str.isprintable, line)) for line in text.splitlines())
    return [line[:_LINE_LENGTH] for line in shown if line][-_CONSOLE_TAIL:]

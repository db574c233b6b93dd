"""One running sandbox: its VM, the connection to its agent, its programs, and how it ends.

Made by `lives.py` once the VM runs, and gone with it. It ends its VM when the main process ends,
when its time is up, when the guest cannot be reached any more, or when told to; it never touches
rows or directories.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from typing import Final

from hutch.engine.base import ExitKind, Machine, MachineExit
from hutch.errors import HutchError, error
from hutch.guest.base import Guest
from hutch.models import (
    ExecOutcome,
    ExitStatus,
    SandboxInfo,
    StopReason,
    TtySize,
    parse_timestamp,
)
from hutch.service.activity import Activity
from hutch.service.connection import Connection
from hutch.service.exec import MAIN, SandboxExecs
from hutch.service.lifecycle import wrong_state
from hutch.service.output import Pump
from hutch.service.parts import Parts
from hutch.service.spec import signal_number
from hutch.tasks import Scope

log = logging.getLogger(__name__)

GUEST_TIMEOUT: Final = 10.0
SYNC_TIMEOUT: Final = 30.0
POWER_OFF_SLACK: Final = 5.0
"""Seconds that the guest has to sync and power off once its programs have ended."""

BUTTON_SECONDS: Final = 2.0
DRAIN_SECONDS: Final = 5.0
CLOCK_SECONDS: Final = 60.0
"""How often the guest's clock is compared with the host's."""

OOM_PAUSE: Final = 1.0
"""At most one `sandbox.oom` event in that many seconds: a guest may report any number."""

SIGKILL: Final = 9
SIGTERM: Final = 15
TIMEOUT_CODE: Final = 124

_OURS: Final = frozenset(
    {
        StopReason.EXITED,
        StopReason.STOPPED,
        StopReason.KILLED,
        StopReason.TIMEOUT,
        StopReason.IDLE,
        StopReason.OOM,
    }
)
_REASONS: Final = {
    ExitKind.POWEROFF: StopReason.POWEROFF,
    ExitKind.REBOOT: StopReason.REBOOT,
    ExitKind.PANIC: StopReason.PANIC,
    ExitKind.KILLED: StopReason.ENGINE,
    ExitKind.CRASHED: StopReason.ENGINE,
}


class Sandbox:
    """A sandbox whose VM runs, or is paused. `wait_end` tells when and how that is over."""

    def __init__(
        self,
        parts: Parts,
        info: Callable[[], SandboxInfo],
        machine: Machine,
        *,
        detached: bool,
        stopping: Callable[[], None],
        idle: Callable[[], None],
        found: bool = False,
    ) -> None:
        """`info` returns the sandbox as it is now; `stopping` is called when its end begins.

        `idle` is called each time when nobody has used it for its idle timeout.

        `detached` tells whether the main process may lose output while nobody is there. A machine
        that was `found` after a restart may have been left with its workloads frozen.
        """
        self.machine = machine
        self._info = info
        self._parts = parts
        self._detached = detached
        self._stopping = stopping
        self._idle = idle
        self._maybe_frozen = found
        self._fresh: Guest | None = None
        self._scope = Scope(f"sandbox {info().name}")
        self._ending: asyncio.Task[None] | None = None
        self._reason: StopReason | None = None
        self._message: str | None = None
        self._last_oom = 0.0
        self.activity = Activity()
        self.sample: tuple[float, float] | None = None
        """CPU seconds and monotonic time at the last look: what a percentage is made from."""
        self.connection = Connection(
            f"sandbox {info().name}",
            machine.agent_socket,
            parts.connect_guest,
            timeout=GUEST_TIMEOUT,
            give_up=self._give_up,
        )
        self.execs = SandboxExecs(
            info,
            self.connection,
            self._scope,
            parts.settings,
            parts.places.logs(info().id),
            self._emit,
            self.last_words,
            self.activity,
        )

    # ---- beginning

    async def begin(self, guest: Guest, size: TtySize | None) -> None:
        """Start the main process, if there is one, on a VM that was just booted.

        Its output does not flow before `supervise`. Raises command_not_found and the like.
        """
        self.connection.use(guest)
        self._fresh = guest
        if self._info().idle:
            self.execs.begin()
        else:
            await self.execs.start_main(guest, size=size, detached=self._detached)

    def supervise(self) -> None:
        """Watch over the sandbox from now on."""
        self.execs.run_main()
        self._scope.start("connection", self.connection.run(self._connected))
        self._scope.start("clock", self._keep_clock())
        if self.execs.main is not None:
            self._scope.start("main ends", self._watch_main(self.execs.main))
        if (timeout_at := self._info().timeout_at) is not None:
            self._scope.start("timeout", self._watch_time(parse_timestamp(timeout_at)))
        if (limit := self._info().idle_timeout) > 0:
            self.activity.touch()
            self._scope.start("idle", self._watch_use(limit))

    async def _connected(self, guest: Guest) -> None:
        """Take up what the guest runs, if this is not the connection it was booted with."""
        if not self.connection.held:
            await self.thaw()
        if guest is not self._fresh:
            await self._resume(guest)
        async for event in guest.events():
            if event.kind == "oom" and time.monotonic() - self._last_oom > OOM_PAUSE:
                self._last_oom = time.monotonic()
                self._emit("sandbox.oom", process=str(event.fields.get("process", ""))[:256])

    async def _resume(self, guest: Guest) -> None:
        known = self.execs.main
        await self.execs.resume(guest, detached=self._detached)
        main = self.execs.main
        if main is not None and known is None:
            self._scope.start("main ends", self._watch_main(main))
        elif main is None and not self._info().idle:
            self._end_soon(StopReason.ENGINE, "its main process was never started")

    def _emit(self, kind: str, **fields: object) -> None:
        info = self._info()
        self._parts.events.emit(kind, info.id, info.name, **fields)

    # ---- pausing

    async def pause(self) -> None:
        """Stop its CPUs; from now on nobody talks to its guest. Idempotent.

        Raises engine_failed, sandbox_died; wrong_state when its end has begun. It is to be resumed
        then.
        """
        self.connection.hold()
        await self.machine.pause()
        if self.ending:
            raise wrong_state(self._info(), "running")

    async def resume(self) -> None:
        """Let its CPUs go on, and put its clock right. Idempotent.

        Raises engine_failed, sandbox_died.
        """
        await self.run_on()
        await self.keep_clock()

    async def run_on(self) -> None:
        """Let its CPUs go on; `keep_clock` is to follow. Raises engine_failed, sandbox_died."""
        await self.machine.resume()
        self.connection.release()
        self.activity.touch()

    async def keep_clock(self) -> None:
        """Put its clock right if need be.

        A guest that does not answer is no failure: the connection's own task sees to it.
        """
        with contextlib.suppress(HutchError):
            guest = await self.connection.get()  # which waits while it is paused
            await guest.keep_clock()

    async def still(self) -> None:
        """Bring programs and disk to rest, then stop its CPUs: nothing changes until `go_on`.

        What the guest has to write is on its disk then, so that the disk is of use also without
        the memory. Raises guest_timeout, sandbox_died, engine_failed; it is to go on then.
        """
        guest = await self.connection.get()
        await self._sync(guest, SYNC_TIMEOUT)  # before they are frozen, because it may take a while
        self._maybe_frozen = True
        await guest.freeze()
        await self._sync(guest, GUEST_TIMEOUT)
        await self.pause()

    async def _sync(self, guest: Guest, limit: float) -> None:
        name = self._info().name
        try:
            async with asyncio.timeout(limit):
                await guest.sync()
        except TimeoutError:
            if await self.machine.paused():
                # QEMU stops a VM that it cannot write for.
                raise error(
                    "disk_full",
                    f"the VM of sandbox {name} stands still: its disk has no room on the host",
                    hint=f"free some space, then let it go on with `hutch resume {name}`",
                ) from None
            raise error(
                "guest_timeout",
                f"the disk of sandbox {name} has not come to rest for {limit:g} s",
            ) from None

    async def go_on(self) -> None:
        """Undo `still`, whatever has come of it. Never raises: one that died is told by its end."""
        try:
            await self.resume()
            await self.thaw()
        except HutchError as failure:
            log.warning("sandbox %s does not go on: %s", self._info().name, failure)
            self.connection.release()

    async def freeze(self) -> None:
        """Bring its programs to rest. Raises guest_timeout; `thaw` is to follow in any case."""
        guest = await self.connection.get()
        self._maybe_frozen = True
        await guest.freeze()

    async def thaw(self) -> None:
        """Let programs go on that may be frozen, and put the clock right before."""
        if self._maybe_frozen:
            guest = await self.connection.get()
            await guest.keep_clock()
            await guest.thaw()
            self._maybe_frozen = False

    # ---- reasons to end

    async def _watch_main(self, main: Pump) -> None:
        await main.ended.wait()
        if (outcome := main.outcome) is not None:
            self._emit("exec.exited", exec_id=MAIN, exit_code=outcome.exit_code, oom=outcome.oom)
            reason = StopReason.OOM if outcome.oom else StopReason.EXITED
            self._end_soon(reason, None)

    async def _keep_clock(self) -> None:
        """Keep the guest's clock in step: it has no NTP, and its rate is but measured."""
        while True:
            await asyncio.sleep(CLOCK_SECONDS)
            await self.keep_clock()

    async def _watch_time(self, timeout_at: float) -> None:
        await asyncio.sleep(max(0.0, timeout_at - time.time()))
        self._end_soon(StopReason.TIMEOUT, None)

    async def _watch_use(self, limit: float) -> None:
        while True:
            await self.connection.until_released()
            if self.connection.ended:  # while it was held: it is parked, and this is over
                return
            await self.activity.until_idle(limit)
            if not self.connection.held:
                self._idle()
                # What is done about it may fail: then again, after the same time.
                self.activity.touch()

    def _give_up(self, failure: HutchError) -> None:
        self._end_soon(StopReason.ENGINE, f"the guest was given up: {failure.message}")

    def _end_soon(self, reason: StopReason, message: str | None) -> None:
        grace = {StopReason.TIMEOUT: self._parts.settings.stop_timeout}.get(reason, 0.0)
        self.end(reason, grace=grace, message=message)

    # ---- ending

    @property
    def ending(self) -> bool:
        """Whether its end has begun."""
        return self._reason is not None

    def end(
        self,
        reason: StopReason,
        *,
        grace: float,
        signal: int | None = None,
        message: str | None = None,
    ) -> None:
        """Begin to end the VM, once: the agent, then the power button, then the hard way.

        One that is done and will be removed is ended the hard way at once. `grace` is how many
        seconds programs have between the signal and their kill. The first reason counts. `wait_end`
        tells when it is over.
        """
        if self._reason is None:
            number = self._stop_signal() if signal is None else signal
            self._reason, self._message = reason, message
            self._stopping()
            self._ending = self._scope.start("end", self._power_off(number, grace))

    def _stop_signal(self) -> int:
        try:
            return signal_number(self._info().stop_signal)
        except HutchError:  # whatever is on record, it can be stopped
            return SIGTERM

    async def _power_off(self, signal: int, grace: float) -> None:
        if self._info().auto_remove and self.execs.done:
            # Its disk goes with it, so there is nothing to bring to rest.
            self.connection.last = True
            await self.machine.kill()
            return
        with contextlib.suppress(HutchError, TimeoutError):
            async with asyncio.timeout(grace + POWER_OFF_SLACK):
                if self.connection.held:
                    await self.resume()
                guest = await self.connection.get()
                # Else the main process might end unheard, and its exit code with it.
                await self.execs.until_resumed()
                self.connection.last = True
                await guest.shutdown(signal=signal, grace=grace)
                await self.machine.wait()
                return
        log.warning("%s does not power off when asked to", self._info().name)
        with contextlib.suppress(HutchError, TimeoutError):
            async with asyncio.timeout(BUTTON_SECONDS):
                await self.machine.powerdown()
                await self.machine.wait()
                return
        if self._reason is StopReason.STOPPED:
            self._reason, self._message = StopReason.KILLED, "it did not stop in time"
        await self.machine.kill()

    async def kill(self, message: str | None = None) -> None:
        """End the VM now, whatever is under way; returns when its process is gone."""
        if self._reason is None or self._reason is StopReason.STOPPED:
            self._reason, self._message = StopReason.KILLED, message
        self._stopping()
        self.connection.last = True
        await self.machine.kill()

    async def wait_end(self) -> ExitStatus:
        """Return how the run ended, once the VM is gone and the last output is in the logs."""
        end = await self.machine.wait()
        self.connection.end(self._death(end))
        main = self.execs.main
        if main is not None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(DRAIN_SECONDS):
                    await main.ended.wait()
        return self._exit(end, main.outcome if main else None)

    def _exit(self, end: MachineExit, outcome: ExecOutcome | None) -> ExitStatus:
        code = None if outcome is None else outcome.exit_code
        if self._reason is None and outcome is not None:
            reason = StopReason.OOM if outcome.oom else StopReason.EXITED
            return ExitStatus(reason, code, None)
        reason = self._reason or _REASONS[end.kind]
        if reason is StopReason.TIMEOUT:
            code = TIMEOUT_CODE
        elif reason is StopReason.KILLED or (
            code is None and reason is StopReason.STOPPED and not self._info().idle
        ):
            code = 128 + SIGKILL
        return ExitStatus(reason, code, self._message or end.message or None)

    def _death(self, end: MachineExit) -> HutchError:
        name = self._info().name
        if self._reason in _OURS:
            return error("sandbox_died", f"sandbox {name} was stopped ({self._reason})")
        words = f": {end.message}" if end.message else ""
        return error(
            "sandbox_died",
            f"the VM of sandbox {name} ended ({end.kind}){words}",
            hint=f"read its console with `hutch logs --boot {name}`",
        )

    def last_words(self, failure: HutchError) -> ExecOutcome | None:
        """Return how a program ended whose sandbox was stopped under it; None: `failure` stands."""
        if failure.code != "sandbox_died" or self._reason not in _OURS:
            return None
        if self._reason is StopReason.TIMEOUT:
            return ExecOutcome(TIMEOUT_CODE, signal=SIGKILL, timed_out=True)
        return ExecOutcome(128 + SIGKILL, signal=SIGKILL)

    # ---- letting go

    async def close(self) -> None:
        """Stop to watch over it and hang up. The VM, if it still runs, goes on."""
        await self.connection.close()
        await self._scope.close()
        await self.execs.close()
        await self.machine.release()

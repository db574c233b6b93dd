"""A client's attachment to a program, in its two kinds, as the API hands it out.

An `AttachedSession` relays between one client and the guest, with credit end to end; a
`LoggedSession` is one of the clients of a program whose output also goes to a log. Neither knows
who holds the programs: that is a `Keeper` (exec.py).
"""

from collections.abc import AsyncIterator, Mapping
from typing import Protocol

from hutch.errors import HutchError
from hutch.guest.base import Channel, ExecResult
from hutch.models import ExecInfo, ExecOutcome, TtySize
from hutch.service.output import Follower, Pump, Tap, outcome_of
from hutch.service.spec import check_terminal, signal_number
from hutch.service.values import SessionEvent


class Keeper(Protocol):
    """What a session asks of whoever holds the programs of its sandbox."""

    def last_words(self, failure: HutchError) -> ExecOutcome | None:
        """Return how a program ended that was lost with its sandbox; None: `failure` stands."""

    def note_exit(self, info: ExecInfo, outcome: ExecOutcome) -> None:
        """Take note that a program has ended."""

    def leave(self, exec_id: str, *, ended: bool, consumed: bool) -> None:
        """Take note that the client of an attached program is gone."""

    async def keep(self, info: ExecInfo, follower: Follower) -> None:
        """Let an attached program go on by itself, its output from now on in a log."""

    async def cancel(self, exec_id: str) -> None:
        """Kill everything that a program started."""


class _Input:
    """The half of a session that goes to the program; the same for both kinds."""

    info: ExecInfo
    _follower: Follower

    async def write(self, data: bytes) -> None:
        """Send stdin; returns when the guest has room for more."""
        await self._follower.write(data)

    async def close_stdin(self) -> None:
        """End the program's stdin."""
        await self._follower.close_stdin()

    async def signal(self, name: str) -> None:
        """Send a signal to the process group. Raises bad_request for an unknown one."""
        await self._follower.signal(signal_number(name))

    async def resize(self, size: TtySize) -> None:
        """Tell the terminal's new size."""
        check_terminal(size)
        await self._follower.resize(size.rows, size.cols)


class AttachedSession(_Input):
    """The client of an attached exec."""

    def __init__(self, execs: Keeper, info: ExecInfo, follower: Follower) -> None:
        self.info = info
        self.offsets: Mapping[int, int] = follower.received
        self._execs = execs
        self._follower = follower
        self._ended = False
        self._taken = False
        self._closed = False

    async def __aiter__(self) -> AsyncIterator[SessionEvent]:
        while not self._ended:
            try:
                event = await self._follower.next()
            except HutchError as failure:
                self._taken = failure.code == "exec_taken"
                self._ended = not self._taken
                outcome = self._execs.last_words(failure)
                if outcome is None:
                    raise
                yield outcome
                return
            if isinstance(event, ExecResult):
                self._ended = True
                outcome = outcome_of(event)
                self._execs.note_exit(self.info, outcome)
                yield outcome
            else:
                yield event

    def ack(self, channel: Channel, size: int) -> None:
        """Say that the client has consumed `size` more bytes of a channel."""
        self._follower.ack(channel, size)

    async def cancel(self) -> None:
        """Kill everything that the exec started."""
        await self._execs.cancel(self.info.id)

    async def close(self, *, detach: bool) -> None:
        """End the attachment; without `detach` the program gets its grace, then is cancelled."""
        if self._closed:
            return
        self._closed = True
        if detach and not self._ended and not self._taken:
            await self._execs.keep(self.info, self._follower)
            return
        await self._follower.close()
        if self._taken:
            return
        self._execs.leave(self.info.id, ended=self._ended, consumed=self._follower.consumed)


class LoggedSession(_Input):
    """One of the clients of a logged program."""

    def __init__(self, execs: Keeper, info: ExecInfo, pump: Pump, tap: Tap) -> None:
        self.info = info
        self.offsets: Mapping[int, int] = tap.offsets
        self._execs = execs
        self._pump = pump
        self._follower = pump.follower
        self._tap = tap

    async def __aiter__(self) -> AsyncIterator[SessionEvent]:
        event: SessionEvent | None = None
        while not isinstance(event, ExecOutcome):
            try:
                event = await self._tap.next()
            except HutchError as failure:
                event = self._execs.last_words(failure)
                if event is None:
                    raise
            yield event

    def ack(self, channel: Channel, size: int) -> None:
        """Say that the client has consumed `size` more bytes of a channel."""
        self._tap.ack(channel, size)

    async def cancel(self) -> None:
        """Kill everything that the program started."""
        await self._execs.cancel(self.info.id)

    async def close(self, *, detach: bool) -> None:
        """End the attachment; a logged program goes on either way."""
        await self._pump.detach(self._tap)

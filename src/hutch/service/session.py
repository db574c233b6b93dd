"""A client's attachment to a program, in its three kinds, as the API hands it out.

An `AttachedSession` relays between one client and the guest, with credit end to end; a
`LoggedSession` is one of the clients of a program whose output also goes to a log; a
`RecordedSession` is for one that comes back to a main process that has ended. None knows who holds
the programs: that is a `Keeper` (exec.py).
"""

import asyncio
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Protocol

from hutch.errors import HutchError
from hutch.guest.base import Channel, ExecResult, Output, OutputGap
from hutch.models import ExecInfo, ExecOutcome, TtySize
from hutch.service.logfile import LogReader
from hutch.service.output import WINDOW, Follower, Pump, Tap, outcome_of
from hutch.service.spec import check_terminal, signal_number
from hutch.service.values import SessionEvent
from hutch.tasks import in_thread


class Keeper(Protocol):
    """What a session asks of whoever holds the programs of its sandbox."""

    def last_words(self, failure: HutchError) -> ExecOutcome | None:
        """Return how a program ended that was lost with its sandbox; None: `failure` stands."""

    def note_exit(self, info: ExecInfo, outcome: ExecOutcome) -> None:
        """Take note that a program has ended."""

    def leave(self, exec_id: str, *, ended: bool) -> None:
        """Take note that the client of an attached program is gone."""

    def hang_up(self, client: object) -> None:
        """Take note that a client of a logged program is gone."""

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
        self._execs.leave(self.info.id, ended=self._ended)


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
        self._execs.hang_up(self._tap)
        await self._pump.detach(self._tap)


class RecordedSession:
    """A client of a main process that has ended: the rest of its log, and its recorded outcome."""

    def __init__(
        self, info: ExecInfo, directory: Path, offsets: Mapping[int, int] | None, done: ExecOutcome
    ) -> None:
        """Without `offsets` there is nothing to tell but the outcome."""
        self.info = info
        self.offsets: Mapping[int, int] = dict(offsets or {1: 0, 2: 0})
        self._directory = directory
        self._replay = offsets is not None
        self._done = done
        self._ahead = {1: 0, 2: 0}
        self._acknowledged = asyncio.Event()

    async def __aiter__(self) -> AsyncIterator[SessionEvent]:
        reader = LogReader(self._directory, self.info.id)
        try:
            if self._replay:
                await in_thread(reader.seek_offset, dict(self.offsets))
            while self._replay and (batch := await in_thread(reader.batch)):
                for record, offset in batch:
                    channel = Channel(record.channel)
                    if record.missing:
                        yield OutputGap(channel, offset, record.missing)
                    else:
                        self._ahead[channel] += len(record.data)
                        yield Output(channel, offset, record.data)
                while max(self._ahead.values()) >= WINDOW:
                    self._acknowledged.clear()
                    await self._acknowledged.wait()
        finally:
            reader.close()
        yield self._done

    def ack(self, channel: Channel, size: int) -> None:
        """Say that the client has consumed `size` more bytes of a channel."""
        self._ahead[channel] -= size
        self._acknowledged.set()

    async def write(self, data: bytes) -> None:
        """Ignore input, as nobody reads it any more."""

    async def close_stdin(self) -> None:
        """Ignore the end of input."""

    async def signal(self, name: str) -> None:
        """Ignore a signal that came too late. Raises bad_request for an unknown one."""
        signal_number(name)

    async def resize(self, size: TtySize) -> None:
        """Ignore the size of a terminal that is gone."""

    async def cancel(self) -> None:
        """Do nothing: it has ended."""

    async def close(self, *, detach: bool) -> None:
        """Do nothing: nobody is held up."""


Session = AttachedSession | LoggedSession | RecordedSession

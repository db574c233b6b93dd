"""A program's output on its way from the guest: exactly once, in order, with back-pressure.

`Follower` carries one program's stream across broken connections. `Pump` writes a logged program's
output to its log and hands it to everyone attached; the guest is given credit for bytes only once
they are in the log and every attached client has acknowledged them. It must not know of sandboxes.
"""

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Final

from hutch.errors import HutchError, error
from hutch.guest.base import (
    Channel,
    ExecEvent,
    ExecResult,
    ExecStream,
    Guest,
    Output,
    OutputEnd,
    OutputGap,
    TerminalSize,
)
from hutch.models import ExecOutcome, timestamp
from hutch.service.connection import LOST, Connection
from hutch.service.logfile import PIECE, LogReader
from hutch.service.logs import Log
from hutch.service.values import SessionEvent
from hutch.tasks import in_thread

WINDOW: Final = 1 << 20
"""Bytes of a channel that a client may have unacknowledged."""

JOINED_FROM: Final = 256
WAITING_MAX: Final = 4096
"""Events that wait for a client: from how many on pieces are joined, and how many at most."""


def outcome_of(result: ExecResult) -> ExecOutcome:
    """Return how a program ended, as the API says it."""
    return ExecOutcome(
        exit_code=result.exit_code,
        code=result.code,
        signal=result.signal,
        timed_out=result.timed_out,
        oom=result.oom,
        started_at=timestamp(result.started_ns / 1e9) if result.started_ns else None,
        ended_at=timestamp(result.ended_ns / 1e9) if result.ended_ns else None,
        cpu_seconds=result.cpu_ns / 1e9,
    )


class _Flow:
    """One channel: what came, what was acknowledged, and what is still to be."""

    __slots__ = ("acknowledged", "came", "flying", "received", "wanted")

    def __init__(self, offset: int) -> None:
        self.received = offset
        self.flying: deque[list[int]] = deque()
        self.came = 0
        self.acknowledged = 0
        self.wanted = 0

    @property
    def first(self) -> int:
        """The offset of the oldest byte that is not acknowledged."""
        return self.flying[0][0] if self.flying else self.received

    def take(self, offset: int, size: int) -> int:
        """Note bytes of the stream; returns how many of them were taken before."""
        self.came += size
        again = max(0, min(self.received - offset, size))
        if size > again:
            self.flying.append([offset + again, size - again])
            self.received = offset + size
        return again

    def ack(self, size: int) -> int:
        """Note `size` consumed bytes; returns how many the stream may be told of now."""
        self.wanted += size
        while size and self.flying:
            run = self.flying[0]
            step = min(size, run[1])
            run[0], run[1], size = run[0] + step, run[1] - step, size - step
            if not run[1]:
                self.flying.popleft()
        return self.due()

    def due(self) -> int:
        """Return how many acknowledged bytes the stream has sent and not been told of."""
        size = min(self.wanted, self.came) - self.acknowledged
        self.acknowledged += size
        return size

    def restart(self) -> None:
        """Begin on a new stream, which starts at `first`."""
        self.came = self.acknowledged = self.wanted = 0


class Follower:
    """One program's events, without loss or repetition, whatever becomes of the connection.

    One task takes events; input and control may come from others.
    """

    def __init__(
        self,
        connection: Connection,
        guest: Guest,
        stream: ExecStream,
        offsets: Mapping[int, int] | None = None,
    ) -> None:
        """`offsets` are those at which `stream` begins."""
        self.id = stream.id
        self.pid = stream.pid
        self.tty = stream.tty
        self._connection = connection
        self._guest = guest
        self._stream = stream
        starts = offsets or {}
        self._flows = {channel: _Flow(starts.get(channel, 0)) for channel in (1, 2)}
        self.closed = False

    @property
    def received(self) -> dict[int, int]:
        """For each channel the offset after the last byte taken."""
        return {channel: flow.received for channel, flow in self._flows.items()}

    async def next(self) -> ExecEvent:
        """Return the next event; the last is an ExecResult.

        Raises exec_taken when another client attaches, exec_not_found when the guest has forgotten
        the program, and what the connection was ended with.
        """
        while True:
            try:
                event = await anext(aiter(self._stream))
            except StopAsyncIteration:
                raise error("internal", f"exec {self.id} was read beyond its end") from None
            except HutchError as failure:
                if self.closed or failure.code not in LOST:
                    raise
                await self._attach_again()
                continue
            if (kept := self._take(event)) is not None:
                return kept

    def _take(self, event: ExecEvent) -> ExecEvent | None:
        if isinstance(event, Output):
            flow = self._flows[event.channel]
            again = flow.take(event.offset, len(event.data))
            if again and (due := flow.due()):
                self._stream.ack(event.channel, due)
            if again == 0:
                return event
            rest = event.data[again:]
            return Output(event.channel, event.offset + again, rest) if rest else None
        if isinstance(event, OutputGap):
            flow = self._flows[event.channel]
            flow.received = max(flow.received, event.offset + event.size)
        return event

    async def _attach_again(self) -> None:
        guest = await self._connection.after(self._guest)
        offsets = {channel: flow.first for channel, flow in self._flows.items()}
        stream = await guest.attach_exec(self.id, offsets)
        for flow in self._flows.values():
            flow.restart()
        self._guest, self._stream = guest, stream

    def ack(self, channel: Channel, size: int) -> None:
        """Say that `size` more bytes were consumed."""
        if due := self._flows[channel].ack(size):
            self._stream.ack(channel, due)

    def ack_all(self) -> None:
        """Say that everything taken so far was consumed."""
        for channel in (Channel.STDOUT, Channel.STDERR):
            flying = sum(size for _, size in self._flows[channel].flying)
            self.ack(channel, flying)

    async def write(self, data: bytes) -> None:
        """Send stdin. Raises when the connection breaks: what has arrived is not known then."""
        await self._stream.write(data)

    async def close_stdin(self) -> None:
        """End stdin."""
        await self._stream.close_stdin()

    async def signal(self, number: int) -> None:
        """Signal the process group."""
        await self._stream.signal(number)

    async def resize(self, rows: int, cols: int) -> None:
        """Tell the terminal's new size."""
        await self._stream.resize(TerminalSize(rows, cols))

    async def set_overflow(self, mode: str) -> None:
        """Choose what a full ring in the guest does: `block` or `drop`."""
        await self._stream.set_overflow(mode)

    async def close(self) -> None:
        """Detach; the program goes on."""
        self.closed = True
        await self._stream.close()


class Tap:
    """One client's place in a pump: what it is to get, and what it has acknowledged.

    Events wait here as long as the client lets them; their bytes are bounded by the guest's window,
    since the guest gets no credit for them.
    """

    def __init__(
        self,
        taken: Mapping[int, int],
        ends: Mapping[int, int],
        offsets: Mapping[int, int] | None,
        credit: Callable[[], None],
        reader: LogReader | None,
    ) -> None:
        self._base = dict(taken)
        self._ends = dict(ends)
        self.offsets = dict(offsets or ends)
        self._credit = credit
        self._reader = reader
        self._queue: deque[SessionEvent | HutchError] = deque()
        self._arrived = asyncio.Event()
        self._replayed = {1: 0, 2: 0}
        self._acknowledged = {1: 0, 2: 0}
        self._replay: deque[SessionEvent] = deque()
        self._cut = False

    def floor(self, channel: int) -> int:
        """Return up to which byte of the pump's count this client has acknowledged."""
        return self._base[channel] + max(0, self._acknowledged[channel] - self._replayed[channel])

    def ack(self, channel: int, size: int) -> None:
        """Note that the client has consumed `size` more bytes."""
        self._acknowledged[channel] += size
        self._arrived.set()
        self._credit()

    def put(self, event: SessionEvent | HutchError) -> None:
        """Add what the pump has for the client.

        Many small pieces are joined, and whoever would have to wait for more than a sane guest
        makes is cut off: the memory of a waiting client is bounded whatever the guest sends.
        """
        if self._cut:
            return
        if len(self._queue) >= WAITING_MAX:
            self._queue.clear()
            self._queue.append(error("guest_protocol", "the guest floods its output with gaps"))
            self._cut = True
        elif len(self._queue) < JOINED_FROM or not self._join(event):
            self._queue.append(event)
        self._arrived.set()

    def _join(self, event: SessionEvent | HutchError) -> bool:
        """Add bytes to the last piece of their channel, if it ends where they begin."""
        if not isinstance(event, Output):
            return False
        for index in range(len(self._queue) - 1, max(len(self._queue) - 3, -1), -1):
            last = self._queue[index]
            if isinstance(last, Output) and last.channel == event.channel:
                if last.offset + len(last.data) != event.offset or len(last.data) >= PIECE:
                    break
                self._queue[index] = Output(last.channel, last.offset, last.data + event.data)
                return True
        return False

    async def next(self) -> SessionEvent:
        """Return the client's next event. Raises what the pump has ended with."""
        while self._reader is not None:
            if self._replay:
                return self._replay.popleft()
            await self._wait_replay()
            await self._read_back(self._reader)
        while not self._queue:
            self._arrived.clear()
            await self._arrived.wait()
        event = self._queue.popleft()
        if isinstance(event, HutchError):
            raise event
        return event

    async def _wait_replay(self) -> None:
        while any(self._replayed[c] - self._acknowledged[c] >= WINDOW for c in (1, 2)):
            self._arrived.clear()
            await self._arrived.wait()

    async def _read_back(self, reader: LogReader) -> None:
        batch = await in_thread(reader.batch)
        for record, offset in batch:
            end, channel = self._ends[record.channel], Channel(record.channel)
            if offset >= end:
                continue
            if record.missing:
                self._replay.append(OutputGap(channel, offset, record.missing))
            else:
                data = record.data[: end - offset]
                self._replayed[channel] += len(data)
                self._replay.append(Output(channel, offset, data))
        if not batch or any(offset >= self._ends[record.channel] for record, offset in batch):
            self.close()

    def close(self) -> None:
        """Stop reading back."""
        if self._reader is not None:
            self._reader.close()
            self._reader = None


class Pump:
    """Takes a logged program's output: into its log, then to the taps. `run` is its task."""

    def __init__(self, follower: Follower, log: Log, *, detached: bool) -> None:
        self.follower = follower
        self.log = log
        self._detached = detached
        self._taps: list[Tap] = []
        self._taken = {1: 0, 2: 0}
        self._credited = {1: 0, 2: 0}
        self._ends = follower.received
        self._last: SessionEvent | HutchError | None = None
        self.ended = asyncio.Event()

    @property
    def outcome(self) -> ExecOutcome | None:
        """How the program ended, once it has."""
        return self._last if isinstance(self._last, ExecOutcome) else None

    async def run(self) -> None:
        """Pump until the program has ended."""
        try:
            while True:
                event = await self.follower.next()
                if isinstance(event, ExecResult):
                    self.finish(outcome_of(event))
                    return
                if isinstance(event, Output):
                    await self.log.append(event.channel, event.offset, event.data, time.time_ns())
                    self._taken[event.channel] += len(event.data)
                    self._ends[event.channel] = event.offset + len(event.data)
                elif isinstance(event, OutputGap):
                    self._ends[event.channel] = event.offset + event.size
                self._hand_out(event)
                self._credit()
        except HutchError as failure:
            self.finish(failure)

    def finish(self, last: ExecOutcome | HutchError) -> None:
        """End everyone's output with an outcome or an error; only the first counts."""
        if self._last is None:
            self._last = last
            self._hand_out(last)
            self.ended.set()

    def _hand_out(self, event: Output | OutputGap | OutputEnd | ExecOutcome | HutchError) -> None:
        for tap in self._taps:
            tap.put(event)

    def _credit(self) -> None:
        for channel in (Channel.STDOUT, Channel.STDERR):
            floor = min((tap.floor(channel) for tap in self._taps), default=self._taken[channel])
            size = min(floor, self._taken[channel]) - self._credited[channel]
            if size > 0:
                self._credited[channel] += size
                self.follower.ack(channel, size)

    async def attach(self, offsets: Mapping[int, int] | None = None) -> Tap:
        """Add a client: from `offsets` on, as far as the log still has them, else from now on."""
        reader = None
        starts = None if offsets is None else {c: offsets.get(c, 0) for c in (1, 2)}
        if starts is not None and any(starts[c] < self._ends[c] for c in (1, 2)):
            reader = LogReader(self.log.directory, self.log.name)
        tap = Tap(self._taken, self._ends, starts, self._credit, reader)
        self._taps.append(tap)
        if self._last is not None:
            tap.put(self._last)
        elif len(self._taps) == 1:
            await self._set_overflow("block")
        if reader is not None and starts is not None:
            await in_thread(reader.seek_offset, starts)
        return tap

    async def detach(self, tap: Tap) -> None:
        """Remove a client; what it had not acknowledged holds nobody up any more."""
        tap.close()
        if tap in self._taps:
            self._taps.remove(tap)
            self._credit()
            if not self._taps and self._last is None:
                await self._set_overflow("drop")

    async def _set_overflow(self, mode: str) -> None:
        # A client that is there must miss nothing; with nobody there, a program that runs on by
        # itself must not come to a halt while the daemon is away.
        if self._detached:
            with contextlib.suppress(HutchError):
                await self.follower.set_overflow(mode)

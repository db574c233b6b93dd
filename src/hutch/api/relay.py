"""A program's session carried over a client's WebSocket, whatever either side does.

Three loops that never wait for one another: output (within the client's window), input from the
client (which only queues), and the queue's way into the program. So a program that reads no stdin
while it floods its output, or a client that stalls, blocks only itself. Meanings: spec/api.md.
"""

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Mapping
from typing import Any, Protocol

from hutch.api.bodies import validated
from hutch.api.operations import Channel, ExecSession
from hutch.errors import HutchError, NotFound, error
from hutch.guest.base import Output, OutputEnd, OutputGap
from hutch.models import ExecOutcome, TtySize

log = logging.getLogger(__name__)

OUTPUT_WINDOW = 1 << 20
"""Bytes of one channel that may be sent unacknowledged."""
STDIN_WINDOW = 256 << 10
"""Bytes of stdin that a client may send ahead."""
CONTROL_LIMIT = 256
"""Messages (signals, sizes) that may wait for the program."""
DETACH_SECONDS = 3.0
"""How long a client that detaches waits until the program has taken its last stdin."""


class Peer(Protocol):
    """The client's side, as streams.Client has it."""

    async def receive(self) -> dict[str, Any] | bytes:
        """Return the next message; raises when the client is gone."""

    async def send(self, value: dict[str, Any]) -> None:
        """Send an object."""

    async def send_bytes(self, data: bytes) -> None:
        """Send bytes."""


class _Done(Exception):
    """No error: how one loop ends the others."""


class Relay:
    """One client attached to one session. `run` it once; it closes the session.

    Invariants: at most OUTPUT_WINDOW bytes of a channel are unacknowledged, at most STDIN_WINDOW
    bytes of stdin are held. A client that goes away without `detach` loses the session.
    """

    def __init__(self, client: Peer, session: ExecSession) -> None:
        self._client = client
        self._session = session
        self._detached = False
        self._cancel_due = False
        self._outcome: ExecOutcome | None = None
        self._unacked = {Channel.STDOUT: 0, Channel.STDERR: 0}
        self._acked = asyncio.Event()
        self._stdin: deque[bytes] = deque()
        self._stdin_size = 0
        self._stdin_eof = False
        self._stdin_ready = asyncio.Event()
        self._stdin_fed = asyncio.Event()
        self._stdin_fed.set()
        self._controls: asyncio.Queue[tuple[str, Any]] = asyncio.Queue(CONTROL_LIMIT)

    async def run(self) -> ExecOutcome | None:
        """Relay until the program has exited, or the client has detached (None).

        Raises what the client's side raises when it is gone.
        """
        info = self._session.info
        try:
            await self._client.send(
                {
                    "started": {
                        "id": info.id,
                        "pid": info.pid,
                        "tty": info.tty,
                        "offsets": {str(int(k)): v for k, v in self._session.offsets.items()},
                        "credit": STDIN_WINDOW,
                    }
                }
            )
            await self._relay()
        finally:
            if self._cancel_due:  # asked for with the client's last words
                with contextlib.suppress(HutchError):
                    await self._session.cancel()
            await self._session.close(detach=self._detached)
        return self._outcome

    async def _relay(self) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                loops = (self._input(), self._feed(), self._control())
                tasks = [group.create_task(loop) for loop in loops]
                await self._output()
                for task in tasks:
                    task.cancel()
        except* _Done:
            pass

    async def _output(self) -> None:
        async for event in self._session:
            if isinstance(event, Output):
                await self._send_output(event.channel, event.data)
            elif isinstance(event, OutputGap):
                gap = {"channel": event.channel, "offset": event.offset, "size": event.size}
                await self._client.send({"gap": gap})
            elif isinstance(event, OutputEnd):
                await self._client.send({"end": int(event.channel)})
            else:
                await self._client.send({"exit": event})
                self._outcome = event
                return

    async def _send_output(self, channel: Channel, data: bytes) -> None:
        size = len(data)
        while self._unacked[channel] and self._unacked[channel] + size > OUTPUT_WINDOW:
            self._acked.clear()
            await self._acked.wait()
        self._unacked[channel] += size
        await self._client.send_bytes(bytes((channel,)) + data)

    async def _input(self) -> None:
        """Take what the client says. Never waits for the program: acks must always come through."""
        while True:
            message = await self._client.receive()
            if isinstance(message, bytes):
                self._take_stdin(message)
            elif "ack" in message:
                self._take_acks(message["ack"])
            elif message.get("eof"):
                self._stdin_eof = True
                self._stdin_ready.set()
            elif message.get("detach"):
                self._detached = True
                # What was typed before is the program's; one that takes nothing holds up nobody.
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(DETACH_SECONDS):
                        await self._stdin_fed.wait()
                raise _Done
            else:
                self._take_control(message)

    def _take_stdin(self, message: bytes) -> None:
        if not message or message[0] != Channel.STDIN:
            raise error("bad_request", "bytes from a client must be of channel 0")
        data = message[1:]
        if self._stdin_eof:
            raise error("bad_request", "stdin after its end")
        self._stdin_size += len(data)
        if self._stdin_size > STDIN_WINDOW:
            raise error("bad_request", "more stdin than the credit allows")
        if data:
            self._stdin.append(data)
            self._stdin_fed.clear()
            self._stdin_ready.set()

    def _take_acks(self, acks: Any) -> None:
        if not isinstance(acks, Mapping):
            raise error("bad_request", "ack: it must map channels to bytes")
        for key, size in acks.items():
            known = key in ("1", "2") and isinstance(size, int)
            if not known or not 0 <= size <= self._unacked[Channel(int(key))]:
                raise error("bad_request", f"ack: {key!r}: {size!r} was not sent")
            channel = Channel(int(key))
            self._unacked[channel] -= size
            self._session.ack(channel, size)
        self._acked.set()

    def _take_control(self, message: dict[str, Any]) -> None:
        kind = next(iter(message), "")
        if kind == "signal" and isinstance(message[kind], str):
            control: tuple[str, Any] = (kind, message[kind])
        elif kind == "resize":
            control = (kind, validated(TtySize, message[kind], kind))
        elif kind == "cancel":
            control = (kind, None)
            self._cancel_due = True
        else:
            raise error("bad_request", f"{kind!r} is no message of an exec's client")
        try:
            self._controls.put_nowait(control)
        except asyncio.QueueFull:
            raise error("bad_request", "too many signals for a program that takes none") from None

    async def _feed(self) -> None:
        while True:
            await self._stdin_ready.wait()
            self._stdin_ready.clear()
            while self._stdin:
                data = self._stdin.popleft()
                try:
                    await self._session.write(data)
                except HutchError as failure:
                    # The program, or the whole sandbox, has ended: the output says which.
                    log.debug("stdin of %s is lost: %s", self._session.info.id, failure)
                self._stdin_size -= len(data)
                await self._client.send({"credit": len(data)})
            self._stdin_fed.set()
            if self._stdin_eof:
                with contextlib.suppress(HutchError):  # as above
                    await self._session.close_stdin()
                return

    async def _control(self) -> None:
        while True:
            kind, value = await self._controls.get()
            try:
                if kind == "signal":
                    await self._session.signal(value)
                elif kind == "resize":
                    await self._session.resize(value)
                else:
                    await self._session.cancel()
                    self._cancel_due = False
            except NotFound:
                log.debug("%s for %s came after its end", kind, self._session.info.id)

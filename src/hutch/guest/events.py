"""The queue of what a guest reports unasked: bounded in number and bytes, the oldest dropped."""

import asyncio
from collections import deque
from typing import Final

from hutch.guest import fields
from hutch.guest.base import GuestEvent
from hutch.guest.messages import GuestProtocolError, decode_map

_NUMBER: Final = 1024
_BYTES: Final = 1 << 20


class EventQueue:
    """Events wait here as bytes, whose number is known, not as objects, whose size the guest
    chooses.
    """

    def __init__(self) -> None:
        self._queue: deque[bytes] = deque()
        self._bytes = 0
        self._arrived = asyncio.Event()
        self._closed = False

    def __len__(self) -> int:
        return len(self._queue)

    def put(self, payload: bytes) -> None:
        """Add the payload of an EVENT frame. Raises GuestProtocolError when it is not an event."""
        _decode(payload)
        self._queue.append(payload)
        self._bytes += len(payload)
        while len(self._queue) > _NUMBER or self._bytes > _BYTES:
            self._bytes -= len(self._queue.popleft())
        self._arrived.set()

    def close(self) -> None:
        """No more come; what waits can still be taken."""
        self._closed = True
        self._arrived.set()

    async def take(self) -> GuestEvent | None:
        """Return the oldest event; None once the queue is closed and empty."""
        while not self._queue:
            if self._closed:
                return None
            self._arrived.clear()
            await self._arrived.wait()
        payload = self._queue.popleft()
        self._bytes -= len(payload)
        return _decode(payload)


def _decode(payload: bytes) -> GuestEvent:
    message = decode_map(payload)
    kind = fields.text(message, "event", limit=64)
    if not kind:
        raise GuestProtocolError("an event without a name")
    return GuestEvent(kind, {key: value for key, value in message.items() if key != "event"})

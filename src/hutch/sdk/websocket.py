"""RFC 6455 as a client speaks it, without any I/O, for our own server only.

No extensions, no subprotocols. Shared by the blocking transport (wire.py) and the asyncio one
(aio.py); must stay light to import, for the CLI's hot path.

The masking key is zero. Masking keeps a hostile page's bytes from being taken for HTTP by a proxy
in between; here there is neither a page nor a proxy, and a zero key lets payloads go to the kernel
uncopied (XOR in Python takes 3 ms for each MiB).
"""

import base64
import hashlib
import json
import os
from typing import Any, Final

from hutch.sdk.http1 import broken, request_head

TEXT: Final = 1
BINARY: Final = 2
CLOSE: Final = 8
PING: Final = 9
PONG: Final = 10
_CONTINUATION: Final = 0

MESSAGE_LIMIT: Final = 16 << 20
"""The most bytes that a message from the server may have."""
_GUID: Final = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"

Bytes = bytes | bytearray | memoryview


def upgrade_request(where: str) -> tuple[bytes, str]:
    """Return the bytes that ask for a WebSocket at a target, and the answer they must get."""
    key = base64.b64encode(os.urandom(16))
    head = request_head(
        "GET",
        where,
        {
            "upgrade": "websocket",
            "connection": "Upgrade",
            "sec-websocket-version": "13",
            "sec-websocket-key": key.decode(),
        },
    )
    digest = hashlib.sha1(key + _GUID, usedforsecurity=False).digest()
    return head, base64.b64encode(digest).decode()


def frame_head(kind: int, size: int) -> bytes:
    """Return the header of a whole message of `size` bytes; the payload follows as it is."""
    first = 0x80 | kind
    if size < 126:
        return bytes((first, 0x80 | size, 0, 0, 0, 0))
    if size < 1 << 16:
        return bytes((first, 0xFE)) + size.to_bytes(2, "big") + b"\0\0\0\0"
    return bytes((first, 0xFF)) + size.to_bytes(8, "big") + b"\0\0\0\0"


class Message:
    """A message from the server: `kind` is TEXT or BINARY, `data` its bytes."""

    __slots__ = ("data", "kind")

    def __init__(self, kind: int, data: bytes) -> None:
        self.kind = kind
        self.data = data

    def __repr__(self) -> str:
        return f"Message({self.kind}, {self.data[:60]!r})"

    def json(self) -> dict[str, Any]:
        """Return a text message's object. Raises DaemonError for anything else."""
        try:
            value = json.loads(self.data)
        except ValueError:
            value = None
        if self.kind != TEXT or not isinstance(value, dict):
            raise broken(f"the daemon sent {self.data[:60]!r} where JSON was due")
        return value


class Decoder:
    """Frames from the server, put together from bytes as they come.

    Invariant: never holds more than a message's limit. Raises DaemonError (daemon_unreachable) for
    what no server of ours sends.
    """

    def __init__(self) -> None:
        self.close_code: int | None = None
        self.close_reason = ""
        self._buffer = bytearray()
        self._kind = 0  # of the message that fragments belong to
        self._parts = bytearray()

    def feed(self, data: bytes) -> tuple[list[Message], bytes]:
        """Take bytes; return whole messages, and the bytes to send back (pongs, the close)."""
        self._buffer += data
        messages: list[Message] = []
        replies = b""
        while self.close_code is None and (frame := self._take_frame()) is not None:
            last, kind, payload = frame
            if kind == CLOSE:
                self.close_code = int.from_bytes(payload[:2], "big") if payload else 1005
                self.close_reason = payload[2:].decode("utf-8", "replace")
                replies += frame_head(CLOSE, len(payload[:2])) + payload[:2]
            elif kind == PING:
                replies += frame_head(PONG, len(payload)) + payload
            elif kind != PONG and (message := self._join(last, kind, payload)) is not None:
                messages.append(message)
        return messages, replies

    def _take_frame(self) -> tuple[bool, int, bytes] | None:
        buffer = self._buffer
        if len(buffer) < 2:
            return None
        first, size, start = buffer[0], buffer[1], 2
        if first & 0x70 or size & 0x80:
            raise broken("the daemon sent a WebSocket frame that is masked or has reserved bits")
        if size >= 126:
            start = 4 if size == 126 else 10
            if len(buffer) < start:
                return None
            size = int.from_bytes(buffer[2:start], "big")
            if size > MESSAGE_LIMIT:
                raise broken("the daemon sent a WebSocket frame that is too long")
        if len(buffer) < start + size:
            return None
        with memoryview(buffer) as view:
            payload = bytes(view[start : start + size])
        del buffer[: start + size]
        return bool(first & 0x80), first & 0x0F, payload

    def _join(self, last: bool, kind: int, payload: bytes) -> Message | None:
        if (kind == _CONTINUATION) != bool(self._kind) or kind > BINARY:
            raise broken(f"the daemon sent a WebSocket frame of the kind {kind} out of turn")
        if last and not self._kind:
            return Message(kind, payload)
        self._kind = self._kind or kind
        self._parts += payload
        if len(self._parts) > MESSAGE_LIMIT:
            raise broken("the daemon sent a WebSocket message that is too long")
        if not last:
            return None
        message = Message(self._kind, bytes(self._parts))
        self._kind, self._parts = 0, bytearray()
        return message

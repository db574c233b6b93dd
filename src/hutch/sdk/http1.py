"""HTTP/1.1 as a client speaks it, without any I/O: requests become bytes, bytes become a response.

Only what our own server sends: Content-Length, chunked or no body. Shared by the blocking transport
(wire.py) and the asyncio one (aio.py); must stay light to import, for the CLI's hot path.
"""

import binascii
import json
from collections.abc import Iterator, Mapping
from typing import Any

from hutch.errors import HutchError, error, from_json

HEAD_LIMIT = 64 << 10
"""The most bytes that the head of a response may take."""
BODY_LIMIT = 64 << 20
"""The most bytes of a body that is read whole."""

Query = Mapping[str, Any]

_SAFE = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~/")


def quote(text: str) -> str:
    """Return `text` percent-encoded, `/` kept. Paths of the guest may hold any byte."""
    raw = text.encode("utf-8", "surrogateescape")
    return "".join(chr(byte) if byte in _SAFE else f"%{byte:02X}" for byte in raw)


def target(path: str, query: Query | None = None) -> str:
    """Return the request target for a path (already encoded) and its query.

    None is left out, lists are repeated, booleans are `true` and `false`.
    """
    parts = []
    for key, value in (query or {}).items():
        for item in value if isinstance(value, list | tuple) else (value,):
            if item is not None:
                text = str(item).lower() if isinstance(item, bool) else str(item)
                parts.append(f"{key}={quote(text)}")
    return f"{path}?{'&'.join(parts)}" if parts else path


def request_head(method: str, where: str, headers: Mapping[str, str]) -> bytes:
    """Return the bytes of a request up to its body."""
    lines = [f"{method} {where} HTTP/1.1", "host: hutch"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("ascii")


def key_header(key: bytes | str | None) -> dict[str, str]:
    """Return the header that carries the key of encrypted snapshots, none where there is none.

    A header, as a URL would show it to whoever sees requests.
    """
    if key is None:
        return {}
    secret = key.encode() if isinstance(key, str) else key
    return {"hutch-snapshot-key": binascii.b2a_base64(secret, newline=False).decode("ascii")}


def body_chunk(data: bytes | memoryview) -> tuple[bytes, bytes | memoryview, bytes]:
    """Return the three parts of a chunk of a chunked body; `LAST_CHUNK` ends it."""
    return b"%x\r\n" % len(data), data, b"\r\n"


LAST_CHUNK = b"0\r\n\r\n"


class ResponseParser:
    """One response, fed with bytes as they come.

    `status` is 0 until the head is complete; `done` says that the body has ended, `reusable` that
    the connection may carry another request after it. Bytes beyond the response (after an upgrade)
    are left in `rest`. Raises DaemonError (daemon_unreachable) for what is no HTTP.
    """

    def __init__(self, method: str) -> None:
        self.status = 0
        self.headers: dict[str, str] = {}
        self.done = False
        self.reusable = False
        self._bodiless = method == "HEAD"
        self._buffer = bytearray()
        self._left = 0  # bytes until the body's, or the current chunk's, end
        self._chunked = False
        self._until_eof = False
        self._chunk_end = False  # the CRLF after a chunk's bytes is due

    @property
    def rest(self) -> bytes:
        """Bytes after the response."""
        return bytes(self._buffer)

    def feed(self, data: bytes) -> list[bytes]:
        """Take bytes from the connection (none: it has ended); return pieces of the body."""
        if not data:
            return self._feed_eof()
        self._buffer += data
        if not self.status and not self._take_head():
            return []
        if self.done:
            return []
        return list(self._take_chunks() if self._chunked else self._take_plain())

    def _feed_eof(self) -> list[bytes]:
        if self.status and self._until_eof:
            self.done = True
        if not self.done:
            raise broken("the daemon closed the connection in the middle of an answer")
        return []

    def _take_head(self) -> bool:
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            if len(self._buffer) > HEAD_LIMIT:
                raise broken("the head of the daemon's answer is too long")
            return False
        lines = self._buffer[:end].decode("latin-1").split("\r\n")
        del self._buffer[: end + 4]
        version, _, rest = lines[0].partition(" ")
        if not version.startswith("HTTP/1.") or not rest[:3].isdigit():
            raise broken(f"the daemon's answer is no HTTP: {lines[0][:80]!r}")
        for line in lines[1:]:
            name, _, value = line.partition(":")
            self.headers[name.strip().lower()] = value.strip()
        self.status = int(rest[:3])
        self._find_body()
        return True

    def _find_body(self) -> None:
        get = self.headers.get
        self.reusable = get("connection", "").lower() != "close" and self.status != 101
        self._chunked = get("transfer-encoding", "").lower() == "chunked"
        length = get("content-length")
        if self._bodiless or self.status in (101, 204, 304):
            self._chunked, self.done = False, True
        elif length is not None and not self._chunked:
            if not length.isdigit():
                raise broken(f"the daemon's answer has the length {length!r}")
            self._left = int(length)
            self.done = self._left == 0
        elif not self._chunked:
            self._until_eof, self.reusable = True, False

    def _take_plain(self) -> Iterator[bytes]:
        if self._until_eof:
            data = bytes(self._buffer)
            self._buffer.clear()
        else:
            data = self._take(self._left)
            self._left -= len(data)
            self.done = self._left == 0
        if data:
            yield data

    def _take_chunks(self) -> Iterator[bytes]:
        while True:
            if self._left:
                if not self._buffer:
                    return
                data = self._take(self._left)
                self._left -= len(data)
                self._chunk_end = self._left == 0
                yield data
                continue
            if self._chunk_end:
                if len(self._buffer) < 2:
                    return
                del self._buffer[:2]
                self._chunk_end = False
            end = self._buffer.find(b"\r\n")
            if end < 0:
                return
            try:
                size = int(self._buffer[:end].split(b";")[0], 16)
            except ValueError:
                raise broken("the daemon's answer has a chunk without a size") from None
            if size == 0:
                # Our server sends no trailers: the empty line follows at once.
                if len(self._buffer) < end + 4:
                    return
                del self._buffer[: end + 4]
                self.done = True
                return
            del self._buffer[: end + 2]
            self._left = size

    def _take(self, size: int) -> bytes:
        with memoryview(self._buffer) as view:
            data = bytes(view[:size])
        del self._buffer[:size]
        return data


def broken(message: str) -> HutchError:
    """Return the error for a connection that ended or speaks nonsense."""
    return error(
        "daemon_unreachable", message, hint="look at `hutch daemon logs`", details={"lost": True}
    )


def error_of(status: int, body: bytes) -> HutchError:
    """Return the error that a response with a status from 400 on stands for."""
    try:
        return from_json(json.loads(body)["error"])
    except (ValueError, KeyError, TypeError, AttributeError):
        text = body[:200].decode("utf-8", "replace")
        return error("internal", f"the daemon answered {status}: {text}")

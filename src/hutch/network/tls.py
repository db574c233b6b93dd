"""What a TLS client says before anything is encrypted: the name of the server it wants.

Reads a ClientHello as RFC 8446 and RFC 6066 have it, in whatever records and segments it comes, and
writes the alert that refuses it. The bytes are handed on as they came: nothing here takes part in
TLS. Knows no policy. With encrypted client hellos it is the outer name that counts.
"""

import re
import struct
from typing import Final

from hutch.networking import Reason

HELLO_LIMIT: Final = 16 * 1024
"""Bytes of a ClientHello: what BoringSSL takes as a server. With post-quantum keys, ECH and a
session ticket they have about 2 KiB."""
RECORDS_LIMIT: Final = 256
"""Records that hold it. Clients use one, those that hide from filters a handful; with one byte each
they would be thousands, and all other connections would wait while they are read."""

_HANDSHAKE, _ALERT = 22, 21
_CLIENT_HELLO = 1
_RECORD_LIMIT = 1 << 14  # RFC 8446, 5.1: the fragment of a record that is not encrypted
_SERVER_NAME, _ALPN, _ECH = 0, 16, 0xFE0D
_TLS_1_2 = 0x0303
_LABELS = re.compile(r"[A-Za-z0-9_-]{1,63}(\.[A-Za-z0-9_-]{1,63})*\.?")

_FATAL = 2
_ALERTS: Final = {
    Reason.SERVER_NAME_MISSING: 109,  # missing_extension
    Reason.SERVER_NAME_MISMATCH: 112,  # unrecognized_name
    Reason.BAD_PROTOCOL: 50,  # decode_error
    Reason.NAME_NOT_FOUND: 112,
    Reason.RESOLVE_FAILED: 80,  # internal_error
    Reason.LIMIT: 80,
    Reason.UPSTREAM_REFUSED: 80,
    Reason.UPSTREAM_UNREACHABLE: 80,
    Reason.UPSTREAM_TIMEOUT: 80,
}
_ACCESS_DENIED = 49


class BadHello(ValueError):
    """What came is no ClientHello, or one that can be understood in two ways; says why."""


class HelloReader:
    """Reads one ClientHello, piece by piece.

    Until `feed` returns True, `server_name`, `alpn` and `encrypted` say nothing. `taken` is all
    that was fed, to be handed on as it is.
    """

    def __init__(self) -> None:
        self.server_name: str | None = None
        """The name as it was said (maybe in capitals, with a dot at its end); None: there is none.
        An IPv4 address may be said as well, though no standard allows it."""
        self.alpn: tuple[str, ...] = ()
        self.encrypted = False
        """Whether there is, or seems to be (GREASE), an inner hello that only the server reads."""
        self._taken = bytearray()
        self._read = 0  # up to where `_taken` was read
        self._hello = bytearray()
        self._records = 0
        self._complete = False

    @property
    def taken(self) -> bytes:
        """All bytes that were fed."""
        return bytes(self._taken)

    def feed(self, data: bytes) -> bool:
        """Take what the client sent next. Returns True when its hello is complete.

        Raises BadHello; that may be at the first byte already. Never call it again after that.
        """
        self._taken += data
        while not self._complete and self._record():
            if len(self._hello) >= 4:
                self._message()
        return self._complete

    def _record(self) -> bool:
        """Add the next record to the hello; False if there is none yet."""
        head = self._taken[self._read : self._read + 5]
        if head[:1] and head[0] != _HANDSHAKE:
            raise BadHello("it does not begin with a TLS handshake")
        if head[1:2] and head[1] != 3:
            raise BadHello("it has a record of an unknown TLS version")
        if len(head) < 5:
            return False
        length = int.from_bytes(head[3:5])
        if not 0 < length <= _RECORD_LIMIT:
            raise BadHello("it has a record of an impossible length")
        end = self._read + 5 + length
        if len(self._taken) < end:
            return False
        self._hello += memoryview(self._taken)[self._read + 5 : end]
        self._read = end
        self._records += 1
        if self._records > RECORDS_LIMIT:
            raise BadHello(f"its hello has more than {RECORDS_LIMIT} records")
        return True

    def _message(self) -> None:
        if self._hello[0] != _CLIENT_HELLO:
            raise BadHello("its first message is no ClientHello")
        length = int.from_bytes(self._hello[1:4])
        if length > HELLO_LIMIT:
            raise BadHello("its ClientHello has more than 16 KiB")
        if len(self._hello) > 4 + length:
            raise BadHello("its ClientHello shares a record with something else")
        if len(self._hello) == 4 + length:
            self._parse(_Part(bytes(self._hello[4:])))
            self._complete = True

    def _parse(self, hello: "_Part") -> None:
        if hello.number(2) >> 8 != 3:
            raise BadHello("its ClientHello has an unknown TLS version")
        hello.skip(32)  # random
        if len(hello.vector(1)) > 32:  # session
            raise BadHello("its session id is too long")
        ciphers = len(hello.vector(2))
        if not ciphers or ciphers % 2:
            raise BadHello("its list of ciphers is broken")
        if not len(hello.vector(1)):  # compression
            raise BadHello("its list of compressions is empty")
        if not hello:
            return  # TLS 1.0 had no extensions
        extensions = hello.vector(2)
        hello.end()
        seen = set()
        while extensions:
            kind, body = extensions.number(2), extensions.vector(2)
            if kind in seen:
                raise BadHello("it has an extension twice")
            seen.add(kind)
            if kind == _SERVER_NAME:
                self.server_name = _server_name(body)
            elif kind == _ALPN:
                self.alpn = tuple(_protocols(body))
            elif kind == _ECH:
                self.encrypted = True


def _server_name(body: "_Part") -> str:
    names = body.vector(2)
    body.end()
    kind, name = names.number(1), names.vector(2).rest()
    if kind != 0:
        raise BadHello("its server name is of an unknown kind")
    if names:
        raise BadHello("it has several server names")
    text = name.decode("ascii", errors="replace")
    if len(name) > 254 or not _LABELS.fullmatch(text):
        raise BadHello("its server name is no name of a host")
    return text


def _protocols(body: "_Part") -> list[str]:
    protocols = body.vector(2)
    body.end()
    names = []
    while protocols:
        name = protocols.vector(1).rest()
        if not name:
            raise BadHello("it has a protocol without a name")
        if name.isascii():  # others are GREASE
            names.append(name.decode())
    return names


class _Part:
    """Bytes that are read from their beginning. Raises BadHello when there are too few."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def __len__(self) -> int:
        return len(self._data) - self._at

    def skip(self, count: int) -> bytes:
        if count > len(self):
            raise BadHello("its ClientHello ends too early")
        self._at += count
        return self._data[self._at - count : self._at]

    def number(self, size: int) -> int:
        return int.from_bytes(self.skip(size))

    def vector(self, size: int) -> "_Part":
        return _Part(self.skip(self.number(size)))

    def rest(self) -> bytes:
        return self.skip(len(self))

    def end(self) -> None:
        if self:
            raise BadHello("its ClientHello has bytes that belong to nothing")


def alert(reason: Reason) -> bytes:
    """Return the record that ends a handshake, and says why as well as TLS can."""
    description = _ALERTS.get(reason, _ACCESS_DENIED)
    return struct.pack(">BHHBB", _ALERT, _TLS_1_2, 2, _FATAL, description)

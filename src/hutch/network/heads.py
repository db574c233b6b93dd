"""Heads of HTTP/1 messages: found, read by one strict grammar, and written anew.

Stricter than RFC 9112 wherever servers are known to disagree (bare line feeds, folded lines, two
lengths, a length beside a coding): such a head is refused, never repaired. Pure; what a head means
for a connection is up to `hutch.network.http`.
"""

import base64
import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

HEAD_LIMIT: Final = 64 * 1024
"""Bytes of a head, its first line included."""
FIELDS_LIMIT: Final = 256
"""Fields of a head."""
MEMBERS_LIMIT: Final = 256
"""Members of a list that a gate reads, empty ones too: a head has room for 64 thousand commas."""
EMPTY_LINES: Final = 2
"""Empty lines that may stand before a request: old clients end a body with one."""

Fields = list[tuple[str, str]]
"""Names and values as they were written, in their order."""

_BROKEN = re.compile(rb"(?<!\r)\n|\r[^\n]|[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_METHOD = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,32}")
_TARGET = re.compile('[!"$-~\x80-\xff]+')  # printable, but for spaces and '#'
_BEYOND: Final = {byte: f"%{byte:02X}" for byte in range(0x80, 0x100)}
_VERSION = re.compile(r"HTTP/1\.[01]")
_OTHER_VERSION = re.compile(r"HTTP/[0-9](\.[0-9])?")
_STATUS = re.compile(r"HTTP/1\.([01]) ([1-9][0-9][0-9])(?: (.*))?")
_AUTHORITY = re.compile(
    r"(\[[0-9A-Fa-f:.]{2,45}\]|[A-Za-z0-9_](?:[A-Za-z0-9._-]{0,253}))(?::([0-9]{1,5}))?"
)
_ABSOLUTE = re.compile(r"(?i:http)://([^/?]*)(.*)")
_NUMBER = re.compile(r"[0-9]{1,18}")
# Other spellings of HTTP, whose requests nobody could judge once they are spoken.
_UNJUDGED = re.compile(r"h2c?|(http|spdy|tls)(/.*)?", re.IGNORECASE)
_WEBSOCKET_KEY: Final = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455, 1.3

# What a hop keeps to itself, and what is written anew.
_HOP = frozenset(
    (
        "connection",
        "content-length",
        "http2-settings",
        "keep-alive",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    )
)


class BadHead(ValueError):
    """A message that is no HTTP/1, or can be understood in two ways; says why.

    `status` is what a request like that is answered with.
    """

    def __init__(self, text: str, status: int = 400) -> None:
        super().__init__(text)
        self.status = status


class HeadReader:
    """Finds the end of one head in what comes piece by piece, looking at each byte once."""

    def __init__(self, limit: int = HEAD_LIMIT, empty_lines: int = 0) -> None:
        self._limit = limit
        self._empty_lines = empty_lines
        self._seen = 0

    def read(self, buffer: bytearray) -> list[str] | None:
        """Cut a head off the front of `buffer` and return its lines; None if it is not whole yet.

        Raises BadHead as soon as there is something that no head may have. The next head takes
        another reader.
        """
        while self._empty_lines and buffer.startswith(b"\r\n"):
            del buffer[:2]
            self._empty_lines -= 1
            self._seen = 0
        end = buffer.find(b"\r\n\r\n", max(self._seen - 3, 0))
        stop = len(buffer) if end < 0 else end + 2
        if broken := _BROKEN.search(buffer, max(self._seen - 1, 0), stop):
            what = {10: "a line feed", 13: "a carriage return"}.get(broken[0][0], "a control byte")
            raise BadHead(f"its head has {what} that stands alone")
        if stop > self._limit:
            raise BadHead(f"its head has more than {self._limit >> 10} KiB", 431)
        self._seen = stop
        if end < 0:
            return None
        lines = buffer[:end].decode("latin-1").split("\r\n")
        del buffer[: end + 4]
        return lines


def read_fields(lines: Iterable[str]) -> Fields:
    """Read the lines after the first one. Raises BadHead."""
    fields = []
    for line in lines:
        name, colon, value = line.partition(":")
        if line[:1] in (" ", "\t"):
            raise BadHead("it has a field folded into several lines")
        if not colon or not _TOKEN.fullmatch(name):
            raise BadHead("it has a field without a sound name")
        fields.append((name, value.strip(" \t")))
        if len(fields) > FIELDS_LIMIT:
            raise BadHead(f"its head has more than {FIELDS_LIMIT} fields", 431)
    return fields


def values(fields: Fields, name: str) -> list[str]:
    """Return the values of all fields of a name, which is in lower case."""
    return [value for other, value in fields if other.lower() == name]


def tokens(fields: Fields, name: str) -> list[str]:
    """Return the members of a list that one or several fields of a name hold. Raises BadHead."""
    lists = values(fields, name)
    if sum(value.count(",") + 1 for value in lists) > MEMBERS_LIMIT:
        raise BadHead(f"it has a list of more than {MEMBERS_LIMIT} members", 431)
    parts = [part.strip(" \t") for value in lists for part in value.split(",")]
    return [part for part in parts if part]


@dataclass(frozen=True, slots=True)
class RequestHead:
    """A request that can be understood in one way only.

    `host` and `port` are what Host says; `length` is None for a chunked body, and 0 without one.
    """

    method: str
    target: str
    old: bool  # HTTP/1.0
    host: str
    port: int | None
    length: int | None
    fields: Fields


@dataclass(frozen=True, slots=True)
class AnswerHead:
    """An answer's head. `length` is None without a Content-Length."""

    status: int
    reason: str
    old: bool
    length: int | None
    chunked: bool
    fields: Fields


def read_request(lines: list[str]) -> RequestHead:
    """Read a request's head. Raises BadHead."""
    method, target, old = _request_line(lines[0])
    fields = read_fields(lines[1:])
    for name, _ in fields:
        if "_" in name and name.lower().replace("_", "-") in (
            "content-length",
            "transfer-encoding",
        ):
            raise BadHead(f"some servers take its field {name} for another one")
    hosts = values(fields, "host")
    if len(hosts) != 1:
        raise BadHead("it has several Host fields" if hosts else "it has no Host field")
    host, port = _authority(hosts[0])
    if absolute := _ABSOLUTE.fullmatch(target):
        other, other_port = _authority(absolute[1])
        if (other.lower(), other_port or 80) != (host.lower(), port or 80):
            raise BadHead("its target names another host than its Host field")
        path = absolute[2]
        if not path and method == "OPTIONS":
            path = "*"
        target = path if path[:1] in ("/", "*") else "/" + path
    if target[0] != "/" and (target, method) != ("*", "OPTIONS"):
        raise BadHead("its target is neither a path nor a URL of plain HTTP")
    codings, lengths = values(fields, "transfer-encoding"), values(fields, "content-length")
    if codings:
        if old:
            raise BadHead("HTTP/1.0 has no Transfer-Encoding")
        if lengths:
            raise BadHead("it has both a Content-Length and a Transfer-Encoding")
        if [coding.lower() for coding in codings] != ["chunked"]:
            raise BadHead("it has a Transfer-Encoding other than chunked")
    if len(lengths) > 1:
        raise BadHead("it has several Content-Length fields")
    length = None if codings else _number(lengths[0]) if lengths else 0
    return RequestHead(method, target, old, host, port, length, fields)


def _request_line(line: str) -> tuple[str, str, bool]:
    """Return the method, the target and whether it is HTTP/1.0."""
    if line.startswith("PRI * HTTP/2"):
        raise BadHead("HTTP/2 without TLS cannot be judged: speak HTTP/1.1", 505)
    parts = line.split(" ")
    if len(parts) != 3 or not _METHOD.fullmatch(parts[0]):
        raise BadHead("its first line is no request of HTTP/1")
    method, target, version = parts
    if not _VERSION.fullmatch(version):
        known = _OTHER_VERSION.fullmatch(version)
        raise BadHead("its version of HTTP is not spoken here", 505 if known else 400)
    if method == "CONNECT":
        raise BadHead("CONNECT is for proxies: connect to the server itself", 405)
    if not _TARGET.fullmatch(target):
        raise BadHead("its target has characters that no target has")
    return method, target.translate(_BEYOND), version[-1] == "0"


def _authority(text: str) -> tuple[str, int | None]:
    found = _AUTHORITY.fullmatch(text)
    if not found:
        raise BadHead("what it names as its host is no host")
    port = int(found[2]) if found[2] else None
    if port is not None and not 0 < port < 65536:
        raise BadHead("what it names as its port is no port")
    return found[1], port


def _number(text: str) -> int:
    if not _NUMBER.fullmatch(text):
        raise BadHead("its Content-Length is no number")
    return int(text)


def read_answer(lines: list[str]) -> AnswerHead:
    """Read an answer's head. Raises BadHead."""
    found = _STATUS.fullmatch(lines[0])
    if not found:
        raise BadHead("its first line is no answer of HTTP/1")
    fields = read_fields(lines[1:])
    codings, lengths = values(fields, "transfer-encoding"), set(values(fields, "content-length"))
    if codings:
        if lengths:
            raise BadHead("it has both a Content-Length and a Transfer-Encoding")
        if [coding.lower() for coding in codings] != ["chunked"] or found[1] == "0":
            raise BadHead("it has a Transfer-Encoding other than chunked")
    if len(lengths) > 1:
        raise BadHead("it has several lengths")
    length = _number(lengths.pop()) if lengths else None
    return AnswerHead(int(found[2]), found[3] or "", found[1] == "0", length, bool(codings), fields)


def end_to_end(fields: Fields, *dropped: str) -> Fields:
    """Return the fields that are for the far end: all but those of a hop, and those `dropped`.

    Raises BadHead.
    """
    named = {token.lower() for token in tokens(fields, "connection")}
    gone = _HOP.union(named, dropped)
    return [(name, value) for name, value in fields if name.lower() not in gone]


def write(first: str, fields: Fields) -> bytes:
    """Write a head."""
    lines = [first, *(f"{name}: {value}" for name, value in fields), "", ""]
    return "\r\n".join(lines).encode("latin-1")


def write_answer(head: AnswerHead, fields: Fields) -> bytes:
    """Write an answer's head with other fields."""
    return write(f"HTTP/1.1 {head.status} {head.reason}", fields)


def check_websocket(head: AnswerHead, key: str) -> None:
    """Raise BadHead if an answer to a websocket's key is not the one to it."""
    digest = hashlib.sha1(f"{key}{_WEBSOCKET_KEY}".encode("latin-1")).digest()
    if values(head.fields, "sec-websocket-accept") != [base64.b64encode(digest).decode()]:
        raise BadHead("it is not that of a websocket")


def upgrade_of(head: RequestHead) -> str | None:
    """Return the protocol that a request wants to go on with, if it may."""
    asked = {token.lower() for token in tokens(head.fields, "connection")}
    if head.old or "upgrade" not in asked:
        return None
    for token in tokens(head.fields, "upgrade"):
        if _UNJUDGED.fullmatch(token):
            continue
        if token.lower() != "websocket":
            return token
        if len(values(head.fields, "sec-websocket-key")) == 1:
            return "websocket"
    return None

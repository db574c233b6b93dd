"""DNS messages (RFC 1035, 3596, 2782, 3403, 8659, 6891): bytes to values and back.

Names are text: labels joined by dots, without the last one, in the case that was sent; whatever is
no plain character is written as \\DDD. The root is "". Both sides of the gateway are hostile, so
that reading is strict and bounded in time and memory: a message holds one question and RECORDS
records and STRINGS strings at most, and pointers only lead backwards. It knows no policy.
"""

import struct
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from enum import IntEnum
from ipaddress import IPv4Address, IPv6Address
from typing import Final

HEADER: Final = struct.Struct("!6H")
MESSAGE_LIMIT: Final = 65535
PLAIN_LIMIT: Final = 512
"""What a datagram holds at most, for those who do not say that they take more."""
EDNS_LIMIT: Final = 1232
"""What a datagram of ours holds at most: it is never taken to pieces on its way."""
RECORDS: Final = 256
STRINGS: Final = 1024
"""Strings of all records of a message: four for each of the most records that are read."""
POINTERS: Final = 64
NAME_BYTES: Final = 255
LABEL_BYTES: Final = 63

OPT: Final = 41
TSIG: Final = 250


class Type(IntEnum):
    """Types of records that are taken apart, or judged by what they are."""

    A = 1
    NS = 2
    CNAME = 5
    SOA = 6
    NULL = 10
    PTR = 12
    HINFO = 13
    MX = 15
    TXT = 16
    AAAA = 28
    SRV = 33
    NAPTR = 35
    SVCB = 64
    HTTPS = 65
    TKEY = 249
    IXFR = 251
    AXFR = 252
    MAILB = 253
    MAILA = 254
    ANY = 255
    CAA = 257


class Code(IntEnum):
    """What became of a query (RCODE)."""

    NOERROR = 0
    FORMERR = 1
    SERVFAIL = 2
    NXDOMAIN = 3
    NOTIMP = 4
    REFUSED = 5
    BADVERS = 16


class Detail(IntEnum):
    """Extended errors (RFC 8914)."""

    BLOCKED = 15
    NO_REACHABLE_AUTHORITY = 22


INTERNET: Final = 1
QUERY: Final = 0
_EXTENDED_ERROR: Final = 15

Field = int | str | bytes | IPv4Address | IPv6Address


class FormatError(ValueError):
    """What was read is no DNS message, or one beyond the limits.

    `identity` is the message's id when that much could be read.
    """

    def __init__(self, text: str, identity: int | None = None) -> None:
        super().__init__(text)
        self.identity = identity


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked. `type` may be any number."""

    name: str
    type: int
    kind: int = INTERNET  # the class


@dataclass(frozen=True, slots=True)
class Record:
    """A resource record; `data` has the fields of its type, or all its bytes when it is unknown."""

    name: str
    type: int
    ttl: int
    data: tuple[Field, ...]
    kind: int = INTERNET


@dataclass(frozen=True, slots=True)
class Edns:
    """The extension of a message: the datagram that its sender takes, and its options."""

    size: int = EDNS_LIMIT
    version: int = 0
    options: tuple[tuple[int, bytes], ...] = ()


@dataclass(frozen=True, slots=True)
class Message:
    """A query or an answer. What stands in no field here (AD, CD, DO, Z) is dropped."""

    identity: int
    question: Question | None
    response: bool = False
    operation: int = QUERY
    code: int = Code.NOERROR
    authoritative: bool = False
    truncated: bool = False
    recursion_desired: bool = True
    recursion_available: bool = False
    answers: tuple[Record, ...] = ()
    authority: tuple[Record, ...] = ()
    additional: tuple[Record, ...] = ()
    edns: Edns | None = None


def extended_error(detail: Detail, text: str = "") -> tuple[int, bytes]:
    """Return the option of an answer that says why it is what it is."""
    return _EXTENDED_ERROR, struct.pack("!H", detail) + text.encode()[:128]


def told(message: Message) -> str:
    """Return why a message is what it is, if its sender says so: one line, of little length."""
    for code, raw in message.edns.options if message.edns else ():
        if code == _EXTENDED_ERROR and len(raw) > 2:
            text = raw[2:130].decode(errors="replace")
            return "".join(one for one in text if one.isprintable())
    return ""


# What the data of a type is made of, one letter a field: 1, 2 and 4 are numbers of so many bytes, n
# a name that may be compressed, N one that must not be written so, s a string, S strings to the
# end, b bytes to the end, a and A addresses.
_LAYOUTS: Final[dict[int, str]] = {
    Type.A: "a",
    Type.NS: "n",
    Type.CNAME: "n",
    Type.SOA: "nn44444",
    Type.PTR: "n",
    Type.HINFO: "ss",
    Type.MX: "2n",
    Type.TXT: "S",
    Type.AAAA: "A",
    Type.SRV: "222N",
    Type.NAPTR: "22sssN",
    Type.CAA: "1sb",
}
_NUMBERS: Final = {"1": 1, "2": 2, "4": 4}
_PLAIN: Final = frozenset(range(0x21, 0x7F)) - set(b".\\")


class _Reader:
    """A place in a message."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0
        self._strings = 0
        self._names: dict[int, tuple[list[str], int]] = {}

    def take(self, count: int, end: int) -> bytes:
        if self.at + count > end:
            raise FormatError("a field ends after what holds it")
        self.at += count
        return self.data[self.at - count : self.at]

    def number(self, size: int, end: int) -> int:
        return int.from_bytes(self.take(size, end), "big")

    def string(self, end: int) -> bytes:
        self._strings += 1
        if self._strings > STRINGS:
            raise FormatError("more strings than are read")
        return self.take(self.number(1, end), end)

    def name(self, end: int) -> str:
        """Read a name. A pointer must lead to before the labels that it ends, so that each jump
        goes back, and the bytes of a name are limited. What stands at a place is read once.
        """
        labels: list[str] = []
        data, at, start, size = self.data, self.at, self.at, 1
        passed = [(at, 0, size)]  # places that pointers may lead to, and what was before them
        after: int | None = None
        while True:
            if at >= end:
                raise FormatError("a name ends after what holds it")
            length = data[at]
            if length == 0:
                at += 1
                break
            if length >= 0xC0:
                if at + 2 > end:
                    raise FormatError("a name ends after what holds it")
                target = (length & 0x3F) << 8 | data[at + 1]
                after = at + 2 if after is None else after
                if target >= start or target < HEADER.size or len(passed) > POINTERS:
                    raise FormatError("a name has a pointer that leads forward, or too many")
                if (known := self._names.get(target)) is not None:
                    labels += known[0]
                    size += known[1] - 1
                    break
                passed.append((target, len(labels), size))
                at = start = target
                end = len(data)
                continue
            if length > LABEL_BYTES:
                raise FormatError("a name has a label of an unknown kind")
            size += length + 1
            if size > NAME_BYTES or at + 1 + length > end:
                raise FormatError("a name is too long")
            labels.append(_text(data[at + 1 : at + 1 + length]))
            at += 1 + length
        if size > NAME_BYTES:
            raise FormatError("a name is too long")
        for place, count, before in passed:
            self._names[place] = labels[count:], size - before + 1
        self.at = at if after is None else after
        return ".".join(labels)

    def field(self, letter: str, end: int) -> Field:
        if size := _NUMBERS.get(letter):
            return self.number(size, end)
        if letter in "nN":
            return self.name(end)
        if letter == "s":
            return self.string(end)
        if letter == "a":
            return IPv4Address(self.take(4, end))
        if letter == "A":
            return IPv6Address(self.take(16, end))
        return self.take(end - self.at, end)

    def fields(self, layout: str, end: int) -> tuple[Field, ...]:
        """Read the data of a record, which has to be all of it."""
        found: list[Field] = []
        for letter in layout:
            if letter == "S":
                found.append(self.string(end))
                while self.at < end:
                    found.append(self.string(end))
            else:
                found.append(self.field(letter, end))
        if self.at != end:
            raise FormatError("a record has more data than its type")
        return tuple(found)

    def record(self) -> tuple[Record, bytes]:
        """Read a record; also returns its data as it was sent."""
        total = len(self.data)
        name = self.name(total)
        kind_of, kind, ttl, size = struct.unpack("!HHIH", self.take(10, total))
        raw = self.data[self.at : self.at + size]
        end = self.at + size
        if end > total:
            raise FormatError("a record ends after the message")
        layout = _LAYOUTS.get(kind_of, "b") if kind == INTERNET else "b"
        data = self.fields(layout, end)
        return Record(name, kind_of, ttl if ttl < 1 << 31 else 0, data, kind), raw


def _text(label: bytes) -> str:
    if _PLAIN.issuperset(label):
        return label.decode("ascii")
    return "".join(chr(byte) if byte in _PLAIN else f"\\{byte:03d}" for byte in label)


def _label(text: str) -> bytes:
    if "\\" not in text:
        return text.encode("ascii")
    out = bytearray()
    at = 0
    while at < len(text):
        if text[at] == "\\":
            out.append(int(text[at + 1 : at + 4]))
            at += 4
        else:
            out += text[at].encode("ascii")
            at += 1
    return bytes(out)


def wire_name(name: str) -> bytes:
    """Return a name as it is sent, uncompressed. Raises ValueError."""
    out = bytearray()
    for part in name.split(".") if name else ():
        label = _label(part)
        if not 0 < len(label) <= LABEL_BYTES:
            raise ValueError(f"{name!r} has an empty label, or one that is too long")
        out.append(len(label))
        out += label
    out.append(0)
    if len(out) > NAME_BYTES:
        raise ValueError(f"{name!r} is too long for a name")
    return bytes(out)


def decode(data: bytes) -> Message:
    """Read a message. Raises FormatError for whatever is not exactly one."""
    if len(data) < HEADER.size:
        raise FormatError("shorter than a header")
    identity, flags, questions, *counts = HEADER.unpack_from(data)
    try:
        if len(data) > MESSAGE_LIMIT:
            raise FormatError("longer than any message")
        if questions > 1 or sum(counts) > RECORDS:
            raise FormatError("more questions or records than are read")
        reader = _Reader(data)
        reader.at = HEADER.size
        question = None
        if questions:
            name = reader.name(len(data))
            question = Question(name, reader.number(2, len(data)), reader.number(2, len(data)))
        sections: list[tuple[Record, ...]] = []
        edns: Edns | None = None
        high = 0
        for count in counts:
            found = []
            for _ in range(count):
                record, raw = reader.record()
                if record.type != OPT:
                    found.append(record)
                    continue
                if edns is not None or record.name or len(sections) != 2:
                    raise FormatError("a message is extended twice, or in the wrong place")
                edns, high = _edns(record, raw, data, reader.at)
            sections.append(tuple(found))
        if reader.at != len(data):
            raise FormatError("something follows the last record")
    except FormatError as failure:
        raise FormatError(str(failure), identity) from None
    return Message(
        identity,
        question,
        response=bool(flags & 0x8000),
        operation=flags >> 11 & 15,
        code=flags & 15 | high << 4,
        authoritative=bool(flags & 0x0400),
        truncated=bool(flags & 0x0200),
        recursion_desired=bool(flags & 0x0100),
        recursion_available=bool(flags & 0x0080),
        answers=sections[0],
        authority=sections[1],
        additional=sections[2],
        edns=edns,
    )


def _edns(record: Record, raw: bytes, data: bytes, end: int) -> tuple[Edns, int]:
    """Return an OPT record's meaning, and the upper bits of the code."""
    (ttl,) = struct.unpack_from("!I", data, end - len(raw) - 6)  # all 32 bits have a meaning here
    options = []
    at = 0
    while at < len(raw):
        if at + 4 > len(raw):
            raise FormatError("an option ends after its record")
        code, size = struct.unpack_from("!HH", raw, at)
        if at + 4 + size > len(raw):
            raise FormatError("an option ends after its record")
        options.append((code, raw[at + 4 : at + 4 + size]))
        at += 4 + size
    return Edns(record.kind, ttl >> 16 & 255, tuple(options)), ttl >> 24


class _TooLongError(Exception):
    """A message that does not fit: no more of it is written."""


class _Writer:
    """A message that grows up to a limit, and where names stand in it."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.out = bytearray(HEADER.size)
        self._places: dict[str, int] = {}

    def name(self, name: str, compress: bool = True) -> None:
        """Write a name, its end as a pointer where it stands already, in the same case."""
        if compress and (place := self._places.get(name)) is not None:
            self.out += struct.pack("!H", 0xC000 | place)
            return
        wire_name(name)  # checks it
        parts = name.split(".") if name else []
        for index in range(len(parts)):
            rest = ".".join(parts[index:])
            if compress and (place := self._places.get(rest)) is not None:
                self.out += struct.pack("!H", 0xC000 | place)
                return
            if len(self.out) < 0x4000:
                self._places.setdefault(rest, len(self.out))
            label = _label(parts[index])
            self.out.append(len(label))
            self.out += label
        self.out.append(0)

    def string(self, value: bytes) -> None:
        if len(value) > 255:
            raise ValueError("a string is too long")
        self.out.append(len(value))
        self.out += value

    def field(self, letter: str, value: Field) -> None:
        if isinstance(value, int):
            self.out += value.to_bytes(_NUMBERS[letter], "big")
        elif isinstance(value, str):
            self.name(value, compress=letter == "n")
        elif isinstance(value, IPv4Address | IPv6Address):
            self.out += value.packed
        elif letter in "sS":
            self.string(value)
        else:
            self.out += value

    def record(self, record: Record) -> None:
        self.name(record.name)
        self.out += struct.pack("!HHIH", record.type, record.kind, record.ttl, 0)
        start = len(self.out)
        layout = _LAYOUTS.get(record.type, "b") if record.kind == INTERNET else "b"
        if layout == "S":
            layout = "S" * len(record.data)
        for letter, value in zip(layout, record.data, strict=True):
            self.field(letter, value)
            if len(self.out) > self.limit:
                raise _TooLongError
        size = len(self.out) - start
        self.out[start - 2 : start] = size.to_bytes(2, "big")


def encode(message: Message, limit: int = MESSAGE_LIMIT) -> bytes:
    """Return a message as it is sent, in `limit` bytes.

    One that would be longer is sent without its records, as truncated. Raises ValueError for what
    cannot be written.
    """
    short = replace(message, truncated=True, answers=(), authority=(), additional=())
    for one in (message, short):
        with suppress(_TooLongError):
            return _encode(one, limit)
    return _encode(replace(short, edns=None), MESSAGE_LIMIT)


def _encode(message: Message, limit: int) -> bytes:
    writer = _Writer(limit)
    if (question := message.question) is not None:
        writer.name(question.name)
        writer.out += struct.pack("!HH", question.type, question.kind)
    sections: list[Sequence[Record]] = [message.answers, message.authority, message.additional]
    for record in (record for section in sections for record in section):
        writer.record(record)
    counts = [len(section) for section in sections]
    if (edns := message.edns) is not None:
        options = b"".join(struct.pack("!HH", code, len(raw)) + raw for code, raw in edns.options)
        ttl = message.code >> 4 << 24 | edns.version << 16
        writer.out += b"\0" + struct.pack("!HHIH", OPT, edns.size, ttl, len(options)) + options
        counts[2] += 1
    flags = (
        message.response << 15
        | message.operation << 11
        | message.authoritative << 10
        | message.truncated << 9
        | message.recursion_desired << 8
        | message.recursion_available << 7
        | message.code & 15
    )
    HEADER.pack_into(writer.out, 0, message.identity, flags, question is not None, *counts)
    if len(writer.out) > limit:
        raise _TooLongError
    return bytes(writer.out)


def framed(data: bytes) -> bytes:
    """Return a message as it is sent over TCP."""
    return len(data).to_bytes(2, "big") + data

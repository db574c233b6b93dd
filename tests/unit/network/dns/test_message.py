"""Our DNS messages, compared with those of RFCs, with dnspython's, and under hostile bytes."""

import struct
from collections.abc import Callable
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address

import dns.exception
import dns.message
import dns.rdata
import dns.rdatatype
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hutch.network.dns import message as wire
from hutch.network.dns.message import (
    STRINGS,
    Code,
    Detail,
    Edns,
    FormatError,
    Message,
    Question,
    Record,
    Type,
    _Writer,
    decode,
    encode,
    extended_error,
)

HEAD = struct.Struct("!6H")


# A busy machine is slow to make messages up, too.
unhurried = settings(suppress_health_check=[HealthCheck.too_slow])
fewer = settings(unhurried, max_examples=50)


def response(body: bytes, questions: int = 1, answers: int = 0, authority: int = 0, more: int = 0):
    return HEAD.pack(7, 0x8180, questions, answers, authority, more) + body


A_QUESTION = b"\x01a\x00\x00\x01\x00\x01"


def test_a_query_has_the_bytes_of_the_rfc() -> None:
    sent = encode(Message(0x1234, Question("www.example.com", Type.A)))
    assert sent.hex() == ("12340100000100000000000003777777076578616d706c6503636f6d0000010001")
    assert decode(sent) == Message(0x1234, Question("www.example.com", Type.A))


def test_names_are_read_by_their_pointers_as_in_rfc_1035() -> None:
    # 4.1.4: F.ISI.ARPA at 20, FOO.F.ISI.ARPA at 40 that ends in a pointer to it, ARPA, the root.
    data = bytearray(93)
    data[20:32] = b"\x01F\x03ISI\x04ARPA\x00"
    data[40:46] = b"\x03FOO\xc0\x14"
    data[64:66] = b"\xc0\x1a"
    data[92:93] = b"\x00"
    reader = wire._Reader(bytes(data))
    names = []
    for reader.at in (20, 40, 64, 92):
        names.append(reader.name(len(data)))
    assert names == ["F.ISI.ARPA", "FOO.F.ISI.ARPA", "ARPA", ""]
    assert reader.at == 93


RECORDS = [
    Record("a.test", Type.A, 60, (IPv4Address("192.0.2.1"),)),
    Record("a.test", Type.AAAA, 60, (IPv6Address("2001:db8::1"),)),
    Record("a.test", Type.CNAME, 60, ("b.a.test",)),
    Record("a.test", Type.NS, 60, ("ns.a.test",)),
    Record("a.test", Type.PTR, 60, ("p.test",)),
    Record("a.test", Type.SOA, 60, ("ns.a.test", "root.a.test", 1, 2, 3, 4, 2**32 - 1)),
    Record("a.test", Type.MX, 60, (10, "mail.a.test")),
    Record("a.test", Type.TXT, 60, (b"one", b"", b"\x00\xff")),
    Record("a.test", Type.SRV, 60, (1, 2, 27017, "mongo.a.test")),
    Record("a.test", Type.NAPTR, 60, (1, 2, b"s", b"SIP+D2U", b"", "_sip._udp.a.test")),
    Record("a.test", Type.CAA, 60, (128, b"issue", b"ca.test; account=1")),
    Record("a.test", Type.HINFO, 60, (b"RFC8482", b"")),
    Record("a.test", 4711, 60, (b"\x01\x02",)),
]


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: str(record.type))
def test_records_are_what_dnspython_makes_of_them(record: Record) -> None:
    said = Message(9, Question("a.test", record.type), response=True, answers=(record,))
    theirs = dns.message.from_wire(encode(said))
    assert theirs.answer[0].ttl == 60
    assert theirs.answer[0].name.to_text() == "a.test."
    assert decode(theirs.to_wire()) == said
    assert decode(encode(said)) == said


def test_an_extension_is_what_dnspython_makes_of_it() -> None:
    said = Message(
        9,
        Question("a.test", Type.A),
        response=True,
        code=Code.BADVERS,
        edns=Edns(size=1400, options=(extended_error(Detail.BLOCKED, "by rule x"), (3, b"id"))),
    )
    theirs = dns.message.from_wire(encode(said))
    assert (theirs.edns, theirs.payload, theirs.rcode()) == (0, 1400, Code.BADVERS)
    assert next(str(option) for option in theirs.options) == "EDE 15 (Blocked): by rule x"
    assert decode(encode(said)) == said
    assert wire.told(said) == "by rule x"


def test_flags_that_nobody_may_trust_are_dropped() -> None:
    query = dns.message.make_query("a.test", "A", want_dnssec=True)
    query.flags |= dns.flags.AD | dns.flags.CD
    assert encode(decode(query.to_wire()))[3] & 0x30 == 0


@pytest.mark.parametrize(
    ("name", "sent"),
    [
        ("", b"\0"),
        ("A.b", b"\x01A\x01b\0"),
        ("a\\046b.c", b"\x03a.b\x01c\0"),
        ("\\000\\092\\255", b"\x03\0\\\xff\0"),
        ("a" * 63, b"\x3f" + b"a" * 63 + b"\0"),
    ],
)
def test_names_of_any_bytes(name: str, sent: bytes) -> None:
    assert wire.wire_name(name) == sent
    assert decode(response(sent + b"\0\1\0\1")).question == Question(name, 1)


@pytest.mark.parametrize("name", ["a..b", ".", "a.", "a" * 64, ".".join(["a" * 63] * 4)])
def test_names_that_cannot_be_sent(name: str) -> None:
    with pytest.raises(ValueError, match=r"label|long"):
        encode(Message(1, Question(name, 1)))


BROKEN: dict[str, bytes] = {
    "nothing": b"",
    "half a header": b"\0" * 11,
    "no question": response(b""),
    "half a question": response(b"\x01a\x00\x00\x01\x00"),
    "two questions": response(A_QUESTION * 2, questions=2),
    "more than the question": response(A_QUESTION + b"\0"),
    "a label beyond the end": response(b"\x3fa\0\0\1\0\1"),
    "a label of another kind": response(b"\x40a\0\0\1\0\1"),
    "a pointer to itself": response(b"\xc0\x0c\0\1\0\1"),
    "a pointer forward": response(b"\xc0\x0e\x01a\0\0\1\0\1"),
    "a pointer into the header": response(b"\xc0\x00\0\1\0\1"),
    "a pointer to its own labels": response(b"\x01a\xc0\x0c\0\1\0\1"),
    "half a pointer": response(b"\x01a\xc0"),
    "a name of 256 bytes": response(
        b"\x3f" + b"a" * 63 * 1 + (b"\x3f" + b"a" * 63) * 3 + b"\0\0\1\0\1"
    ),
    "more records than there are": response(A_QUESTION, answers=1),
    "a record that ends early": response(A_QUESTION + b"\0\0\1\0\1\0\0\0\1\0\4\1\2\3", answers=1),
    "an address of 3 bytes": response(A_QUESTION + b"\0\0\1\0\1\0\0\0\1\0\3\1\2\3", answers=1),
    "an address of 5 bytes": response(A_QUESTION + b"\0\0\1\0\1\0\0\0\1\0\5\1\2\3\4\5", answers=1),
    "a text without strings": response(A_QUESTION + b"\0\0\x10\0\1\0\0\0\1\0\0", answers=1),
    "a string beyond its record": response(A_QUESTION + b"\0\0\x10\0\1\0\0\0\1\0\2\5a", answers=1),
    "a name beyond its record": response(A_QUESTION + b"\0\0\5\0\1\0\0\0\1\0\1\1a\0", answers=1),
    "extended as an answer": response(A_QUESTION + b"\0\0\x29\4\xd0\0\0\0\0\0\0", answers=1),
    "extended twice": response(A_QUESTION + b"\0\0\x29\4\xd0\0\0\0\0\0\0" * 2, more=2),
    "extended by a name": response(A_QUESTION + b"\1a\0\0\x29\4\xd0\0\0\0\0\0\0", more=1),
    "half an option": response(A_QUESTION + b"\0\0\x29\4\xd0\0\0\0\0\0\3\0\1\0", more=1),
    "an option beyond its end": response(
        A_QUESTION + b"\0\0\x29\4\xd0\0\0\0\0\0\4\0\1\0\1", more=1
    ),
    "too many records": response(A_QUESTION + b"\0\0\2\0\1\0\0\0\1\0\1\0" * 257, answers=257),
    "too long": response(A_QUESTION + b"\0" * 65536),
}


@pytest.mark.parametrize("data", BROKEN.values(), ids=BROKEN.keys())
def test_whatever_is_not_exactly_a_message_is_refused(data: bytes) -> None:
    with pytest.raises(FormatError) as caught:
        decode(data)
    assert caught.value.identity == (7 if len(data) >= 12 else None)


def test_a_chain_of_pointers_is_followed_so_far_only() -> None:
    def chained(count: int) -> bytes:
        """Records whose data are pointers, each to the one before, and whose last is a name's."""
        body = bytearray(A_QUESTION)
        target = 12
        for _ in range(count):
            body += b"\0\0\xff\0\1\0\0\0\1\0\2"  # of an unknown type: nothing follows them here
            body += struct.pack("!H", 0xC000 | target)
            target = 12 + len(body) - 2
        body += struct.pack("!H", 0xC000 | target) + b"\0\1\0\1\0\0\0\1\0\4\1\2\3\4"
        return response(bytes(body), answers=count + 1)

    assert decode(chained(wire.POINTERS - 1)).answers[-1].name == "a"
    with pytest.raises(FormatError):
        decode(chained(wire.POINTERS))


def test_what_pointers_lead_to_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name of many labels costs the same however often it is pointed to."""
    read: list[bytes] = []
    plain_text = wire._text
    monkeypatch.setattr(wire, "_text", lambda label: read.append(label) or plain_text(label))
    body = bytearray(b"\1a\0\0\1\0\1")
    target = 12
    for _ in range(60):
        body += b"\0\0\xff\0\1\0\0\0\1\0\6" + struct.pack("!4sH", b"\1b\1c", 0xC000 | target)
        target = 12 + len(body) - 6
    name = struct.pack("!H", 0xC000 | target)
    body += (name + b"\0\6\0\1\0\0\0\1\0\x18" + name * 2 + bytes(20)) * 190
    said = decode(response(bytes(body), answers=250))
    assert said.answers[-1].data[1] == said.answers[-1].name == "b.c." * 60 + "a"
    assert len(read) == 121


def test_what_does_not_fit_is_sent_without_its_records() -> None:
    records = tuple(Record("a.test", Type.TXT, 1, (bytes([one]) * 200,)) for one in range(4))
    said = Message(3, Question("a.test", Type.TXT), True, answers=records, edns=Edns())
    assert len(encode(said)) > 512
    short = decode(encode(said, 512))
    assert (short.truncated, short.answers, short.edns) == (True, (), Edns())
    assert short.question == said.question


def test_names_are_written_once() -> None:
    said = Message(
        3,
        Question("Host.example.com", Type.MX),
        True,
        answers=(
            Record("Host.example.com", Type.MX, 1, (1, "mail.example.com")),
            Record("Host.example.com", Type.SRV, 1, (1, 1, 1, "mail.example.com")),
        ),
    )
    data = encode(said)
    assert decode(data) == said
    assert data.count(b"Host") == 1
    assert data.count(b"\x07example") == 2, "that of an SRV record is written out (RFC 2782)"
    assert dns.message.from_wire(data).answer[1][0].target.to_text() == "mail.example.com."


labels = st.binary(min_size=1, max_size=20).map(wire._text)
plain = st.text("abcXYZ019-_", min_size=1, max_size=20)
names = st.lists(labels | plain, max_size=6).map(".".join)
ttls = st.integers(0, 2**31 - 1)


def numbers(bits: int) -> st.SearchStrategy[int]:
    return st.integers(0, 2**bits - 1)


def strings() -> st.SearchStrategy[bytes]:
    return st.binary(max_size=40)


def datas(kind: int) -> st.SearchStrategy[tuple[wire.Field, ...]]:
    fields: dict[str, Callable[[], st.SearchStrategy[wire.Field]]] = {
        "1": lambda: numbers(8),
        "2": lambda: numbers(16),
        "4": lambda: numbers(32),
        "n": lambda: names,
        "N": lambda: names,
        "s": strings,
        "b": strings,
        "a": lambda: numbers(32).map(IPv4Address),
        "A": lambda: numbers(128).map(IPv6Address),
    }
    layout = wire._LAYOUTS.get(kind, "b")
    if layout == "S":
        return st.lists(strings(), min_size=1, max_size=4).map(tuple)
    return st.tuples(*(fields[letter]() for letter in layout))


records = st.sampled_from([*wire._LAYOUTS, 99, 4711]).flatmap(
    lambda kind: st.builds(Record, names, st.just(kind), ttls, datas(kind))
)
sections = st.lists(records, max_size=3).map(tuple)
messages = st.builds(
    Message,
    numbers(16),
    st.none() | st.builds(Question, names, numbers(16), numbers(16)),
    response=st.booleans(),
    operation=numbers(4),
    code=numbers(4),
    authoritative=st.booleans(),
    truncated=st.booleans(),
    recursion_desired=st.booleans(),
    recursion_available=st.booleans(),
    answers=sections,
    authority=sections,
    additional=sections,
    edns=st.none()
    | st.builds(
        Edns, numbers(16), numbers(8), st.lists(st.tuples(numbers(16), strings())).map(tuple)
    ),
)


@given(messages)
@fewer
def test_what_was_written_is_read_again(said: Message) -> None:
    assert decode(encode(said)) == said


@given(messages.map(encode), st.data())
@fewer
def test_hostile_bytes_are_refused_or_read(data: bytes, choice: st.DataObject) -> None:
    broken = bytearray(data)
    for _ in range(choice.draw(st.integers(0, 4))):
        at = choice.draw(st.integers(0, len(broken) - 1))
        broken[at] = choice.draw(st.sampled_from([0, 1, 12, 63, 64, 0xC0, 0xFF]) | numbers(8))
    cut = bytes(broken[: choice.draw(st.integers(0, len(broken)))])
    try:
        read = decode(cut)
    except FormatError:
        return
    assert decode(encode(read)) == read


@given(st.binary(max_size=300))
@unhurried
def test_any_bytes_are_refused_or_read(data: bytes) -> None:
    try:
        decode(data)
    except FormatError:
        return


@given(messages.map(encode), st.data())
@fewer
def test_names_are_read_as_dnspython_does(data: bytes, choice: st.DataObject) -> None:
    """What both take for a message holds the same question and names: no parser confusion."""
    at = choice.draw(st.integers(12, len(data))) if len(data) > 12 else 12
    broken = data[:at] + choice.draw(st.binary(max_size=3)) + data[at + 3 :]
    try:
        ours = decode(broken)
        theirs = dns.message.from_wire(broken, one_rr_per_rrset=True)
    except (FormatError, dns.exception.DNSException, ValueError):
        return
    if ours.question is not None:
        asked = theirs.question[0].name.to_wire()
        assert wire.wire_name(ours.question.name) == asked
    for mine, other in zip(ours.answers, theirs.answer, strict=True):
        assert wire.wire_name(mine.name) == other.name.to_wire()
        assert mine.type == other.rdtype


def test_a_message_has_so_many_strings() -> None:
    most = Record("a.test", Type.TXT, 60, (b"x",) * STRINGS)
    assert decode(encode(Message(1, None, answers=(most,)))).answers == (most,)
    for more in (replace(most, data=(*most.data, b"")), most):
        message = Message(1, None, answers=(more, Record("b.test", Type.TXT, 60, (b"",))))
        with pytest.raises(FormatError, match="more strings"):
            decode(encode(message))


def test_what_does_not_fit_is_not_built(monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[bytes] = []
    monkeypatch.setattr(_Writer, "string", lambda writer, value: _wrote(writer, value, written))
    records = tuple(Record("a.test", Type.TXT, 60, (b"x" * 200,) * 3) for _ in range(80))
    reply = decode(encode(Message(1, Question("a.test", Type.TXT), answers=records), 512))
    assert (reply.truncated, reply.answers) == (True, ())
    assert len(written) == 3


def _wrote(writer: _Writer, value: bytes, written: list[bytes]) -> None:
    written.append(value)
    writer.out += bytes([len(value)]) + value

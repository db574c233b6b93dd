"""The gate for plain HTTP reads so much at once, and no more: all connections share one loop."""

import pytest

from hutch.network.bodies import CHUNKS
from hutch.network.http import PIPELINE, TURNS
from tests.unit.network.talk import GET, OK, Talk

POST = b"POST / HTTP/1.1\r\nHost: a.com\r\nTransfer-Encoding: chunked\r\n\r\n"
ANSWER = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
BODY = b"1\r\nx\r\n" * (3 * CHUNKS) + b"0\r\n\r\n"
PART = b"%x\r\n%b\r\n" % (CHUNKS, b"x" * CHUNKS)
END = b"0\r\n\r\n"


@pytest.fixture
def talk() -> Talk:
    return Talk()


def test_many_chunks_of_a_guest_are_read_in_turns(talk: Talk) -> None:
    gate = talk.gate
    gate.from_guest(POST + BODY + GET)
    parts = []
    while gate.unread:
        assert not gate.hears_guest
        assert gate.hears_upstream
        assert not gate.fin_upstream
        parts.append(gate.for_upstream())
        gate.read_on()
    parts.append(gate.for_upstream())
    assert parts == [POST + PART, PART, PART, END + GET]
    assert gate.hears_guest


def test_many_chunks_of_an_answer_are_read_in_turns(talk: Talk) -> None:
    gate = talk.gate
    talk.guest(GET * 2)
    gate.from_upstream(ANSWER + BODY + OK)
    parts = []
    while gate.unread:
        assert not gate.hears_upstream
        assert gate.hears_guest
        parts.append(gate.for_guest())
        gate.read_on()
    parts.append(gate.for_guest())
    assert parts == [ANSWER + PART, PART, PART, END + OK]
    assert gate.hears_upstream
    assert not gate.over


def test_a_chunk_with_what_is_no_chunk_after_it_is_refused_in_its_turn(talk: Talk) -> None:
    talk.gate.from_guest(POST + b"1\r\nx\r\n" * CHUNKS + b"wrong\r\n")
    assert not talk.refused
    talk.read_on()
    assert [refusal.status for refusal in talk.refused] == [400]
    assert talk.gate.over
    assert not talk.gate.unread


def test_many_requests_are_judged_in_turns(talk: Talk) -> None:
    talk.gate.from_guest(GET * (PIPELINE + 2))
    assert 0 < len(talk.judged) <= TURNS
    assert not talk.gate.waits_for_request
    talk.read_on()
    assert len(talk.judged) == PIPELINE
    before = len(talk.judged)
    talk.gate.from_upstream(OK * PIPELINE)
    assert len(talk.judged) - before <= TURNS
    talk.read_on()
    assert len(talk.judged) == PIPELINE + 2
    assert talk.gate.for_upstream() == GET * (PIPELINE + 2)
    assert talk.gate.for_guest() == OK * PIPELINE


def test_many_interim_answers_are_read_in_turns(talk: Talk) -> None:
    talk.guest(GET)
    interim = b"HTTP/1.1 102 X\r\n\r\n"
    talk.gate.from_upstream(interim * (3 * TURNS) + OK)
    assert talk.gate.for_guest() == interim * TURNS
    talk.read_on()
    assert talk.gate.for_guest() == interim * (2 * TURNS) + OK
    assert not talk.gate.over


def test_a_guest_that_ends_after_much_is_read_to_its_end(talk: Talk) -> None:
    talk.guest(GET * (PIPELINE + 4))
    talk.gate.guest_ended()
    talk.gate.from_upstream(OK * PIPELINE)
    talk.read_on()
    assert talk.gate.for_upstream() == GET * 4
    assert talk.gate.fin_upstream
    assert not talk.gate.over
    talk.server(OK * 4)
    assert talk.gate.over


def test_a_switch_leaves_nothing_unread(talk: Talk) -> None:
    talk.guest(
        b"GET / HTTP/1.1\r\nHost: a.com\r\nConnection: upgrade\r\nUpgrade: other\r\n\r\n",
    )
    switch = b"HTTP/1.1 101 X\r\nConnection: upgrade\r\nUpgrade: other\r\n\r\n"
    interim = b"HTTP/1.1 102 X\r\n\r\n"
    talk.gate.from_upstream(interim * (TURNS - 1) + switch + b"raw")
    talk.read_on()
    talk.gate.from_upstream(b" more")
    assert talk.gate.for_guest().endswith(b"raw more")
    assert talk.gate.hears_guest
    assert talk.gate.hears_upstream
    talk.gate.guest_ended()
    assert not talk.gate.over

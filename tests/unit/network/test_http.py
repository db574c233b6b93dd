"""The gate for plain HTTP: what goes upstream, what comes back, and when bytes pass unread."""

import pytest

from hutch.network.http import PIPELINE, Gate, Request
from hutch.networking import Decision, Reason
from tests.unit.network.talk import GET, OK, Talk


@pytest.fixture
def talk() -> Talk:
    return Talk()


@pytest.mark.parametrize("step", [1, 7, None])
def test_a_request_is_judged_and_written_anew(talk: Talk, step: int | None) -> None:
    said = talk.guest(
        b"\r\nGET http://A.com/x?y HTTP/1.1\r\n"
        b"accept:\tapplication/json \r\n"
        b"HOST:   A.com:80\r\n"
        b"Connection: keep-alive, X-Mine\r\n"
        b"X-Mine: 1\r\nX-Mine-Not: 2\r\nCookie: a\r\nCookie: b\r\n"
        b"Proxy-Connection: keep-alive\r\nTE: trailers\r\nKeep-Alive: 5\r\n\r\n",
        step,
    )
    assert said == (
        b"GET /x?y HTTP/1.1\r\nHost: A.com:80\r\naccept: application/json\r\n"
        b"X-Mine-Not: 2\r\nCookie: a\r\nCookie: b\r\n\r\n"
    )
    assert talk.judged == [Request("GET", "/x?y", "A.com", None, True)]


@pytest.mark.parametrize("step", [1, 7, None])
def test_an_answer_is_written_anew(talk: Talk, step: int | None) -> None:
    talk.guest(GET)
    said = talk.server(
        b"HTTP/1.1 200 Fine\r\nServer:  x\r\nContent-Length: 5\r\nKeep-Alive: 5\r\n"
        b"Connection: keep-alive\r\nUpgrade: h2c\r\nSet-Cookie: a\r\nSet-Cookie: b\r\n\r\nhello",
        step,
    )
    assert said == (
        b"HTTP/1.1 200 Fine\r\nServer: x\r\nSet-Cookie: a\r\nSet-Cookie: b\r\n"
        b"Content-Length: 5\r\n\r\nhello"
    )
    assert not talk.gate.over
    assert talk.guest(GET) == GET  # the connection goes on


@pytest.mark.parametrize("step", [1, 7, None])
def test_each_request_of_a_connection_is_judged(talk: Talk, step: int | None) -> None:
    both = GET + GET.replace(b"a.com", b"b.com") + GET
    assert talk.guest(both, step) == GET
    assert [request.host for request in talk.judged] == ["a.com", "b.com"]
    assert talk.gate.for_guest() == b"", "the first answer goes first"
    said = talk.server(OK)
    assert said.startswith(OK + b"HTTP/1.1 403 Forbidden\r\n")
    assert b"No b.com." in said
    assert talk.gate.over
    assert [(refusal.status, refusal.request) for refusal in talk.refused] == [
        (403, talk.judged[1])
    ]
    assert talk.guest(GET) == b""


def test_a_judge_that_fails_denies() -> None:
    def judge(request: Request) -> Decision:
        raise RuntimeError("broken")

    gate = Gate(80, judge)
    gate.from_guest(GET)
    assert gate.for_upstream() == b""
    assert gate.for_guest().startswith(b"HTTP/1.1 403 ")
    assert gate.over


def test_a_refusal_without_any_upstream(talk: Talk) -> None:
    assert talk.guest(b"HEAD / HTTP/1.1\r\nHost: b.com\r\nAccept: application/json\r\n\r\n") == b""
    said = talk.gate.for_guest()
    assert said.startswith(b"HTTP/1.1 403 ")
    assert b"application/json" in said
    assert said.endswith(b"\r\n\r\n"), "an answer to HEAD has no body"


@pytest.mark.parametrize(
    ("port", "host", "status"),
    [
        (80, b"a.com:80", None),
        (80, b"a.com:81", 403),
        (81, b"a.com:81", None),
        (81, b"a.com", None),
        (81, b"a.com:80", 403),
    ],
)
def test_a_host_names_only_the_port_of_its_connection(
    port: int, host: bytes, status: int | None
) -> None:
    talk = Talk(port)
    said = talk.guest(GET.replace(b"a.com", host))
    assert bool(said) == (status is None)
    if status:
        assert talk.refused[0].status == status
        assert talk.refused[0].decision.reason is Reason.HOST_MISMATCH


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
        (b"CONNECT a.com:443 HTTP/1.1\r\nHost: a.com:443\r\n\r\n", 405),
        (b"\x16\x03\x01\x02\x00", 400),
        (b"GET / HTTP/1.1\nHost: a.com\n\n", 400),
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: a.com\r\nExpect: 100-continue, x\r\n\r\n", 417),
        (b"GET / HTTP/1.1\r\nHost: a.com\r\nX: " + b"x" * (1 << 17), 431),
    ],
)
def test_what_cannot_be_judged_is_refused(talk: Talk, request_: bytes, status: int) -> None:
    assert talk.guest(request_) == b""
    assert talk.gate.for_guest().startswith(b"HTTP/1.1 %d " % status)
    assert talk.gate.over
    assert talk.judged == []
    assert talk.refused[0].status == status
    assert talk.refused[0].decision.reason is Reason.BAD_PROTOCOL


# Bodies


def test_a_body_goes_on_as_it_comes(talk: Talk) -> None:
    head = b"POST / HTTP/1.1\r\nHost: a.com\r\nContent-Length: 10\r\n\r\n"
    assert talk.guest(head) == head
    assert talk.guest(b"hello") == b"hello"
    assert talk.guest(b"there" + GET) == b"there" + GET


def test_chunks_are_written_anew_without_what_they_say_of_themselves(talk: Talk) -> None:
    head = b"POST / HTTP/1.1\r\nHost: a.com\r\nTransfer-Encoding: chunked\r\n\r\n"
    assert talk.guest(head + b"3;x=y\r\nabc\r\n2\r\nd") == head + b"4\r\nabcd\r\n"
    assert talk.guest(b"e\r\n0\r\nHost: b.com\r\n") == b"1\r\ne\r\n"
    assert talk.guest(b"\r\n" + GET) == b"0\r\n\r\n" + GET


def test_a_body_of_a_request_that_has_none_closes_the_connection(talk: Talk) -> None:
    """A server that ignores the body would take it for a request that nobody has judged."""
    inner = GET.replace(b"a.com", b"b.com")
    said = talk.guest(
        b"GET / HTTP/1.1\r\nHost: a.com\r\nContent-Length: %d\r\n\r\n" % len(inner) + inner + GET
    )
    assert b"\r\nConnection: close\r\n" in said
    assert said.endswith(inner)
    assert len(talk.judged) == 1
    assert b"Connection: close" in talk.server(OK)
    assert talk.gate.over


def test_an_expectation_is_handed_on_and_so_is_its_answer(talk: Talk) -> None:
    head = b"POST / HTTP/1.1\r\nHost: a.com\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n"
    assert talk.guest(head) == head
    go_on = b"HTTP/1.1 100 Continue\r\n\r\n"
    assert talk.server(go_on) == go_on
    assert talk.guest(b"hello") == b"hello"
    assert talk.server(OK) == OK


@pytest.mark.parametrize("step", [1, None])
def test_a_body_that_cannot_be_read_is_refused(talk: Talk, step: int | None) -> None:
    talk.guest(
        b"POST / HTTP/1.1\r\nHost: a.com\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\n", step
    )
    assert talk.gate.for_guest().startswith(b"HTTP/1.1 400 ")
    assert talk.gate.over


def test_a_body_that_cannot_be_read_breaks_an_answer_off(talk: Talk) -> None:
    talk.guest(b"POST / HTTP/1.1\r\nHost: a.com\r\nTransfer-Encoding: chunked\r\n\r\n")
    talk.server(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhe")
    talk.guest(b"x\r\n")
    assert talk.gate.broken


def test_a_body_that_cannot_be_read_after_its_answer_ends_the_connection(talk: Talk) -> None:
    talk.guest(b"POST / HTTP/1.1\r\nHost: a.com\r\nTransfer-Encoding: chunked\r\n\r\n")
    assert talk.server(OK) == OK
    talk.guest(b"x\r\n")
    assert talk.gate.over
    assert talk.gate.for_guest() == b""


def test_an_early_answer_does_not_stop_a_body(talk: Talk) -> None:
    talk.guest(b"POST / HTTP/1.1\r\nHost: a.com\r\nContent-Length: 10\r\n\r\nhello")
    assert talk.server(OK) == OK
    assert talk.guest(b"there" + GET) == b"there" + GET
    assert talk.server(OK) == OK


def test_an_early_last_answer_ends_the_connection(talk: Talk) -> None:
    talk.guest(b"POST / HTTP/1.1\r\nHost: a.com\r\nContent-Length: 10\r\n\r\nhello")
    said = b"HTTP/1.1 413 No\r\nContent-Length: 2\r\nConnection: close\r\n\r\nno"
    assert talk.server(said) == said
    assert talk.gate.over


# Answers


@pytest.mark.parametrize("step", [1, None])
@pytest.mark.parametrize(
    ("method", "answer"),
    [
        (b"HEAD", b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n"),
        (b"GET", b"HTTP/1.1 304 Not Modified\r\nContent-Length: 500\r\n\r\n"),
        (b"GET", b"HTTP/1.1 204 No Content\r\n\r\n"),
        (b"GET", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
        (b"GET", b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" + OK),
    ],
)
def test_an_answer_ends_where_it_ends(
    talk: Talk, method: bytes, answer: bytes, step: int | None
) -> None:
    talk.guest(GET.replace(b"GET", method))
    talk.guest(GET)
    assert talk.server(answer, step) == answer
    assert talk.server(OK) == OK
    assert not talk.gate.over


def test_chunks_of_an_answer_are_written_anew(talk: Talk) -> None:
    talk.guest(GET)
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    assert talk.server(head + b"1;x\r\na\r\n2\r\nbc\r\n") == head + b"3\r\nabc\r\n"
    assert talk.server(b"0\r\nDigest: x\r\n\r\n") == b"0\r\n\r\n"
    assert talk.guest(GET) == GET


def test_an_answer_without_a_length_ends_with_its_connection(talk: Talk) -> None:
    talk.guest(GET)
    said = talk.server(b"HTTP/1.0 200 OK\r\n\r\nhello")
    assert said == b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nhello"
    assert talk.server(b" there") == b" there"
    talk.gate.upstream_ended(reset=False)
    assert talk.gate.over
    assert not talk.gate.broken


@pytest.mark.parametrize(
    ("answer", "reset"),
    [
        (b"HTTP/1.1 200 OK\r\n\r\nhello", True),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhello", False),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n", False),
        (b"", True),
    ],
)
def test_an_answer_that_is_cut_off_does_not_look_whole(
    talk: Talk, answer: bytes, reset: bool
) -> None:
    talk.guest(GET)
    talk.server(answer)
    talk.gate.upstream_ended(reset=reset)
    assert talk.gate.broken


@pytest.mark.parametrize(
    "answer",
    [
        b"SSH-2.0-x\r\n\r\n",
        b"HTTP/1.1 200 OK\nContent-Length: 0\n\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"x" * (1 << 17),
        b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n",
    ],
)
def test_an_answer_that_is_none_is_a_bad_gateway(talk: Talk, answer: bytes) -> None:
    talk.guest(GET + GET)
    assert talk.server(answer).startswith(b"HTTP/1.1 502 Bad Gateway\r\n")
    assert talk.gate.over
    assert talk.refused[0].status == 502


def test_half_a_head_of_an_answer_is_a_bad_gateway(talk: Talk) -> None:
    talk.guest(GET)
    assert talk.server(b"HTTP/1.1 200 OK\r\n") == b""
    talk.gate.upstream_ended(reset=False)
    assert talk.gate.for_guest().startswith(b"HTTP/1.1 502 ")


def test_a_body_of_an_answer_that_cannot_be_read_is_broken_off(talk: Talk) -> None:
    talk.guest(GET)
    talk.server(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nx\r\n")
    assert talk.gate.broken
    assert talk.refused[0].status == 502


def test_a_server_that_says_something_unasked_ends_the_connection(talk: Talk) -> None:
    talk.guest(GET)
    assert talk.server(OK + OK) == OK
    assert talk.gate.over


def test_a_server_that_ends_without_an_answer_ends_the_connection(talk: Talk) -> None:
    talk.guest(GET)
    talk.gate.upstream_ended(reset=False)
    assert talk.gate.over
    assert (talk.gate.broken, talk.gate.for_guest()) == (False, b"")


def test_a_client_of_http_1_0_gets_what_it_understands(talk: Talk) -> None:
    said = talk.guest(
        b"POST / HTTP/1.0\r\nHost: a.com\r\nConnection: keep-alive\r\nExpect: 100-continue\r\n"
        b"Content-Length: 2\r\n\r\nhi" + GET
    )
    assert said == (
        b"POST / HTTP/1.0\r\nHost: a.com\r\nContent-Length: 2\r\nConnection: close\r\n\r\nhi"
    )
    said = talk.server(
        b"HTTP/1.1 100 Continue\r\n\r\n"
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"
    )
    assert said == b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nhello"
    assert talk.gate.over


def test_a_request_that_asks_to_close_is_the_last_one(talk: Talk) -> None:
    last = GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
    assert talk.guest(last + GET) == last
    assert talk.gate.hears_guest, "that the guest goes away is to be noticed"
    assert talk.guest(GET) == b""
    assert b"Connection: close" in talk.server(OK)
    assert talk.gate.over


def test_requests_wait_when_there_are_too_many_without_answers(talk: Talk) -> None:
    assert talk.guest(GET * (PIPELINE + 2)) == GET * PIPELINE
    assert not talk.gate.hears_guest
    talk.server(OK)
    assert talk.gate.for_upstream() == GET
    talk.server(OK * 2)
    assert talk.gate.for_upstream() == GET
    assert talk.gate.hears_guest


# Endings


def test_a_guest_that_ends_has_its_answer_still(talk: Talk) -> None:
    talk.guest(GET)
    assert not talk.gate.fin_upstream
    talk.gate.guest_ended()
    assert talk.gate.fin_upstream
    assert not talk.gate.over
    assert talk.server(OK) == OK
    assert talk.gate.over


def test_a_guest_that_ends_before_all_went_upstream(talk: Talk) -> None:
    talk.guest(GET * (PIPELINE + 1))
    talk.gate.guest_ended()
    assert not talk.gate.fin_upstream
    talk.server(OK)
    assert talk.gate.fin_upstream
    assert talk.gate.for_upstream() == GET
    talk.server(OK * PIPELINE)
    assert talk.gate.over


def test_a_guest_that_ends_within_a_head_ends_it_all(talk: Talk) -> None:
    talk.guest(GET[:-2])
    assert talk.gate.waits_for_request
    talk.gate.guest_ended()
    assert talk.gate.over
    assert talk.gate.for_upstream() == b""


def test_a_guest_that_ends_within_a_body_is_handed_on_as_one(talk: Talk) -> None:
    talk.guest(b"POST / HTTP/1.1\r\nHost: a.com\r\nContent-Length: 10\r\n\r\nhello")
    talk.gate.guest_ended()
    assert talk.gate.fin_upstream
    assert not talk.gate.over
    talk.gate.upstream_ended(reset=False)
    assert talk.gate.over


def test_a_refusal_waits_for_answers_that_may_not_come(talk: Talk) -> None:
    talk.guest(GET + GET.replace(b"a.com", b"b.com"))
    talk.gate.upstream_ended(reset=False)
    assert talk.gate.over

"""The gate for plain HTTP: when bytes pass unread, and when they do not."""

import pytest

from tests.unit.network.talk import GET, OK, Talk


@pytest.fixture
def talk() -> Talk:
    return Talk()


UPGRADE = (
    b"GET /chat HTTP/1.1\r\nHost: a.com\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
    b"Sec-WebSocket-Version: 13\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
)
SWITCH = (
    b"HTTP/1.1 101 Switching Protocols\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n"
    b"Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
)


@pytest.mark.parametrize("step", [1, None])
def test_bytes_pass_unread_after_both_sides_agreed(talk: Talk, step: int | None) -> None:
    assert talk.guest(UPGRADE + b"\0frame", step) == UPGRADE, "the frame waits"
    assert not talk.gate.hears_guest
    assert talk.judged[0].upgrade == "websocket"
    assert talk.server(SWITCH + b"\xfffirst", step) == SWITCH + b"\xfffirst"
    assert talk.gate.for_upstream() == b"\0frame"
    assert talk.gate.hears_guest
    assert talk.guest(b"\r\n\n\0") == b"\r\n\n\0"
    assert talk.server(OK) == OK
    talk.gate.guest_ended()
    assert (talk.gate.fin_upstream, talk.gate.fin_guest) == (True, False)
    talk.gate.upstream_ended(reset=False)
    assert (talk.gate.fin_guest, talk.gate.broken) == (True, False)


def test_a_tunnel_that_is_reset_is_broken(talk: Talk) -> None:
    talk.guest(UPGRADE)
    talk.server(SWITCH)
    talk.gate.upstream_ended(reset=True)
    assert talk.gate.broken


@pytest.mark.parametrize("status", [b"200 OK", b"426 Upgrade Required"])
def test_what_follows_an_upgrade_that_was_refused_is_judged(talk: Talk, status: bytes) -> None:
    inner = GET.replace(b"a.com", b"b.com")
    assert talk.guest(UPGRADE + inner) == UPGRADE
    answer = b"HTTP/1.1 %b\r\nContent-Length: 0\r\n\r\n" % status
    assert talk.server(answer).startswith(answer + b"HTTP/1.1 403 ")
    assert talk.gate.for_upstream() == b""
    assert [request.host for request in talk.judged] == ["a.com", "b.com"]


@pytest.mark.parametrize(
    "answer",
    [
        SWITCH.replace(b"s3pP", b"S3pP"),
        SWITCH.replace(b"Sec-WebSocket-Accept", b"X"),
        SWITCH.replace(b"Upgrade: websocket", b"Upgrade: h2c"),
        SWITCH.replace(b"Upgrade: websocket", b"Upgrade: websocket, h2c"),
        SWITCH.replace(b"Upgrade: websocket\r\n", b""),
    ],
)
def test_a_switch_to_something_else_opens_nothing(talk: Talk, answer: bytes) -> None:
    talk.guest(UPGRADE + GET.replace(b"a.com", b"b.com"))
    assert talk.server(answer).startswith(b"HTTP/1.1 502 ")
    assert talk.gate.for_upstream() == b""
    assert talk.gate.over


@pytest.mark.parametrize(
    "protocol",
    [b"h2c", b"H2C", b"h2", b"HTTP/2.0", b"TLS/1.0", b"tls/1.2, http/1.1", b"spdy/3.1", b""],
)
def test_other_spellings_of_http_are_not_upgraded_to(talk: Talk, protocol: bytes) -> None:
    said = talk.guest(
        b"GET / HTTP/1.1\r\nHost: a.com\r\nConnection: Upgrade, HTTP2-Settings\r\n"
        b"Upgrade: %b\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n" % protocol + GET
    )
    assert said == GET + GET
    switch = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n"
    assert talk.server(switch).startswith(b"HTTP/1.1 502 ")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"Connection: Upgrade\r\n", b""),
        (b"HTTP/1.1", b"HTTP/1.0"),
        (b"Sec-WebSocket-Key", b"X"),
    ],
)
def test_what_only_looks_like_an_upgrade_is_none(talk: Talk, old: bytes, new: bytes) -> None:
    said = talk.guest(UPGRADE.replace(old, new))
    assert b"Upgrade" not in said
    assert talk.judged[0].upgrade is None


def test_an_upgrade_is_the_only_open_request(talk: Talk) -> None:
    assert talk.guest(GET + UPGRADE + b"frame") == GET
    assert len(talk.judged) == 1
    assert not talk.gate.hears_guest
    assert talk.server(OK + SWITCH) == OK, "nobody asked for that yet"
    assert talk.gate.over


def test_an_upgrade_goes_when_the_answers_before_it_are_there(talk: Talk) -> None:
    talk.guest(GET + UPGRADE + b"frame")
    talk.gate.guest_ended()
    assert talk.server(OK) == OK
    assert talk.gate.for_upstream() == UPGRADE
    assert talk.server(SWITCH) == SWITCH
    assert talk.gate.for_upstream() == b"frame"
    assert talk.gate.fin_upstream


def test_a_switch_within_a_body_opens_nothing(talk: Talk) -> None:
    with_body = UPGRADE.replace(b"GET", b"POST").replace(
        b"\r\n\r\n", b"\r\nContent-Length: 5\r\n\r\n"
    )
    talk.guest(with_body + b"he")
    assert talk.server(SWITCH).startswith(b"HTTP/1.1 502 ")
    assert talk.guest(b"llo") == b""


def test_an_upgrade_to_something_of_ones_own(talk: Talk) -> None:
    upgrade = b"POST / HTTP/1.1\r\nHost: a.com\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n"
    assert talk.guest(upgrade.replace(b"tcp", b"h2c, tcp")) == upgrade
    switch = b"HTTP/1.1 101 UPGRADED\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n"
    assert talk.server(switch) == switch
    assert talk.guest(b"\0") == b"\0"

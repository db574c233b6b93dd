"""The gate for plain HTTP: each request of a connection is judged, then written anew.

Sans-I/O: bytes in, bytes out, for `hutch.network.carry` to move. What a request says about where it
goes is read by one strict parser, and nothing goes upstream but what that parser's result is
written as; so no server can understand it otherwise. Knows no policy: that is the judge's.
"""

import logging
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from hutch.network import answers
from hutch.network.bodies import Body, Chunked, Counted, Endless, chunk, taken
from hutch.network.heads import (
    EMPTY_LINES,
    AnswerHead,
    BadHead,
    Fields,
    HeadReader,
    RequestHead,
    check_websocket,
    end_to_end,
    read_answer,
    read_request,
    tokens,
    upgrade_of,
    values,
    write,
    write_answer,
)
from hutch.networking import Decision, Reason

log = logging.getLogger(__name__)

PIPELINE: Final = 16
"""Requests that may wait for their answers at once."""
TURNS: Final = 8
"""Heads and parts of bodies that are read at once. All connections share one loop, and 64 KiB hold
thousands of them: what is left is read when the others have had their turn."""

# Servers that ignore the body of these take it for the next request: so there must be no next one.
_BODILESS = frozenset(("DELETE", "GET", "HEAD", "OPTIONS", "TRACE"))


@dataclass(frozen=True, slots=True)
class Request:
    """A request to judge. `host` is what Host said, without the port, as it was written;
    `target` is the path with its query, or `*`.
    """

    method: str
    target: str
    host: str
    upgrade: str | None = None
    json: bool = False


@dataclass(frozen=True, slots=True)
class Refusal:
    """What was answered instead of being forwarded. `request` is None if there was no sound one."""

    status: int
    decision: Decision
    request: Request | None = None


@dataclass(slots=True, eq=False)
class _Exchange:
    """A request that went upstream, and how far it is with its answer."""

    request: Request
    old: bool
    last: bool  # nothing of the guest is read after it
    key: str | None = None  # of a websocket
    sent: bool = False  # to its end
    begun: bool = False  # its answer


class Gate:
    """Stands between a guest and a server of HTTP/1 (a `hutch.network.carry.Between`).

    `judge` is asked for each request before a byte of it goes upstream; that it raises is a denial.
    `refused` is told of each refusal, the judge's and the gate's own (a request that cannot be
    understood in just one way, an answer that is no HTTP). The connection ends with a refusal.

    Invariants: upstream gets only requests that were judged, each written by `write`; an answer is
    that to the oldest request without one; bytes go through unread only after the upstream has
    agreed, with 101, to the upgrade that the only open request asked for.
    """

    def __init__(
        self,
        port: int,
        judge: Callable[[Request], Decision],
        refused: Callable[[Refusal], None] = lambda refusal: None,
    ) -> None:
        """`port` is the one the guest connected to: Host may name no other."""
        self._port = port
        self._judge = judge
        self._refused = refused
        self._asked = bytearray()  # of the guest, and not read yet
        self._answered = bytearray()  # of the upstream
        self._up: list[bytes] = []
        self._down: list[bytes] = []
        self._head = HeadReader(empty_lines=EMPTY_LINES)
        self._answer_head = HeadReader()
        self._held: tuple[RequestHead, Request] | None = None  # an upgrade, till it is alone
        self._open: deque[_Exchange] = deque()
        self._asking: _Exchange | None = None  # whose body is on its way
        self._body: Body = Counted(0)
        self._answer: Body | None = None
        self._rechunk = self._answer_rechunk = False
        self._closing = False  # no further request is read
        self._refusal: Refusal | None = None
        self._answer_last = False
        self._guest_ended = self._upstream_ended = self._tunnel = False
        self._over = self._broken = False
        self._turns = TURNS
        self._asks = self._hears = False  # a guest's, or an upstream's bytes are left unread

    # What hutch.network.carry asks.

    @property
    def hears_guest(self) -> bool:
        """Whether bytes of the guest are wanted; until then they wait in the kernel."""
        if self._asks:
            return False
        return self._tunnel or self._asking is not None or self._may_begin or self._closing

    @property
    def hears_upstream(self) -> bool:
        """Whether bytes of the upstream are wanted."""
        return not self._over and not self._hears

    @property
    def unread(self) -> bool:
        """Whether there is something left to `read_on` with."""
        return (self._asks or self._hears) and not self._over and not self._broken

    @property
    def fin_guest(self) -> bool:
        """Whether nothing more goes to the guest once it has what there is."""
        return self._tunnel and self._upstream_ended

    @property
    def fin_upstream(self) -> bool:
        """Whether nothing more goes upstream once it has what there is."""
        unread = self._held is not None or bool(self._asked)
        return self._guest_ended and (self.hears_guest or not unread)

    @property
    def over(self) -> bool:
        """Whether all is said: the guest gets what there is, then both connections close."""
        return self._over

    @property
    def broken(self) -> bool:
        """Whether both connections are to be reset."""
        return self._broken

    @property
    def waits_for_request(self) -> bool:
        """Whether a request has begun and its head is not whole: what a limit of time is for."""
        return self._may_begin and bool(self._asked) and not self._asks

    def read_on(self) -> None:
        """Go on with what was left unread, as far as that is done at once."""
        self._turns = TURNS
        if self._hears:
            self._hear()
        if self._asks:
            self._ask()

    def for_guest(self) -> bytes:
        """Hand over what is to go to the guest now."""
        return taken(self._down)

    def for_upstream(self) -> bytes:
        """Hand over what is to go upstream now."""
        return taken(self._up)

    def from_guest(self, data: bytes) -> None:
        """Take bytes of the guest."""
        if self._over:
            return
        if self._tunnel:
            self._up.append(data)
        elif self._asking is not None and not self._asked and self._body.pass_by(len(data)):
            self._up.append(chunk(data) if self._rechunk else data)
        elif self._asking is not None or not self._closing:
            self._asked += data
            self._turns = TURNS
            self._ask()

    def guest_ended(self) -> None:
        """Learn that the guest sends no more."""
        self._guest_ended = True
        self._turns = TURNS
        if not self._tunnel:
            self._ask()

    def from_upstream(self, data: bytes) -> None:
        """Take bytes of the upstream."""
        if self._over:
            return
        if self._tunnel:
            self._down.append(data)
        elif self._answer is not None and not self._answered and self._answer.pass_by(len(data)):
            self._down.append(chunk(data) if self._answer_rechunk else data)
        else:
            self._answered += data
            self._turns = TURNS
            self._hear()

    def upstream_ended(self, reset: bool) -> None:
        """Learn that the upstream sends no more, and maybe that it broke the connection off."""
        self._upstream_ended = True
        if self._over:
            return
        if self._tunnel:
            self._broken = self._broken or reset
        elif self._answer is not None:
            # Only what has no length may end like that; the rest was cut off.
            self._broken = reset or not isinstance(self._answer, Endless)
            self._over = not self._broken
        elif self._answered:
            self._bad_answer("the server ended the connection within the head of its answer")
        else:
            self._broken = reset and bool(self._open)
            self._finish()

    # Requests.

    @property
    def _may_begin(self) -> bool:
        """Whether the next request may be read."""
        if self._asking or self._closing or self._held or self._over:
            return False
        if self._open and self._open[-1].request.upgrade:
            return False
        return len(self._open) < PIPELINE

    def _ask(self) -> None:
        """Read as much of what the guest sent as may be read now."""
        self._asks = False
        try:
            while not self._over:
                if not self._turns:
                    self._asks = True
                    return
                self._turns -= 1
                if not self._ask_once():
                    break
        except BadHead as bad:
            self._refuse(bad.status, self._no_http(f"the request is no sound HTTP: {bad}"))
        if self._guest_ended and not self._open and not self._held and not self._refusal:
            self._over = True  # a request that is not whole by now will never be

    def _ask_once(self) -> bool:
        """Read a body's next part, or a head; False if there is nothing to do."""
        if self._asking is not None:
            data = self._body.read(self._asked)
            if data:
                self._up.append(chunk(data) if self._rechunk else data)
            if not self._body.done:
                return self._stops(self._body)
            if self._rechunk:
                self._up.append(b"0\r\n\r\n")
            self._asking.sent = True
            self._asking = None
            return True
        if self._held is not None and not self._open:
            (head, request), self._held = self._held, None
            self._begin(head, request)
            return True
        if not self._may_begin or not self._asked:
            return False
        lines = self._head.read(self._asked)
        if lines is None:
            return False
        self._head = HeadReader(empty_lines=EMPTY_LINES)
        head = read_request(lines)
        request = Request(
            head.method,
            head.target,
            head.host,
            upgrade_of(head),
            answers.wants_json(",".join(tokens(head.fields, "accept"))),
        )
        if head.port not in (None, self._port):
            text = f"its Host field names port {head.port}, its connection is to {self._port}"
            self._refuse(403, Decision(False, Reason.HOST_MISMATCH, text=text), request)
        elif request.upgrade and self._open:
            self._held = head, request
        else:
            self._begin(head, request)
        return True

    def _begin(self, head: RequestHead, request: Request) -> None:
        """Have a request judged, and send its head if it may go."""
        expectations = values(head.fields, "expect")
        if any(value.lower() != "100-continue" for value in expectations):
            raise BadHead("it expects something other than 100-continue", 417)
        try:
            decision = self._judge(request)
        except Exception:
            log.exception("a request could not be judged")
            decision = Decision(False, Reason.NOT_ALLOWED, text="the request cannot be judged")
        if not decision.allowed:
            self._refuse(answers.status_of(decision.reason), decision, request)
            return
        asked = {token.lower() for token in tokens(head.fields, "connection")}
        last = head.old or "close" in asked
        if head.length != 0 and head.method in _BODILESS:
            last = True
        exchange = _Exchange(request, head.old, last)
        if request.upgrade == "websocket":
            exchange.key = values(head.fields, "sec-websocket-key")[0]
        dropped = ["host"]
        if head.old or head.length == 0:
            dropped.append("expect")
        host = head.host if head.port is None else f"{head.host}:{head.port}"
        fields: Fields = [("Host", host), *end_to_end(head.fields, *dropped)]
        if head.length is None:
            fields.append(("Transfer-Encoding", "chunked"))
        elif head.length or values(head.fields, "content-length"):
            fields.append(("Content-Length", str(head.length)))
        if request.upgrade:
            fields += [("Connection", "Upgrade"), ("Upgrade", request.upgrade)]
        elif last:
            fields.append(("Connection", "close"))
        version = "HTTP/1.0" if head.old else "HTTP/1.1"
        self._up.append(write(f"{head.method} {head.target} {version}", fields))
        self._body = Chunked() if head.length is None else Counted(head.length)
        self._rechunk = head.length is None
        self._asking = exchange
        self._closing = last
        self._open.append(exchange)

    def _refuse(self, status: int, decision: Decision, request: Request | None = None) -> None:
        """End with a refusal, after the answers to what went before."""
        self._refusal = Refusal(status, decision, request)
        self._refused(self._refusal)
        self._closing = True
        self._asked.clear()
        asking, self._asking = self._asking, None
        if asking is not None and asking.begun:
            # Its answer is under way, or was given: there is no place for another.
            self._refusal = None
            self._over = asking not in self._open
            self._broken = not self._over
        elif asking is not None:
            self._open.pop()  # it will never be whole
        self._finish()

    def _no_http(self, text: str) -> Decision:
        hint = f"allow what is not HTTP with a rule like `NAME:{self._port}/tcp`"
        return Decision(False, Reason.BAD_PROTOCOL, text=text, hint=hint)

    def _finish(self) -> None:
        """Say what is left to say, and end, if no answer is due from the upstream any more."""
        if self._broken or self._over or (self._open and not self._upstream_ended):
            return
        if self._refusal is not None and not self._open:
            request = self._refusal.request
            self._down.append(
                answers.refusal(
                    self._refusal.status,
                    self._refusal.decision,
                    as_json=request is not None and request.json,
                    bodiless=request is not None and request.method == "HEAD",
                )
            )
        self._over = self._refusal is not None or self._closing or self._upstream_ended

    # Answers.

    def _hear(self) -> None:
        """Read as much of what the upstream sent as may be read now."""
        self._hears = False
        try:
            while self._turns:
                self._turns -= 1
                if not self._hear_once():
                    return
            self._hears = True
        except BadHead as bad:
            self._bad_answer(f"the server's answer is no sound HTTP: {bad}")

    def _stops(self, body: Body) -> bool:
        """Whether there is more of a body to read, which then is not done at once."""
        if body.stopped:
            self._turns = 0
        return body.stopped

    def _hear_once(self) -> bool:
        """Read an answer's next part; False if there is nothing to do."""
        if self._over or self._tunnel or not (self._answered or self._answer):
            return False
        if self._answer is not None:
            data = self._answer.read(self._answered)
            if data:
                self._down.append(chunk(data) if self._answer_rechunk else data)
            if not self._answer.done:
                return self._stops(self._answer)
            if self._answer_rechunk:
                self._down.append(b"0\r\n\r\n")
            self._heard()
            return True
        if not self._open:
            self._over = True  # a server that says something unasked is about to close
            return False
        lines = self._answer_head.read(self._answered)
        if lines is None:
            return False
        self._answer_head = HeadReader()
        head, exchange = read_answer(lines), self._open[0]
        if head.status == 101:
            self._switch(head, exchange)
        elif head.status < 200:
            if not exchange.old:
                self._down.append(write_answer(head, end_to_end(head.fields)))
        else:
            self._begin_answer(head, exchange)
        return True

    def _begin_answer(self, head: AnswerHead, exchange: _Exchange) -> None:
        asked = {token.lower() for token in tokens(head.fields, "connection")}
        self._answer_last = exchange.last or "close" in asked
        if head.old and "keep-alive" not in asked:
            self._answer_last = True
        fields = end_to_end(head.fields)
        self._answer_rechunk = False
        if head.length is not None and head.status != 204:
            fields.append(("Content-Length", str(head.length)))
        if exchange.request.method == "HEAD" or head.status in (204, 304):
            self._answer = Counted(0)
        elif head.chunked:
            self._answer = Chunked()
            self._answer_rechunk = not exchange.old
            if self._answer_rechunk:
                fields.append(("Transfer-Encoding", "chunked"))
        elif head.length is not None:
            self._answer = Counted(head.length)
        else:
            self._answer = Endless()
            self._answer_last = True
        if self._answer_last:
            fields.append(("Connection", "close"))
        self._down.append(write_answer(head, fields))
        exchange.begun = True

    def _heard(self) -> None:
        """Go on after an answer's end."""
        self._answer = None
        self._open.popleft()
        if self._answer_last:
            self._over = True
            return
        if self._refusal is not None:
            self._finish()
        elif self._answered and not self._open:
            self._over = True  # it cannot be the answer to what was not asked yet
        else:
            self._ask()

    def _switch(self, head: AnswerHead, exchange: _Exchange) -> None:
        """Let all bytes through, if that is what guest and upstream agree on."""
        agreed = [token.lower() for token in tokens(head.fields, "upgrade")]
        if not exchange.request.upgrade or agreed != [exchange.request.upgrade.lower()]:
            raise BadHead("it switches to a protocol that nobody asked for")
        if not exchange.sent or len(self._open) != 1:
            raise BadHead("it switches protocols before its time")
        if exchange.key is not None:
            check_websocket(head, exchange.key)
        fields = end_to_end(head.fields)
        fields += [("Connection", "Upgrade"), ("Upgrade", exchange.request.upgrade)]
        self._down += [write_answer(head, fields), bytes(self._answered)]
        self._up.append(bytes(self._asked))
        self._answered.clear()
        self._asked.clear()
        self._open.clear()
        self._asks = False
        self._tunnel = True

    def _bad_answer(self, text: str) -> None:
        """End because of an answer that is none; say so, unless the guest has some of it."""
        decision = self._no_http(text)
        exchange = self._open[0]
        self._closing = True
        if exchange.begun:
            self._refused(Refusal(502, decision, exchange.request))
            self._broken = True
            return
        self._open.clear()
        self._asking = None
        self._refuse(502, decision, exchange.request)

"""What happens on an accepted connection: TLS and HTTP are looked at, the rest is carried.

A refusal says why wherever the protocol has words for it (an alert, a 403); all else that ends
before its time is reset. Judging the destination and connecting to it is judge.py's.
"""

import asyncio
import logging
import socket
from typing import Final

from hutch.network.carry import Carry
from hutch.network.gateway.accept import reset
from hutch.network.gateway.connection import NOT_JUDGED, Connection, Phase, Place
from hutch.network.gateway.inforce import InForce
from hutch.network.gateway.judge import Refused, Unreached, confirm, reach
from hutch.network.http import Gate, Refusal, Request
from hutch.network.tls import BadHello, HelloReader, alert
from hutch.networking import Decision, NetworkLayer, Reason

log = logging.getLogger(__name__)

HTTP_PORT: Final = 80
TLS_PORT: Final = 443

_TLS_HANDSHAKE: Final = b"\x16"
_CHUNK: Final = 16 * 1024
_TOO_MANY_HOSTS: Final = Decision(
    False, Reason.LIMIT, text="the requests of one connection are for too many names"
)


class Serving:
    """One accepted connection, to its end. Owns its sockets."""

    def __init__(self, connection: Connection, guest: socket.socket, in_force: InForce) -> None:
        self._connection = connection
        self._guest = guest
        self._upstream: socket.socket | None = None
        self._in_force = in_force
        self._refused = self._recorded = False
        self._loop = asyncio.get_running_loop()

    async def run(self) -> None:
        """Judge the connection and carry it. Raises nothing but its cancellation.

        Whatever happens, both sockets are closed in the end, and by a RST if it was not the end
        that both sides wanted.
        """
        try:
            await self._run()
        except Unreached as failure:
            self._record(NetworkLayer.TCP, failure.decision)
        except OSError as failure:  # the guest hung up
            log.debug("connection %d: %r", self._connection.number, failure)
        except Exception:  # closed, whatever it is
            log.exception("connection %d cannot be judged", self._connection.number)
            self._record(NetworkLayer.TCP, NOT_JUDGED)
        finally:
            if self._upstream is not None and not self._recorded:
                # It was connected to, though the guest never said what for.
                allowed = Decision(True, Reason.ALLOWED, self._connection.rule)
                self._record(NetworkLayer.TCP, allowed)
            self.abort()

    def abort(self) -> None:
        """Reset both sides at once; nothing happens to what is closed."""
        if self._connection.carry is not None:
            self._connection.carry.abort()
        reset(self._guest)
        if self._upstream is not None:
            reset(self._upstream)

    async def _run(self) -> None:
        try:
            self._upstream = await reach(self._connection, self._in_force)
            self._connection.connected = True
            await self._admitted(self._upstream)
        except Refused as refused:
            if self._upstream is not None:
                reset(self._upstream)
            self._connection.connected = False
            await self._refuse(refused.decision)

    # What is allowed

    async def _admitted(self, upstream: socket.socket) -> None:
        connection = self._connection
        rules = confirm(connection, self._in_force)
        layer, first = NetworkLayer.TCP, b""
        if connection.place is not Place.HOST and not connection.may_be_raw(rules):
            if connection.port == HTTP_PORT:
                await self._pump(self._gate(upstream))
                return
            if connection.port == TLS_PORT or await self._begins_with_hello(upstream):
                layer, first = NetworkLayer.TLS, await self._hello()
                self._judge_hello()
        else:
            connection.raw = connection.place is not Place.HOST
        confirm(connection, self._in_force)
        allowed = Decision(True, Reason.ALLOWED, connection.rule)
        self._record(layer, allowed, detail=connection.server_name or "")
        in_force = self._in_force
        await self._pump(
            Carry(self._guest, upstream, first=first, up=in_force.up, down=in_force.down)
        )

    async def _pump(self, carry: Carry) -> None:
        self._connection.carry = carry
        if self._connection.phase is not Phase.REFUSING:
            self._connection.phase = Phase.OPEN
        await carry.run()

    async def _begins_with_hello(self, upstream: socket.socket) -> bool:
        """Wait until either side speaks; tell whether it is the guest, and in TLS.

        So that servers that speak first do, and a server's name is looked at on any port.
        """
        self._connection.phase = Phase.WAITING
        await _readable(self._guest, upstream)
        try:
            return self._guest.recv(1, socket.MSG_PEEK) == _TLS_HANDSHAKE
        except BlockingIOError:
            return False

    async def _hello(self) -> bytes:
        """Return all that the guest said up to the end of its ClientHello. Raises Refused."""
        if self._connection.phase is not Phase.REFUSING:
            self._connection.phase = Phase.WAITING
        reader = HelloReader()
        try:
            async with asyncio.timeout(self._in_force.limits.hello_time):
                while not reader.feed(await self._heard()):
                    pass
        except BadHello as cause:
            raise Refused(_no_tls(f"it is not TLS: {cause}")) from cause
        except TimeoutError:
            raise Refused(_no_tls("no ClientHello came in time")) from None
        self._connection.hello = True
        self._connection.server_name = reader.server_name
        return reader.taken

    def _judge_hello(self) -> None:
        connection = self._connection
        rules = confirm(connection, self._in_force)
        decision = rules.server_name(connection.name, connection.server_name, connection.port)
        if not decision.allowed:
            raise Refused(decision)

    async def _heard(self) -> bytes:
        data = await self._loop.sock_recv(self._guest, _CHUNK)
        if not data:
            raise ConnectionResetError("the guest hung up before it said what it wants")
        return data

    # HTTP

    def _gate(self, upstream: socket.socket | None, refusal: Decision | None = None) -> Carry:
        """Return what carries requests; each is judged, or refused with `refusal`."""
        connection, in_force = self._connection, self._in_force

        def judge(request: Request) -> Decision:
            if refusal is not None:
                return refusal
            try:
                rules = confirm(connection, in_force)
            except Refused as refused:
                return refused.decision
            decision = rules.host(connection.name, request.host, connection.port)
            if decision.allowed and not connection.add_host(request.host):
                return _TOO_MANY_HOSTS
            if decision.allowed:
                allowed = Decision(True, Reason.ALLOWED, connection.rule)
                self._record(NetworkLayer.HTTP, allowed, detail=_line(request))
            return decision

        def note(told: Refusal) -> None:
            connection.phase = Phase.REFUSING
            self._refused = True
            self._record(NetworkLayer.HTTP, told.decision, detail=_line(told.request))

        gate = Gate(connection.port, judge, note)
        connection.gate = gate
        return Carry(self._guest, upstream, between=gate, up=in_force.up, down=in_force.down)

    # What is refused

    async def _refuse(self, decision: Decision) -> None:
        """Tell a guest why, if what it speaks has a way to; the record is written in any case.

        Without a network there is nobody to tell it.
        """
        connection = self._connection
        if decision.reason is Reason.NETWORK_DOWN:
            self._record(NetworkLayer.TCP, decision)
            return
        connection.phase = Phase.REFUSING
        on_tls = connection.hello or connection.port == TLS_PORT
        try:
            async with asyncio.timeout(self._in_force.limits.hello_time):
                if connection.port == HTTP_PORT and self._upstream is None:
                    await self._pump(self._gate(None, decision))
                elif on_tls and not connection.hello and self._upstream is None:
                    await self._hello()
        except Refused:
            on_tls = False
        finally:
            if not self._refused:
                self._record(NetworkLayer.TLS if on_tls else NetworkLayer.TCP, decision)
        if on_tls:
            word = _LastWord(alert(decision.reason))
            await self._pump(Carry(self._guest, None, between=word))

    def _record(self, layer: NetworkLayer, decision: Decision, *, detail: str = "") -> None:
        connection = self._connection
        self._recorded = True
        self._in_force.records.add(
            layer,
            decision,
            name=connection.label,
            address=connection.told_address,
            port=connection.port,
            detail=detail or connection.server_name or "",
        )


class _LastWord:
    """Stands between a guest and nobody: says one thing, and that is all (`carry.Between`)."""

    hears_guest = True
    hears_upstream = False
    fin_guest = True
    fin_upstream = True
    broken = False
    over = True
    unread = False

    def __init__(self, word: bytes) -> None:
        self._word = word

    def from_guest(self, data: bytes) -> None:
        """Drop it."""

    def from_upstream(self, data: bytes) -> None:
        """There is none."""

    def read_on(self) -> None:
        """There is nothing left to read."""

    def guest_ended(self) -> None:
        """It does not matter."""

    def upstream_ended(self, reset: bool) -> None:
        """There is none."""

    def for_guest(self) -> bytes:
        """Hand over the one thing, once."""
        word, self._word = self._word, b""
        return word

    def for_upstream(self) -> bytes:
        """There is none."""
        return b""


async def _readable(*socks: socket.socket) -> None:
    """Return when one of the sockets has something to read, or has ended."""
    loop = asyncio.get_running_loop()
    came: asyncio.Future[None] = loop.create_future()

    def come() -> None:
        if not came.done():
            came.set_result(None)

    try:
        for sock in socks:
            loop.add_reader(sock, come)
        await came
    finally:
        for sock in socks:
            loop.remove_reader(sock)


def _no_tls(text: str) -> Decision:
    return Decision(
        False,
        Reason.BAD_PROTOCOL,
        text=text,
        hint="allow what is not TLS with a rule like `NAME:443/tcp`",
    )


def _line(request: Request | None) -> str:
    """Return a request as the log has it: without its query, which may hold secrets."""
    return "" if request is None else f"{request.method} {request.target.partition('?')[0]}"

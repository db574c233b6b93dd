import asyncio
import os
import socket
import struct
from collections.abc import Awaitable, Callable

import pytest

from hutch.errors import HutchError
from hutch.network.dns import message
from hutch.network.gateway import accept, judge
from hutch.network.gateway.limits import Limits
from hutch.network.gateway.records import BURST
from hutch.network.gateway.sandbox import Ends
from hutch.networking import NetworkLayer, NetworkMode, NetworkPolicy, Reason
from tests.unit.descriptors import descriptors
from tests.unit.network.gateway.test_serve import answer, hello, only, web
from tests.unit.network.gateway.world import LO, TIME, Stream, World, bound, echo, is_reset

Worlds = Callable[..., Awaitable[World]]

PUBLIC = NetworkPolicy()
DENY = NetworkPolicy(mode=NetworkMode.DENY)
NONE = NetworkPolicy(mode=NetworkMode.NONE)


async def carried(world: World, port: int = 7) -> Stream:
    """Return a connection that works."""
    if port not in world.ports:
        await world.serve(port, echo)
    world.name("a.example")
    reader, writer = await world.connect("a.example", port)
    writer.write(b"x")
    assert await reader.readexactly(1) == b"x"
    return reader, writer


# Without a policy


async def test_nothing_is_accepted_or_answered_without_a_policy(worlds: Worlds) -> None:
    world = await worlds(None)
    asking = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    asking.setblocking(False)
    with asking, socket.create_connection(world.listening) as early:
        asking.sendto(query("a.example"), world.asking)
        early.setblocking(False)
        assert len(world.sandbox) == 0
        assert world.sandbox.info().policy.mode is NetworkMode.NONE
        await world.sandbox.update(PUBLIC)
        # What came before is reset, and not answered: the next one is.
        with pytest.raises(ConnectionResetError):
            await asyncio.wait_for(asyncio.get_running_loop().sock_recv(early, 1), TIME)
        world.name("b.example")
        asking.sendto(query("b.example", 7), world.asking)
        reply = await asyncio.wait_for(asyncio.get_running_loop().sock_recv(asking, 512), TIME)
        assert reply[:2] == b"\0\7"
    assert len(world.records) == 1
    await carried(world)


async def test_a_policy_that_is_withdrawn_ends_everything(worlds: Worlds) -> None:
    world = await worlds(PUBLIC)
    reader, _ = await carried(world)
    assert await world.sandbox.update(None) == 1
    assert await is_reset(reader)
    with socket.create_connection(world.listening) as waiting:
        waiting.setblocking(False)
        for _ in range(5):
            await asyncio.sleep(0)
        assert len(world.sandbox) == 0
        await world.sandbox.update(PUBLIC)
        with pytest.raises(ConnectionResetError):
            await asyncio.wait_for(asyncio.get_running_loop().sock_recv(waiting, 1), TIME)
    await carried(world)


async def test_a_bad_policy_changes_nothing(worlds: Worlds) -> None:
    world = await worlds(PUBLIC)
    reader, writer = await carried(world)
    with pytest.raises(HutchError) as caught:
        await world.sandbox.update(NetworkPolicy(allow=["http://x y"]))
    assert caught.value.code == "bad_policy"
    writer.write(b"y")
    assert await reader.readexactly(1) == b"y"
    assert world.sandbox.generation == 1


async def test_names_that_cannot_be_read_are_no_names(worlds: Worlds) -> None:
    world = await worlds(None)
    os.write(world._table, b"something else\n" * 3)
    with pytest.raises(HutchError) as caught:
        await world.sandbox.update(PUBLIC)
    assert caught.value.code == "network_failed"
    assert world.sandbox.generation == 0


# Mode none


async def test_mode_none_answers_nothing_and_records_what_was_tried(worlds: Worlds) -> None:
    world = await worlds(NONE)
    loop = asyncio.get_running_loop()
    here = message.wire_name("1.0.18.198.in-addr.arpa")
    reverse = struct.pack("!6H", 2, 0x100, 1, 0, 0, 0) + here + struct.pack("!2H", 12, 1)
    time = world.clock.getsockname()
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as clock,
    ):
        asking.setblocking(False)
        clock.setblocking(False)
        asking.sendto(reverse, world.asking)
        asking.sendto(query("localhost", 3), world.asking)
        asking.sendto(query("a.example", 4), world.asking)
        clock.sendto(b"\x23" + bytes(47), ("127.0.0.1", time[1]))
        record = await world.record()
        assert (record.layer, record.reason) == (NetworkLayer.DNS, Reason.NETWORK_DOWN)
        for number, port in enumerate((443, 80, 22, 53), 2):
            reader, writer = await world.connect("198.18.1.1", port)
            writer.write(b"GET / HTTP/1.1\r\nHost: a.example\r\n\r\n")
            with pytest.raises(ConnectionError):  # and not a byte before
                assert not await asyncio.wait_for(reader.read(), TIME)
            record = await world.record(number)
            assert (record.layer, record.reason) == (NetworkLayer.TCP, Reason.NETWORK_DOWN)
        assert world.sandbox.info().denied_total == 5
        # A network that comes back answers, and what was asked before never is.
        world.name("b.example")
        await world.sandbox.update(PUBLIC)
        asking.sendto(query("b.example", 7), world.asking)
        reply = await asyncio.wait_for(loop.sock_recv(asking, 512), TIME)
        assert reply[:2] == b"\0\7"
        clock.sendto(b"\x23" + bytes(39) + b"transmit", ("127.0.0.1", time[1]))
        reply = await asyncio.wait_for(loop.sock_recv(clock, 512), TIME)
        assert reply[24:32] == b"transmit"


async def test_mode_none_ends_everything(worlds: Worlds) -> None:
    world = await worlds(only("a.example:7"))
    carrying, _ = await carried(world)
    asking, writer = await world.connect("8.8.8.8", 53)
    asked = query("a.example")
    writer.write(len(asked).to_bytes(2) + asked)
    await asking.readexactly(2)
    refused, _ = await world.connect("198.18.1.99", 443)
    while [item.phase for item in world.sandbox.connections()] != ["open", "open", "refusing"]:
        await asyncio.sleep(0)
    assert await world.sandbox.update(NONE) == 3
    for reader in (carrying, asking, refused):
        assert await is_reset(reader)


# Live changes


async def test_what_is_carried_is_judged_again(worlds: Worlds) -> None:
    world = await worlds(only("a.example:7", "a.example:8"))
    seven, _ = await carried(world)
    eight, writer = await carried(world, 8)
    assert await world.sandbox.update(only("a.example:8")) == 1
    assert await is_reset(seven)
    record = world.records[-1]
    assert (record.allowed, record.reason, record.port) == (False, Reason.POLICY_CHANGED, 7)
    writer.write(b"y")
    assert await eight.readexactly(1) == b"y"
    info = world.sandbox.info()
    assert (info.generation, info.connections, info.connections_total) == (2, 1, 2)
    assert (info.sent, info.received, info.denied_total) == (3, 3, 1)


async def test_what_is_being_resolved_is_judged_again(worlds: Worlds) -> None:
    world = await worlds(PUBLIC)
    world.name("a.example")
    world.names.hold = asyncio.Event()
    reader, _ = await world.connect("a.example", 7)
    await asyncio.wait_for(world.names.asked.wait(), TIME)
    assert [item.phase for item in world.sandbox.connections()] == ["resolving"]
    assert await world.sandbox.update(DENY) == 1
    assert await is_reset(reader)
    world.names.hold.set()
    assert world.dialled == []


async def test_what_is_being_dialled_is_judged_again(
    worlds: Worlds, monkeypatch: pytest.MonkeyPatch
) -> None:
    dialling = asyncio.Event()

    async def never(*_: object, **__: object) -> tuple[socket.socket, object]:
        dialling.set()
        await asyncio.Event().wait()
        raise AssertionError

    world = await worlds(PUBLIC)
    world.name("a.example")
    monkeypatch.setattr(judge, "dial", never)
    reader, _ = await world.connect("a.example", 7)
    await asyncio.wait_for(dialling.wait(), TIME)
    assert await world.sandbox.update(NetworkPolicy(deny=["127.0.0.0/8"])) == 1
    assert await is_reset(reader)


async def test_a_policy_that_changes_unheard_is_noticed_after_the_dial(
    worlds: Worlds, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = await worlds(PUBLIC)
    world.name("a.example")
    closed = asyncio.Event()

    async def wait_for_end(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        assert await is_reset(reader)
        closed.set()

    await world.serve(7, wait_for_end)
    dialled = judge.dial

    async def meanwhile(*args: object, **kwargs: object) -> object:
        reached = await dialled(*args, **kwargs)  # type: ignore[arg-type]
        # As if the connection had escaped the change's own look at it.
        table = world.sandbox._in_force.names
        assert table is not None
        world.sandbox._in_force.put(DENY, judge.Rules.of(DENY), table)
        return reached

    monkeypatch.setattr(judge, "dial", meanwhile)
    reader, _ = await world.connect("a.example", 7)
    assert await is_reset(reader)
    await asyncio.wait_for(closed.wait(), TIME)
    assert (await world.record()).reason is Reason.NOT_ALLOWED


async def test_what_has_not_said_hello_is_judged_again(worlds: Worlds) -> None:
    world = await worlds(PUBLIC)
    world.name("a.example")
    await world.serve(443, echo)
    reader, writer = await world.connect("a.example", 443)
    writer.write(hello("a.example")[:10])
    while [item.phase for item in world.sandbox.connections()] != ["waiting"]:
        await asyncio.sleep(0)
    assert await world.sandbox.update(DENY) == 1
    assert await is_reset(reader)


async def test_a_server_name_is_judged_again(worlds: Worlds) -> None:
    world = await worlds(PUBLIC)
    await world.serve(443, echo)
    said = hello("b.example")
    reader, writer = await world.connect("127.0.0.1", 443)  # a raw address may say any name
    writer.write(said)
    assert await reader.readexactly(len(said)) == said
    assert await world.sandbox.update(NetworkPolicy(deny=["c.example"])) == 0
    assert await world.sandbox.update(NetworkPolicy(deny=["b.example"])) == 1
    assert await is_reset(reader)


async def test_kept_alive_http_is_judged_again(worlds: Worlds) -> None:
    world = await worlds(PUBLIC)
    world.name("a.example")
    await world.serve(80, web)
    reader, writer = await world.connect("a.example", 80)
    writer.write(b"GET / HTTP/1.1\r\nHost: a.example\r\n\r\n")
    assert (await answer(reader))[0] == 200
    assert await world.sandbox.update(only("a.example", "b.example")) == 0
    writer.write(b"GET / HTTP/1.1\r\nHost: a.example\r\n\r\n")
    assert (await answer(reader))[0] == 200
    assert await world.sandbox.update(only("b.example")) == 1
    assert await is_reset(reader)


async def test_an_answer_that_goes_on_while_the_next_request_is_refused_is_judged_again(
    worlds: Worlds,
) -> None:
    async def begin(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nbegun")
        await reader.read()

    world = await worlds(only("a.example"))
    world.name("a.example")
    await world.serve(80, begin)
    reader, writer = await world.connect("a.example", 80)
    get = b"GET / HTTP/1.1\r\nHost: %s\r\n\r\n"
    writer.write(get % b"a.example" + get % b"b.example")
    await reader.readuntil(b"begun")
    assert not (await world.record(2)).allowed
    assert [item.phase for item in world.sandbox.connections()] == ["refusing"]
    assert await world.sandbox.update(only("a.example", "b.example")) == 0
    assert await world.sandbox.update(only("b.example")) == 1
    assert await is_reset(reader)


async def test_what_was_not_looked_at_ends_when_it_is_to_be(worlds: Worlds) -> None:
    world = await worlds(only("a.example:443/tcp"))
    world.name("a.example")
    await world.serve(443, echo)
    reader, writer = await world.connect("a.example", 443)
    writer.write(b"anything\n")
    assert await reader.readline() == b"anything\n"
    assert await world.sandbox.update(only("a.example:443")) == 1
    assert await is_reset(reader)


async def test_connections_that_have_not_begun_end_as_well(worlds: Worlds) -> None:
    world = await worlds(PUBLIC)
    ours, theirs = socket.socketpair()
    with ours:
        world.sandbox._admit(theirs, ("127.0.0.1", 7))  # its task has not had a step yet
        assert await world.sandbox.update(DENY) == 1
        assert ours.recv(1) == b""
    assert len(world.sandbox) == 0


# DNS


def query(name: str, number: int = 1, kind: int = 1) -> bytes:
    return (
        struct.pack("!6H", number, 0x100, 1, 0, 0, 0)
        + message.wire_name(name)
        + struct.pack("!2H", kind, 1)
    )


async def test_names_are_looked_up_over_udp_and_tcp(worlds: Worlds) -> None:
    world = await worlds(PUBLIC)
    world.name("a.example")
    loop = asyncio.get_running_loop()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        asking.setblocking(False)
        asking.sendto(query("a.example"), world.asking)
        reply = await asyncio.wait_for(loop.sock_recv(asking, 512), TIME)
    expected = socket.inet_aton(world.address("a.example"))
    assert expected in reply
    reader, writer = await world.connect("8.8.8.8", 53)
    asked = query("a.example", 2)
    writer.write(len(asked).to_bytes(2) + asked)
    length = int.from_bytes(await reader.readexactly(2))
    assert expected in await reader.readexactly(length)
    writer.write_eof()
    assert await reader.read() == b""
    assert {record.layer for record in world.records} == {NetworkLayer.DNS}
    info = world.sandbox.info()
    assert (info.lookups_total, info.names) == (2, 1)


async def test_a_look_up_in_flight_is_judged_by_the_policy_of_its_answer(worlds: Worlds) -> None:
    world = await worlds(PUBLIC)
    world.name("a.example")
    world.names.hold = asyncio.Event()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        asking.setblocking(False)
        asking.sendto(query("a.example"), world.asking)
        await asyncio.wait_for(world.names.asked.wait(), TIME)
        await world.sandbox.update(NetworkPolicy(deny=["a.example"]))
        world.names.hold.set()
        loop = asyncio.get_running_loop()
        await asyncio.wait_for(loop.sock_recv(asking, 512), TIME)
    assert {record.allowed for record in world.records} == {False}


async def test_look_ups_are_bounded(worlds: Worlds) -> None:
    world = await worlds(PUBLIC, Limits(lookups=4))
    world.names.hold = asyncio.Event()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        asking.setblocking(False)
        for number in range(20):
            asking.sendto(query(f"n{number}.example"), world.asking)
        await asyncio.wait_for(world.names.asked.wait(), TIME)
        for _ in range(20):
            await asyncio.sleep(0)
        assert len(world.sandbox._lookups._tasks) == 4
        world.names.hold.set()
        loop = asyncio.get_running_loop()
        for _ in range(20):
            await asyncio.wait_for(loop.sock_recv(asking, 512), TIME)


# Limits and ends


async def test_one_at_its_limit_waits_for_room(worlds: Worlds) -> None:
    world = await worlds(PUBLIC, Limits(connections=2))
    first, first_writer = await carried(world)
    await carried(world)
    reader, writer = await world.connect("a.example", 7)
    writer.write(b"z")
    for _ in range(20):
        await asyncio.sleep(0)
    assert len(world.sandbox) == 2
    first_writer.write_eof()
    assert await first.read() == b""
    assert await asyncio.wait_for(reader.readexactly(1), TIME) == b"z"


async def test_the_newest_connections_make_room_for_others(worlds: Worlds) -> None:
    world = await worlds(PUBLIC)
    streams = [await carried(world) for _ in range(10)]
    assert world.sandbox.shed() == 8
    for reader, _ in streams[2:]:
        assert await is_reset(reader)
    for reader, writer in streams[:2]:
        writer.write(b"y")
        assert await reader.readexactly(1) == b"y"
    assert world.records[-1].reason is Reason.LIMIT


async def test_closing_resets_everything_before_it_returns(worlds: Worlds) -> None:
    world = await worlds(PUBLIC)
    reader, _ = await carried(world)
    waiting, _ = await world.connect("a.example", 443)
    await world.sandbox.close()
    assert len(world.sandbox) == 0
    assert await is_reset(reader)
    assert await is_reset(waiting)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(world.listening)
    with pytest.raises(HutchError):
        await world.sandbox.update(PUBLIC)
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(world._table)


async def test_ten_thousand_attempts_leave_nothing(
    worlds: Worlds, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = await worlds(DENY)
    monkeypatch.setattr(accept, "destination_of", lambda guest: ("10.0.0.1", 22))
    before = descriptors()
    loop = asyncio.get_running_loop()
    for _ in range(100):
        callers = [socket.socket() for _ in range(100)]
        for caller in callers:
            caller.setblocking(False)
            caller.connect_ex(world.listening)
        for caller in callers:
            with pytest.raises(ConnectionResetError):
                await asyncio.wait_for(loop.sock_recv(caller, 1), TIME)
            caller.close()
    assert len(world.sandbox) == 0
    info = world.sandbox.info()
    assert info.connections_total == info.denied_total == 10_000
    assert len(world.records) == BURST
    assert descriptors() <= before


async def test_sockets_of_another_interface_are_refused(worlds: Worlds) -> None:
    world = await worlds(None)
    stream, datagram, other = bound(socket.SOCK_STREAM), socket.socket(), socket.socket()
    ends = Ends(stream, datagram, other, os.open("/dev/null", os.O_RDWR))
    with pytest.raises(OSError, match="no datagram socket"):
        type(world.sandbox)(
            world.sandbox.identity, ends, world.sandbox.records, world.sandbox._around
        )
    ends.close()
    assert world.sandbox.identity.ifindex == LO

"""Calls with descriptors between two processes, here over a socket pair."""

import asyncio
import contextlib
import errno
import os
import socket
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hutch.errors import HutchError, error
from hutch.network import channel
from hutch.network.channel import Channel, Handler, Reply, Values
from hutch.tasks import Scope
from tests.unit.descriptors import descriptors
from tests.waiting import until


@contextlib.asynccontextmanager
async def joined(
    handlers: Mapping[str, Handler], ours: Mapping[str, Handler] | None = None
) -> AsyncIterator[tuple[Channel, Channel]]:
    """Two ends of one connection: ours, and that with the handlers."""
    one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    near, far = Channel(one, ours, name="near"), Channel(other, handlers, name="far")
    try:
        yield near, far
    finally:
        await near.close()
        await far.close()


async def echo(values: Values, fds: list[int]) -> Reply:
    return Reply(values, fds, gives=True)


async def test_a_call_returns_what_the_handler_answers() -> None:
    async with joined({"echo": echo}) as (near, _):
        assert await near.call("echo", {"a": [1, "ü"]}) == ({"a": [1, "ü"]}, [])


async def test_descriptors_go_there_and_back_and_none_is_left() -> None:
    before = descriptors()
    async with joined({"echo": echo}) as (near, _):
        read, write = os.pipe()
        _, fds = await near.call("echo", {}, [read, write])
        os.write(fds[1], b"there")
        assert os.read(read, 10) == b"there"
        assert all(not os.get_inheritable(fd) for fd in fds)
        for fd in (read, write, *fds):
            os.close(fd)
    assert descriptors() == before


async def test_many_calls_at_once_get_their_own_answers_and_descriptors() -> None:
    async def number(values: Values, fds: list[int]) -> Reply:
        await asyncio.sleep(0)
        made = os.memfd_create("number")
        os.write(made, str(values["n"]).encode())
        return Reply(values, [made], gives=True)

    async with joined({"number": number}) as (near, _), asyncio.TaskGroup() as group:
        tasks = [group.create_task(near.call("number", {"n": n})) for n in range(100)]
        for n, task in enumerate(tasks):
            values, fds = await task
            assert values == {"n": n}
            assert os.pread(fds[0], 10, 0) == str(n).encode()
            os.close(fds[0])


async def test_long_messages_cross_both_ways() -> None:
    async with joined({"echo": echo}) as (near, _):
        text = "x" * (5 << 20)
        read, write = os.pipe()
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(near.call("echo", {"t": text}, [read])) for _ in range(2)]
        for task in tasks:
            values, fds = task.result()
            assert values == {"t": text}
            assert len(fds) == 1
            os.close(fds[0])
        os.close(read)
        os.close(write)


async def test_errors_cross() -> None:
    async def refuse(values: Values, fds: list[int]) -> Reply:
        raise error("bad_policy", "no", hint="write it so", details={"rule": "x"})

    async def fail(values: Values, fds: list[int]) -> Reply:
        raise ZeroDivisionError

    async def nonsense(values: Values, fds: list[int]) -> Reply:
        return Reply({"a": object()})

    handlers = {"refuse": refuse, "fail": fail, "nonsense": nonsense}
    async with joined(handlers) as (near, _):
        with pytest.raises(HutchError) as told:
            await near.call("refuse")
        assert (told.value.code, told.value.hint) == ("bad_policy", "write it so")
        assert told.value.details == {"rule": "x"}
        for method in ("fail", "nonsense", "unheard"):
            with pytest.raises(HutchError) as told:
                await near.call(method)
            assert told.value.code == "network_failed"
        assert near.open


async def test_both_sides_call_and_notify() -> None:
    heard: asyncio.Queue[Values] = asyncio.Queue()

    async def note(values: Values, fds: list[int]) -> Reply:
        heard.put_nowait(values)
        return Reply()

    async with joined({"echo": echo}, {"note": note, "echo": echo}) as (_, far):
        assert far.notify("note", {"n": 1})
        assert await heard.get() == {"n": 1}
        assert await far.call("echo", {"n": 2}) == ({"n": 2}, [])


async def test_a_dead_peer_fails_what_waits_for_it() -> None:
    stuck = asyncio.Event()

    async def never(values: Values, fds: list[int]) -> Reply:
        stuck.set()
        await asyncio.Event().wait()
        return Reply()

    async with joined({"never": never}) as (near, far), Scope("test") as scope:
        call = scope.start("call", near.call("never"))
        await stuck.wait()
        await far.close()
        with pytest.raises(HutchError, match="gone"):
            await call
        await near.ended()
        with pytest.raises(HutchError, match="gone"):
            await near.call("never")
        assert not near.notify("never")


async def test_a_call_has_a_deadline_and_its_late_answer_is_dropped() -> None:
    release = asyncio.Event()
    before = descriptors()

    async def late(values: Values, fds: list[int]) -> Reply:
        await release.wait()
        return Reply({}, [os.memfd_create("late")], gives=True)

    async with joined({"late": late, "echo": echo}) as (near, _):
        with pytest.raises(HutchError, match="did not answer"):
            await near.call("late", timeout=0.01)
        release.set()
        assert await near.call("echo", {"n": 1}) == ({"n": 1}, [])
    assert descriptors() == before


async def test_notes_to_a_peer_that_does_not_read_are_dropped() -> None:
    one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    near = Channel(one)
    sent = 0
    while near.notify("note", {"text": "x" * 10_000}):
        sent += 1
        assert sent < 1000
    assert near.open
    await near.close()
    other.close()


async def test_a_peer_that_never_reads_answers_is_dropped_in_the_end() -> None:
    one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)

    async def much(values: Values, fds: list[int]) -> Reply:
        return Reply({"text": "x" * (6 << 20)})

    near = Channel(one, {"much": much})
    body = b'{"id":1,"method":"much","fds":0}'
    for _ in range(4):
        other.sendall(len(body).to_bytes(4) + body)
    await near.ended()
    await near.close()
    other.close()


async def test_too_many_descriptors_are_refused_here() -> None:
    async with joined({"echo": echo}) as (near, _):
        fd = os.memfd_create("one")
        with pytest.raises(HutchError, match="too long"):
            await near.call("echo", {}, [fd] * 17)
        with pytest.raises(HutchError, match="cannot be sent"):
            await near.call("echo", {}, [fd, 1 << 20])
        os.close(fd)
        assert await near.call("echo", {}) == ({}, [])


@pytest.mark.parametrize(
    "sent",
    [
        (channel.MESSAGE_LIMIT + 1).to_bytes(4),
        b"\0\0\0\2[]",
        b"\0\0\0\1{",
        b"\0\0\0\x0a" + b'{"fds":-1}',
        b"\0\0\0\x09" + b'{"fds":1}',
        b"\0\0\0\x0b" + b'{"fds":"x"}',
        b"\0\0\0\x09" + b'{"fds":0}',
    ],
)
async def test_nonsense_ends_the_channel(sent: bytes) -> None:
    one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    near = Channel(one)
    other.sendall(sent)
    await near.ended()
    await near.close()
    other.close()


async def test_descriptors_that_no_message_counts_are_closed() -> None:
    before = descriptors()
    one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    near = Channel(one)
    fd = os.memfd_create("stray")
    for _ in range(3):
        socket.send_fds(other, [b"\0"], [fd] * 10)
    os.close(fd)
    await near.ended()
    await near.close()
    other.close()
    assert descriptors() == before


@settings(max_examples=60, deadline=None)
@given(parts=st.lists(st.binary(max_size=40), max_size=6), framed=st.booleans())
def test_no_bytes_whatever_do_harm(parts: list[bytes], framed: bool) -> None:
    async def feed() -> None:
        one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        near = Channel(one, {"echo": echo})
        for part in parts:
            other.sendall((len(part).to_bytes(4) if framed else b"") + part)
        other.shutdown(socket.SHUT_WR)
        await near.ended()
        await near.close()
        other.close()

    asyncio.run(feed())


async def test_a_socket_serves_many_and_forgets_those_that_go(tmp_path: Path) -> None:
    path = tmp_path / "s.sock"
    listener = channel.listen(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert [found.name for found in tmp_path.iterdir()] == ["s.sock"]
    made: list[Channel] = []

    def handlers(end: Channel) -> Mapping[str, Handler]:
        made.append(end)
        return {"echo": echo}

    async with Scope("test") as scope:
        serving = scope.start("serve", channel.serve(listener, handlers, name="server"))
        ends = [await channel.connect(path, name=f"end{n}") for n in range(3)]
        for n, end in enumerate(ends):
            assert await end.call("echo", {"n": n}) == ({"n": n}, [])
        await ends[0].close()
        await until(lambda: not made[0].open)
        assert await ends[1].call("echo", {"n": 5}) == ({"n": 5}, [])
        serving.cancel()
        await ends[1].ended()
        for end in ends:
            await end.close()
    listener.close()
    with pytest.raises(OSError, match="refused"):
        await channel.connect(path, name="late")


class Crowded(socket.socket):
    """A listening socket on a host that is out of something, a few times."""

    failures: list[int]

    def accept(self) -> tuple[socket.socket, Any]:
        if self.failures:
            code = self.failures.pop(0)
            raise OSError(code, os.strerror(code))
        return super().accept()


async def test_who_cannot_be_let_in_now_is_let_in_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(channel, "_PAUSE", 0)
    path = tmp_path / "s"
    listener = Crowded(fileno=channel.listen(path).detach())
    listener.failures = [errno.EMFILE, errno.ENFILE, errno.ECONNABORTED, errno.ENOMEM]
    async with Scope("test") as scope:
        serving = scope.start("serve", channel.serve(listener, lambda _: {"echo": echo}, name="s"))
        near = await channel.connect(path, name="s")
        assert await near.call("echo", {"a": 1}) == ({"a": 1}, [])
        await near.close()
        assert listener.failures == []
        # What is no better later ends it.
        listener.failures = [errno.EINVAL]
        other = await channel.connect(path, name="s")
        with pytest.raises(OSError, match="Invalid argument"):
            await serving
        await other.close()
    listener.close()

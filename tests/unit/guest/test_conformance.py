"""What every guest must do, whoever plays it: the fake, and the real agent where one was built.

The real agent runs as a plain process when HUTCH_TEST_AGENT names a program that answers
`--listen SOCKET` with the protocol; tests/vm holds it to the same protocol inside a machine.
"""

import asyncio
import io
import os
import signal
import tarfile
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path

import pytest

from hutch.errors import HutchError
from hutch.guest.base import (
    Channel,
    ExecEvent,
    ExecResult,
    ExecStream,
    FileType,
    Guest,
    GuestExec,
    Output,
    OutputEnd,
    OutputGap,
    TerminalSize,
)
from hutch.guest.fake import FakeAgent
from hutch.guest.frames import MAGIC
from hutch.guest.session import connect_guest
from tests.waiting import until

REAL_AGENT = os.environ.get("HUTCH_TEST_AGENT")
ENV = ("PATH=/usr/bin:/bin",)


class Subject:
    """A running guest: where it listens, a directory that tests may fill, a port that echoes."""

    def __init__(self, socket: Path, top: str, echo: int) -> None:
        self.socket = socket
        self.top = top
        self.echo = echo

    async def connect(self) -> Guest:
        return await connect_guest(self.socket, timeout=60)


@pytest.fixture(params=["fake", "agent"] if REAL_AGENT else ["fake"])
async def subject(request: pytest.FixtureRequest, short_tmp: Path) -> AsyncIterator[Subject]:
    socket = short_tmp / "guest.sock"
    if request.param == "fake":
        async with FakeAgent(socket, ready=True) as agent:
            agent.services[7] = b""
            yield Subject(socket, "/data", 7)
        return
    top = short_tmp / "top"
    top.mkdir()
    process = await asyncio.create_subprocess_exec(str(REAL_AGENT), "--listen", str(socket))
    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    yield Subject(socket, str(top), server.sockets[0].getsockname()[1])
    server.close()
    process.kill()
    await process.wait()


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(1 << 16):
        writer.write(data)
        await writer.drain()
    writer.close()


@pytest.fixture
async def session(subject: Subject) -> AsyncIterator[Guest]:
    guest = await subject.connect()
    yield guest
    await guest.close()


async def collect(stream: ExecStream) -> tuple[bytes, bytes, ExecResult]:
    """Read an attachment to its end, checking that offsets have no hole."""
    output = {Channel.STDOUT: b"", Channel.STDERR: b""}
    position: dict[Channel, int] = {}
    async for event in stream:
        match event:
            case Output(channel, offset, data):
                assert position.get(channel, offset) == offset
                position[channel] = offset + len(data)
                output[channel] += data
                stream.ack(channel, len(data))
            case OutputGap(channel, offset, size):
                position[channel] = offset + size
            case OutputEnd(channel, offset):
                assert position.get(channel, offset) == offset
            case ExecResult():
                return output[Channel.STDOUT], output[Channel.STDERR], event
    raise AssertionError("no result")


async def run(session: Guest, *argv: str, **fields: object) -> tuple[bytes, bytes, ExecResult]:
    exec_id = f"t{len(await session.list_execs())}"
    request = GuestExec(exec_id, argv, env=ENV, **fields)  # type: ignore[arg-type]
    return await collect(await session.start_exec(request))


async def source(*parts: bytes) -> AsyncIterator[bytes]:
    for part in parts:
        yield part


async def code_of(awaitable: object) -> str:
    with pytest.raises(HutchError) as caught:
        await awaitable  # type: ignore[misc]
    return caught.value.code


# ---- the connection


async def test_hello_says_what_the_agent_is(session: Guest) -> None:
    assert session.info.protocol == 1
    assert session.info.cpus >= 1
    assert session.info.boot_id


async def test_ping_takes_a_while(session: Guest) -> None:
    assert 0 < await session.ping() < 5


async def test_stats_are_plausible(session: Guest) -> None:
    stats = await session.stats()
    assert 0 < stats["memory"]["available"] <= stats["memory"]["total"]
    assert stats["cpu_count"] >= 1
    assert len(stats["load"]) == 3


async def test_programs_are_read_ahead(session: Guest) -> None:
    assert await session.prefetch(["sh", "/none/such"]) > 0


async def test_the_next_connection_goes_on(subject: Subject) -> None:
    first = await subject.connect()
    await first.spawn_exec(GuestExec("kept", ["sleep", "60"], env=ENV))
    await first.close()
    second = await subject.connect()
    (row,) = await second.list_execs()
    assert (row.id, row.running) == ("kept", True)
    await second.signal_exec("kept", signal.SIGKILL)
    await second.close()


# ---- programs


@pytest.mark.parametrize(("command", "code"), [("true", 0), ("false", 1)])
async def test_exit_codes(session: Guest, command: str, code: int) -> None:
    _, _, result = await run(session, command)
    assert (result.code, result.signal, result.exit_code) == (code, None, code)


async def test_stdout_and_stderr_stay_apart(session: Guest) -> None:
    out, err, result = await run(session, "sh", "-c", "echo out; echo err >&2; exit 7")
    assert (out, err, result.code) == (b"out\n", b"err\n", 7)


async def test_a_terminal_has_one_channel(session: Guest) -> None:
    out, err, _ = await run(
        session, "sh", "-c", "echo out; echo err >&2", tty=TerminalSize(24, 80), stdin=True
    )
    assert (out.replace(b"\r\n", b"\n"), err) == (b"out\nerr\n", b"")


async def test_stdin_reaches_the_program_and_ends(session: Guest) -> None:
    stream = await session.start_exec(GuestExec("cat", ["cat"], env=ENV, stdin=True))
    payload = os.urandom(3 << 20) + MAGIC + os.urandom(100)
    async with asyncio.TaskGroup() as group:

        async def feed() -> None:
            await stream.write(payload)
            await stream.close_stdin()

        group.create_task(feed())
        reading = group.create_task(collect(stream))
    out, _, result = reading.result()
    assert (out == payload, result.code) == (True, 0)


async def test_output_beyond_the_window_is_complete(session: Guest) -> None:
    out, _, _ = await run(session, "head", "-c", str(5 << 20), "/dev/zero")
    assert len(out) == 5 << 20


async def test_a_reader_that_stalls_gets_one_window_only(session: Guest) -> None:
    request = GuestExec("big", ["head", "-c", str(3 << 20), "/dev/zero"], env=ENV)
    stream = await session.start_exec(request)
    seen = 0
    async for event in stream:
        assert isinstance(event, Output)
        seen += len(event.data)
        if seen == 1 << 20:
            break
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(anext(aiter(stream)), 0.2)
    stream.ack(Channel.STDOUT, seen)
    out, _, result = await collect(stream)
    assert (seen + len(out), result.code) == (3 << 20, 0)


async def test_signals_end_programs(session: Guest) -> None:
    stream = await session.start_exec(GuestExec("s", ["sleep", "60"], env=ENV))
    await stream.signal(signal.SIGTERM)
    _, _, result = await collect(stream)
    assert (result.code, result.signal, result.exit_code) == (None, 15, 143)


async def test_a_timeout_ends_the_program(session: Guest) -> None:
    _, _, result = await run(session, "sleep", "60", timeout=0.1, kill_after=1.0)
    assert result.timed_out
    assert result.exit_code == 124


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"argv": ["no-such-program"]}, "command_not_found"),
        ({"argv": ["true"], "user": "no-such-user"}, "no_such_user"),
        ({"argv": ["true"], "cwd": "/no/such/place"}, "guest_refused"),
    ],
)
async def test_programs_that_cannot_start(
    session: Guest, fields: dict[str, object], code: str
) -> None:
    request = GuestExec("x", env=ENV, **fields)  # type: ignore[arg-type]
    assert await code_of(session.start_exec(request)) == code


async def test_a_file_that_is_no_program(session: Guest, subject: Subject) -> None:
    await session.files.write(f"{subject.top}/plain", source(b"x"), mode=0o644)
    request = GuestExec("x", [f"{subject.top}/plain"], env=ENV)
    assert await code_of(session.start_exec(request)) == "command_not_executable"


async def test_an_id_in_use_is_refused(session: Guest) -> None:
    await session.spawn_exec(GuestExec("same", ["sleep", "60"], env=ENV))
    assert (
        await code_of(session.spawn_exec(GuestExec("same", ["true"], env=ENV))) == "guest_refused"
    )
    await session.signal_exec("same", signal.SIGKILL)


async def test_output_is_kept_until_it_is_acknowledged(session: Guest) -> None:
    await session.spawn_exec(GuestExec("d", ["echo", "hello"], env=ENV, detached=True))
    first = await session.attach_exec("d")
    assert (await collect(first))[0] == b"hello\n"
    again = await session.attach_exec("d", {1: 2, 2: 0})
    assert (await collect(again))[0] == b"llo\n"


async def test_detaching_leaves_the_program_and_its_output(session: Guest) -> None:
    stream = await session.start_exec(GuestExec("c", ["cat"], env=ENV, stdin=True))
    await stream.write(b"one")
    event = await anext(aiter(stream))
    assert event == Output(Channel.STDOUT, 0, b"one")
    stream.ack(Channel.STDOUT, 3)
    await stream.close()
    again = await session.attach_exec("c")
    await again.write(b"two")
    await again.close_stdin()
    out, _, result = await collect(again)
    assert (out, result.code) == (b"two", 0)


async def test_the_latest_attachment_wins(session: Guest) -> None:
    first = await session.start_exec(GuestExec("w", ["cat"], env=ENV, stdin=True))
    second = await session.attach_exec("w")
    assert await code_of(anext(aiter(first))) == "exec_taken"
    await second.close_stdin()
    assert (await collect(second))[2].code == 0


async def test_a_full_ring_drops_the_oldest_when_told(session: Guest) -> None:
    size = 3 << 20
    argv = ["head", "-c", str(size), "/dev/zero"]
    await session.spawn_exec(GuestExec("drop", argv, env=ENV, detached=True, overflow="drop"))
    await until(lambda: ended(session, "drop"))
    stream = await session.attach_exec("drop", {1: 0, 2: 0})
    events: list[ExecEvent] = []
    async for event in stream:
        events.append(event)
        if isinstance(event, Output):
            stream.ack(event.channel, len(event.data))
    gap = events[0]
    assert isinstance(gap, OutputGap)
    kept = sum(len(event.data) for event in events if isinstance(event, Output))
    assert gap.size + kept == size
    assert kept <= 1 << 20


async def ended(session: Guest, exec_id: str) -> bool:
    return any(row.id == exec_id and not row.running for row in await session.list_execs())


async def test_sessions_are_listed_until_released(session: Guest) -> None:
    await run(session, "sh", "-c", "exit 3")
    (row,) = await session.list_execs()
    assert row.result is not None
    assert (row.argv[0], row.result.code, row.running) == ("sh", 3, False)
    await session.release_exec(row.id)
    assert await session.list_execs() == []
    assert await code_of(session.release_exec(row.id)) == "exec_not_found"
    assert await code_of(session.attach_exec(row.id)) == "exec_not_found"
    assert await code_of(session.signal_exec(row.id, 15)) == "exec_not_found"


async def test_the_end_of_a_program_is_an_event(session: Guest) -> None:
    events = session.events()
    await session.spawn_exec(GuestExec("e", ["sh", "-c", "exit 4"], env=ENV))
    event = await asyncio.wait_for(anext(aiter(events)), 60)
    assert (event.kind, event.fields["id"], event.fields["result"]["code"]) == ("exec.exit", "e", 4)


# ---- files


async def test_a_file_comes_back(session: Guest, subject: Subject) -> None:
    path, content = f"{subject.top}/f", os.urandom(3 << 20) + MAGIC * 3
    assert await session.files.write(path, source(content[:5], content[5:]), mode=0o640) == len(
        content
    )
    assert b"".join([part async for part in session.files.read(path)]) == content
    part = [part async for part in session.files.read(path, offset=10, length=5)]
    assert b"".join(part) == content[10:15]
    entry = await session.files.stat(path)
    assert (entry.type, entry.mode & 0o7777, entry.size) == (FileType.FILE, 0o640, len(content))


async def test_parents_and_appending(session: Guest, subject: Subject) -> None:
    path = f"{subject.top}/a/b/f"
    await session.files.write(path, source(b"one"), parents=True)
    assert await session.files.write(path, source(b"two"), append=True) == 3
    assert [part async for part in session.files.read(path)] == [b"onetwo"]


async def test_an_existing_file_keeps_its_mode(session: Guest, subject: Subject) -> None:
    path = f"{subject.top}/f"
    await session.files.write(path, source(b"one"), mode=0o600)
    await session.files.write(path, source(b"two"))
    assert (await session.files.stat(path)).mode & 0o7777 == 0o600


async def test_a_link_is_written_through(session: Guest, subject: Subject) -> None:
    top = subject.top
    await session.files.write(f"{top}/f", source(b"one"))
    await session.files.symlink("f", f"{top}/l")
    await session.files.write(f"{top}/l", source(b"two"))
    assert [part async for part in session.files.read(f"{top}/f")] == [b"two"]
    assert (await session.files.stat(f"{top}/l", follow=False)).type == FileType.SYMLINK


async def test_a_broken_upload_changes_nothing(session: Guest, subject: Subject) -> None:
    async def broken() -> AsyncIterator[bytes]:
        yield b"new"
        raise RuntimeError("the source broke off")

    path = f"{subject.top}/f"
    await session.files.write(path, source(b"old"))
    with pytest.raises(RuntimeError):
        await session.files.write(path, broken())
    assert [part async for part in session.files.read(path)] == [b"old"]
    assert [entry.name async for entry in session.files.list(subject.top)] == ["f"]


async def test_a_reader_may_stop_early(session: Guest, subject: Subject) -> None:
    path = f"{subject.top}/f"
    await session.files.write(path, source(bytes(3 << 20)))
    async with aclosing(session.files.read(path)) as chunks:
        async for _ in chunks:
            break
    assert await session.ping() > 0


async def test_directories_are_listed_by_name(session: Guest, subject: Subject) -> None:
    top = subject.top
    await session.files.mkdir(f"{top}/b/c", parents=True)
    await session.files.write(f"{top}/a", source(b"1"))
    await session.files.symlink("b", f"{top}/l")
    entries = [entry async for entry in session.files.list(top)]
    assert [(entry.name, entry.type) for entry in entries] == [
        ("a", FileType.FILE),
        ("b", FileType.DIR),
        ("l", FileType.SYMLINK),
    ]
    assert entries[2].target == "b"
    assert (await session.files.stat(f"{top}/l")).type == FileType.DIR
    assert (await session.files.stat(f"{top}/l", follow=False)).type == FileType.SYMLINK


async def test_names_are_bytes(session: Guest, subject: Subject) -> None:
    path = f"{subject.top}/\udcff\udcfe"
    await session.files.write(path, source(b"x"))
    assert [entry.name async for entry in session.files.list(subject.top)] == ["\udcff\udcfe"]


async def test_changes(session: Guest, subject: Subject) -> None:
    files, top = session.files, subject.top
    await files.mkdir(f"{top}/d", mode=0o700)
    await files.write(f"{top}/d/f", source(b"1"))
    await files.chmod(f"{top}/d/f", 0o600)
    assert (await files.stat(f"{top}/d/f")).mode & 0o7777 == 0o600
    await files.rename(f"{top}/d/f", f"{top}/d/g")
    assert await code_of(files.stat(f"{top}/d/f")) == "path_not_found"
    assert await code_of(files.remove(f"{top}/d")) == "guest_refused"
    await files.remove(f"{top}/d", recursive=True)
    assert [entry async for entry in files.list(top)] == []


async def test_what_the_file_system_refuses(session: Guest, subject: Subject) -> None:
    files, top = session.files, subject.top
    await files.write(f"{top}/f", source(b"1"))
    assert await code_of(files.mkdir(f"{top}/f")) == "guest_refused"
    assert await code_of(files.write(f"{top}/f", source(b"2"), exclusive=True)) == "guest_refused"
    assert await code_of(files.write(f"{top}/no/f", source(b"2"))) == "path_not_found"
    assert await code_of(files.write(top, source(b"2"))) == "guest_refused"
    assert await code_of(anext(files.read(f"{top}/none"))) == "path_not_found"  # type: ignore[call-overload]
    assert await code_of(anext(files.list(f"{top}/f"))) == "guest_refused"  # type: ignore[call-overload]
    assert await code_of(files.rename(f"{top}/f", f"{top}/f/x")) == "guest_refused"
    await files.write(f"{top}/g", source(b"1"))
    assert await code_of(files.rename(f"{top}/f", f"{top}/g", replace=False)) == "guest_refused"


async def test_trees_travel_as_tar(session: Guest, subject: Subject) -> None:
    files, top = session.files, subject.top
    await files.mkdir(f"{top}/from/d", parents=True)
    await files.write(f"{top}/from/d/f", source(b"content"), mode=0o750)
    await files.symlink("d/f", f"{top}/from/l")
    archive = b"".join([part async for part in files.read_tar(f"{top}/from", name="tree")])
    with tarfile.open(fileobj=io.BytesIO(archive)) as members:
        assert sorted(members.getnames()) == ["tree", "tree/d", "tree/d/f", "tree/l"]
    await files.mkdir(f"{top}/to")
    assert await files.write_tar(f"{top}/to", source(archive)) == 4
    assert b"".join([part async for part in files.read(f"{top}/to/tree/l")]) == b"content"
    assert (await files.stat(f"{top}/to/tree/d/f")).mode & 0o7777 == 0o750


# ---- tunnels


async def test_a_tunnel_echoes_until_both_sides_end(session: Guest, subject: Subject) -> None:
    tunnel = await session.tunnel(subject.echo)
    payload = os.urandom(3 << 20)
    received = bytearray()

    async def send() -> None:
        await tunnel.write(payload)
        await tunnel.write_eof()

    async with asyncio.TaskGroup() as group:
        group.create_task(send())
        while data := await tunnel.read():
            received += data
    assert received == payload
    await tunnel.close()


async def test_a_port_where_nobody_listens(session: Guest) -> None:
    assert await code_of(session.tunnel(1)) == "guest_refused"

"""Programs and their clients: exact bytes, back-pressure, lost clients, detached programs."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from hutch.guest.base import Channel, Output
from hutch.images.base import no_report
from hutch.models import ExecOutcome, ExecSpec, SandboxInfo, TtySize
from hutch.service.host import HostService
from tests.unit.service.world import World, expect, output, read_logs, spec
from tests.waiting import until

MIB = 1 << 20


@pytest.fixture
async def service(world: World) -> AsyncIterator[HostService]:
    async with world.service() as service:
        yield service


@pytest.fixture
async def idle(service: HostService) -> SandboxInfo:
    info = await service.sandboxes.create(spec(idle=True, env={"A": "1"}), no_report)
    return await service.sandboxes.start(info.id)


async def test_much_output_arrives_whole(service: HostService, idle: SandboxInfo) -> None:
    size = 8 * MIB
    session = await service.execs.start(idle.id, ExecSpec(["head", "-c", str(size), "/dev/zero"]))
    out, err, outcome = await output(session)
    assert (out.count(0), len(out), err, outcome.exit_code) == (size, size, b"", 0)
    await session.close(detach=False)


async def test_a_client_that_does_not_acknowledge_holds_the_program_up(
    world: World, service: HostService, idle: SandboxInfo
) -> None:
    session = await service.execs.start(idle.id, ExecSpec(["head", "-c", str(4 * MIB), "x"]))
    taken = 0
    events = aiter(session)
    while taken < MIB:
        event = await anext(events)
        assert isinstance(event, Output)
        taken += len(event.data)
    waiting = asyncio.timeout(0.1)
    with pytest.raises(TimeoutError):
        async with waiting:
            await anext(events)
    assert world.agent(idle).sessions[session.info.id].result is None
    await session.cancel()
    await session.close(detach=False)


async def test_stdin(service: HostService, idle: SandboxInfo) -> None:
    session = await service.execs.start(idle.id, ExecSpec(["cat"], stdin=True))
    await session.write(b"a\0b")
    await session.close_stdin()
    assert (await output(session))[0] == b"a\0b"


async def test_environment_directory_user(
    world: World, service: HostService, idle: SandboxInfo
) -> None:
    session = await service.execs.start(idle.id, ExecSpec(["env"], env={"B": "2"}, user="www"))
    assert (await output(session))[0].splitlines() == [b"PATH=/bin", b"A=1", b"B=2"]
    request = world.agent(idle).sessions[session.info.id].request
    assert request["user"] == "www"


async def test_terminal(world: World, service: HostService, idle: SandboxInfo) -> None:
    command = ExecSpec(["sleep", "1000"], tty=TtySize(10, 20))
    session = await service.execs.start(idle.id, command)
    await session.resize(TtySize(30, 40))
    await until(
        lambda: world.agent(idle).sessions[session.info.id].size == {"rows": 30, "cols": 40}
    )
    await expect("bad_request", session.resize(TtySize(-1, 0)))
    await session.signal("INT")
    assert (await output(session))[2].exit_code == 130


async def test_signals_by_name(service: HostService, idle: SandboxInfo) -> None:
    session = await service.execs.start(idle.id, ExecSpec(["sleep", "1000"]))
    await expect("bad_request", service.execs.signal(idle.id, session.info.id, "NOPE"))
    await service.execs.signal(idle.id, session.info.id, "SIGUSR1")
    assert (await output(session))[2].signal == 10


@pytest.mark.parametrize(
    ("command", "code"),
    [
        (ExecSpec(["nonsense"]), "command_not_found"),
        (ExecSpec([]), "bad_command"),
        (ExecSpec(["true"], user="nobody-here"), "no_such_user"),
        (ExecSpec(["true"], workdir="relative"), "bad_path"),
        (ExecSpec(["tr\0ue"]), "bad_request"),
    ],
)
async def test_programs_that_cannot_start(
    service: HostService, idle: SandboxInfo, command: ExecSpec, code: str
) -> None:
    await expect(code, service.execs.start(idle.id, command))
    await expect(code, service.execs.spawn(idle.id, command))
    assert await service.execs.list(idle.id) == []


async def test_a_time_limit(service: HostService, idle: SandboxInfo) -> None:
    session = await service.execs.start(idle.id, ExecSpec(["sleep", "1000"], timeout=0.1))
    outcome = (await output(session))[2]
    assert (outcome.exit_code, outcome.timed_out) == (124, True)


async def test_a_lost_client_gets_its_grace(
    world: World, service: HostService, idle: SandboxInfo
) -> None:
    session = await service.execs.start(idle.id, ExecSpec(["sleep", "1000"]))
    await session.close(detach=False)
    assert world.agent(idle).sessions[session.info.id].result is None
    await until(lambda: session.info.id not in world.agent(idle).sessions)


async def test_a_lost_client_may_come_back(world: World) -> None:
    world.settings = replace(world.settings, exec_orphan_grace=60.0)
    async with world.service() as service:
        info = await service.sandboxes.create(spec(idle=True), no_report)
        await service.sandboxes.start(info.id)
        script = ["sh", "-c", "echo one; sleep 0.5; echo two"]
        session = await service.execs.start(info.id, ExecSpec(script))
        await anext(aiter(session))
        await session.close(detach=False)
        session = await service.execs.attach(info.id, session.info.id)
        assert (await output(session))[0] == b"one\ntwo\n"


async def test_another_client_takes_over(service: HostService, idle: SandboxInfo) -> None:
    first = await service.execs.start(idle.id, ExecSpec(["sleep", "1000"]))
    second = await service.execs.attach(idle.id, first.info.id)
    await expect("exec_taken", output(first))
    await first.close(detach=False)
    await second.cancel()
    assert (await output(second))[2].exit_code == 137


async def test_a_client_that_lets_go_leaves_a_log(service: HostService, idle: SandboxInfo) -> None:
    script = ["sh", "-c", "echo one; sleep 1.5; echo two"]
    session = await service.execs.start(idle.id, ExecSpec(script))
    event = await anext(aiter(session))
    assert isinstance(event, Output)
    await session.close(detach=True)
    assert await read_logs(service, idle.id, exec_id=session.info.id, follow=True) == b"two\n"
    info = await service.execs.get(idle.id, session.info.id)
    assert info.outcome is not None
    assert info.outcome.exit_code == 0


async def test_a_detached_program_logs(service: HostService, idle: SandboxInfo) -> None:
    info = await service.execs.spawn(idle.id, ExecSpec(["sh", "-c", "echo a; echo b >&2; exit 4"]))
    text = await read_logs(service, idle.id, exec_id=info.id, follow=True)
    assert sorted(text.split()) == [b"a", b"b"]
    ended = await service.execs.get(idle.id, info.id)
    assert (ended.running, ended.outcome and ended.outcome.exit_code) == (False, 4)
    session = await service.execs.attach(idle.id, info.id, {1: 0, 2: 0})
    out, err, outcome = await output(session)
    assert (out, err, outcome.exit_code) == (b"a\n", b"b\n", 4)


async def test_two_clients_of_the_main_process(world: World, service: HostService) -> None:
    info = await service.sandboxes.create(spec("cat", stdin=True, detached=False), no_report)
    _, first = await service.sandboxes.start_attached(info.id)
    second = await service.execs.attach(info.id, "main")
    await first.write(b"x" * (3 * MIB // 2))
    await first.close_stdin()
    stalled = asyncio.timeout(0.2)
    with pytest.raises(TimeoutError):
        async with stalled:  # the second acknowledges nothing yet
            await output(first)
    await first.close(detach=False)
    assert len((await output(second))[0]) == 3 * MIB // 2
    assert len(await read_logs(service, info.id)) == 3 * MIB // 2


async def test_a_client_that_goes_away_stalls_nobody(service: HostService) -> None:
    script = ["sh", "-c", "sleep 0.1; head -c 3000000 /dev/zero"]
    info = await service.sandboxes.create(spec(*script, detached=False), no_report)
    _, session = await service.sandboxes.start_attached(info.id)
    await session.close(detach=False)
    last = await service.sandboxes.wait(info.id, timeout=60)
    assert last.exit is not None
    assert last.exit.code == 0
    assert len(await read_logs(service, info.id)) == 3000000


async def test_a_broken_connection_is_made_anew_unnoticed(
    world: World, service: HostService, idle: SandboxInfo
) -> None:
    script = ["sh", "-c", "seq 2000; sleep 0.2; seq 2000"]
    session = await service.execs.start(idle.id, ExecSpec(script))
    out, taken = b"", False
    async for event in session:
        if isinstance(event, Output):
            assert event.offset == len(out)
            out += event.data
            if taken:
                session.ack(Channel.STDOUT, len(event.data))
            if not taken:
                world.agent(idle).disconnect()
                session.ack(Channel.STDOUT, len(event.data))
                taken = True
    assert isinstance(event, ExecOutcome)
    once = b"".join(b"%d\n" % number for number in range(1, 2001))
    assert out == once * 2


async def test_a_guest_that_always_hangs_up_is_given_up(world: World, service: HostService) -> None:
    info = await service.sandboxes.create(spec(), no_report)
    await service.sandboxes.start(info.id)

    async def hang_up() -> None:
        while world.engine.running():
            world.agent(info).disconnect()
            await asyncio.sleep(0.01)

    async with asyncio.TaskGroup() as group:
        group.create_task(hang_up())
        last = await service.sandboxes.wait(info.id, timeout=60)
    assert last.exit is not None
    assert last.exit.reason == "engine"
    assert "given up" in (last.exit.message or "")

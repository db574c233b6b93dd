"""Ports of the host that lead into sandboxes, with fake guests behind them."""

import asyncio
import contextlib
import random
import socket
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from typing import Any

import pytest

from hutch.errors import error
from hutch.images.base import no_report
from hutch.models import SandboxInfo, SandboxState
from hutch.networking import PublishedPort
from hutch.service import publishing
from hutch.service.host import HostService
from tests.unit.service.cutting import cuts, settled
from tests.unit.service.pooling import warm
from tests.unit.service.world import World, expect, spec
from tests.waiting import until

WEB = 80
GREETING = b"hello from the guest\n"


@pytest.fixture
async def service(world: World) -> AsyncIterator[HostService]:
    async with world.service() as service:
        yield service


@contextlib.contextmanager
def someone(address: str = "127.0.0.1") -> Iterator[int]:
    """Have another program listen on a port."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family) as listener:
        listener.bind((address, 0))
        listener.listen()
        yield listener.getsockname()[1]


def free_port() -> int:
    """Return a port that is free: neither one that the kernel gives out nor one that we choose."""
    while True:
        number = random.randrange(10_000, 20_000)
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", number)):
            return number


async def make(service: HostService, *ports: PublishedPort, **fields: Any) -> SandboxInfo:
    return await service.sandboxes.create(spec(ports=list(ports), **fields), no_report)


async def run(service: HostService, *ports: PublishedPort, **fields: Any) -> SandboxInfo:
    """Make and start a sandbox as `run` does."""
    info = await make(service, *ports, provisional=True, **fields)
    return await service.sandboxes.start(info.id)


def serve(world: World, info: SandboxInfo, port: int = WEB, greeting: bytes = GREETING) -> None:
    world.agent(info).services[port] = greeting


async def ask(port: PublishedPort, data: bytes = b"ping") -> bytes:
    """Return what comes of a connection on which `data` is sent, up to its end."""
    reader, writer = await asyncio.open_connection(port.address, port.host_port)
    try:
        writer.write(data)
        writer.write_eof()
        return await asyncio.wait_for(reader.read(), 60)
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def is_closed(port: PublishedPort) -> bool:
    """Tell whether nobody listens on a port."""
    try:
        _, writer = await asyncio.open_connection(port.address, port.host_port)
    except ConnectionRefusedError:
        return True
    except ConnectionResetError:  # by the guest
        return False
    writer.close()
    return False


# ---- from the making to the end


async def test_a_port_leads_to_the_guest_from_the_start_to_the_stop(
    world: World, service: HostService
) -> None:
    info = await run(service, PublishedPort(WEB))
    [port] = info.ports
    assert (port.guest_port, port.address) == (WEB, "127.0.0.1")
    assert port.host_port > 1023
    serve(world, info)
    assert await ask(port) == GREETING + b"ping"
    await service.sandboxes.stop(info.id)
    assert await is_closed(port)
    again = await service.sandboxes.start(info.id)
    assert again.ports == [port]
    serve(world, again)
    assert await ask(port) == GREETING + b"ping"
    await service.sandboxes.remove(info.id, force=True)
    assert await is_closed(port)


async def test_bytes_arrive_whole_both_ways_and_ends_are_passed_on(
    world: World, service: HostService
) -> None:
    info = await run(service, PublishedPort(WEB))
    serve(world, info)
    data = bytes(range(256)) * 12_000  # more than all windows and buffers on the way hold
    results: list[bytes] = []

    async def one() -> None:
        results.append(await ask(info.ports[0], data))

    async with asyncio.TaskGroup() as group:
        for _ in range(4):
            group.create_task(one())
    assert results == [GREETING + data] * 4


async def test_what_was_chosen_is_held_from_the_making_on(
    world: World, service: HostService
) -> None:
    number = free_port()
    info = await make(service, PublishedPort(WEB, number), provisional=True, name="web")
    failure = await expect("port_taken", make(service, PublishedPort(81, number), provisional=True))
    assert "web" in failure.message
    assert failure.details == {"port": number, "sandbox": "web"}
    # Who comes now waits until it runs.
    reader, writer = await asyncio.open_connection("127.0.0.1", number)
    await service.sandboxes.start(info.id)
    with pytest.raises(ConnectionResetError):  # nothing listens in it
        await asyncio.wait_for(reader.read(), 60)
    writer.close()
    await service.sandboxes.remove(info.id, force=True)
    assert await is_closed(info.ports[0])


async def test_what_another_program_has_is_refused(world: World, service: HostService) -> None:
    with someone() as number:
        failure = await expect(
            "port_taken", make(service, PublishedPort(WEB, number), provisional=True)
        )
        assert "another program" in failure.message
        assert failure.details == {"port": number, "sandbox": None}
        assert [*service._registry] == []
        # Without a start nothing is taken yet; the start then changes nothing.
        info = await make(service, PublishedPort(WEB, number))
        await expect("port_taken", service.sandboxes.start(info.id))
        assert (await service.sandboxes.get(info.id)).state is SandboxState.CREATED
    started = await service.sandboxes.start(info.id)
    serve(world, started)
    assert await ask(started.ports[0]) == GREETING + b"ping"


async def test_one_of_two_that_is_taken_leaves_the_other_free(service: HostService) -> None:
    first = free_port()
    with someone() as number:
        wanted = (PublishedPort(80, first), PublishedPort(81, number))
        await expect("port_taken", make(service, *wanted, provisional=True))
        assert await is_closed(wanted[0])
        info = await make(service, *wanted)
        await expect("port_taken", service.sandboxes.start(info.id))
        assert await is_closed(wanted[0])


async def test_a_start_that_fails_gives_its_ports_up(world: World, service: HostService) -> None:
    info = await make(service, PublishedPort(WEB), provisional=True)
    world.kernels.fail = error("kernel_missing", "told to")
    await expect("kernel_missing", service.sandboxes.start(info.id))
    assert await is_closed(info.ports[0])


async def test_free_ports_are_others_than_those_on_record(service: HostService) -> None:
    numbers = set()
    for _ in range(20):
        info = await make(service, PublishedPort(80), PublishedPort(81))
        numbers |= {port.host_port for port in info.ports}
    assert len(numbers) == 40


async def test_what_an_image_exposes_is_published(world: World, service: HostService) -> None:
    world.images.config = replace(
        world.images.config, exposed_ports=["80/tcp", "53/udp", "8000-8001/tcp", "81/tcp"]
    )
    number = free_port()
    info = await run(service, PublishedPort(81, number), publish_all=True)
    assert [port.guest_port for port in info.ports] == [81, 80, 8000, 8001]
    assert info.ports[0].host_port == number
    serve(world, info, 8001)
    assert await ask(info.ports[3]) == GREETING + b"ping"
    world.images.config = replace(world.images.config, exposed_ports=["0.0.0.0:80:80"])
    await expect("bad_port", make(service, publish_all=True))


async def test_requests_that_cannot_be(service: HostService) -> None:
    for wanted in (
        [PublishedPort(0)],
        [PublishedPort(80, 70_000)],
        [PublishedPort(80, address="localhost")],
        [PublishedPort(80, 8080), PublishedPort(81, 8080)],
        [PublishedPort(number) for number in range(1, 300)],
    ):
        await expect("bad_port", make(service, *wanted))
    absent = PublishedPort(80, 8080, "192.0.2.1")
    await expect("bad_port", make(service, absent, provisional=True))


# ---- connections


async def test_a_port_that_the_guest_refuses_is_reset(service: HostService) -> None:
    info = await run(service, PublishedPort(WEB))
    with pytest.raises(ConnectionResetError):
        await ask(info.ports[0])


@pytest.mark.parametrize("rest", ["pause", "park"])
async def test_a_connection_wakes_what_rests(world: World, service: HostService, rest: str) -> None:
    info = await run(service, PublishedPort(WEB), idle=True)
    serve(world, info)
    await getattr(service.sandboxes, rest)(info.id)
    reader, writer = await asyncio.open_connection("127.0.0.1", info.ports[0].host_port)
    if rest == "pause":
        assert await asyncio.wait_for(reader.readexactly(len(GREETING)), 60) == GREETING
    else:  # the agent of an unparked one is another, in which nothing listens
        with pytest.raises(ConnectionResetError):
            await asyncio.wait_for(reader.read(), 60)
    assert (await service.sandboxes.get(info.id)).state is SandboxState.RUNNING
    writer.close()


async def test_a_connection_is_a_use_until_it_ends(world: World, service: HostService) -> None:
    info = await run(service, PublishedPort(WEB))
    serve(world, info)
    activity = service._registry.find(info.id).running().activity
    reader, writer = await asyncio.open_connection("127.0.0.1", info.ports[0].host_port)
    await reader.readexactly(len(GREETING))
    assert activity.busy
    writer.close()
    await until(lambda: not activity.busy, what="it is a use no more")


async def test_the_end_of_a_sandbox_is_a_reset_and_no_end(
    world: World, service: HostService
) -> None:
    info = await run(service, PublishedPort(WEB))
    serve(world, info)
    reader, writer = await asyncio.open_connection("127.0.0.1", info.ports[0].host_port)
    await reader.readexactly(len(GREETING))
    await service.sandboxes.kill(info.id)
    with pytest.raises(ConnectionResetError):
        await asyncio.wait_for(reader.read(), 60)
    writer.close()


async def test_more_connections_than_allowed_wait(world: World) -> None:
    world.settings = replace(world.settings, port_connections=2)
    async with world.service() as service:
        info = await run(service, PublishedPort(80), PublishedPort(81))
        serve(world, info, 80)
        serve(world, info, 81)
        clients = [
            await asyncio.open_connection("127.0.0.1", port.host_port)
            for port in (info.ports[0], info.ports[1], info.ports[0])
        ]
        for reader, _ in clients[:2]:
            await asyncio.wait_for(reader.readexactly(len(GREETING)), 60)
        publication = service.ports._published[info.id]
        assert publication.connections == 2
        clients[1][1].close()
        await asyncio.wait_for(clients[2][0].readexactly(len(GREETING)), 60)
        for _, writer in clients:
            writer.close()
        await until(lambda: publication.connections == 0, what="all have ended")


# ---- while it lives


async def test_ports_are_published_and_given_up_while_it_runs(
    world: World, service: HostService
) -> None:
    info = await run(service, name="web")
    serve(world, info)
    number = free_port()
    free, chosen = await service.ports.publish(
        "web", [PublishedPort(WEB), PublishedPort(81, number)]
    )
    assert chosen == PublishedPort(81, number)
    assert (await service.sandboxes.get("web")).ports == [free, chosen]
    assert await service.ports.list("web") == [free, chosen]
    reader, writer = await asyncio.open_connection("127.0.0.1", free.host_port)
    assert await asyncio.wait_for(reader.readexactly(len(GREETING)), 60) == GREETING
    failure = await expect("port_taken", service.ports.publish("web", [chosen]))
    assert "web" in failure.message
    assert await service.ports.unpublish("web", free.host_port) == [free]
    with pytest.raises(ConnectionResetError):
        await asyncio.wait_for(reader.read(), 60)
    writer.close()
    assert await is_closed(free)
    await expect("port_not_found", service.ports.unpublish("web", free.host_port))
    await expect("port_not_found", service.ports.unpublish("web", number, "::1"))
    assert await service.ports.unpublish("web", number, "127.0.0.1") == [chosen]
    kinds = [event.kind for event in service._parts.events.kept(None)]
    assert kinds.count("sandbox.published") == 1
    assert kinds.count("sandbox.unpublished") == 2


async def test_ports_of_one_that_is_stopped_are_open_from_its_start_on(
    world: World, service: HostService
) -> None:
    info = await make(service)
    [port] = await service.ports.publish(info.id, [PublishedPort(WEB)])
    assert await is_closed(port)
    started = await service.sandboxes.start(info.id)
    assert started.ports == [port]
    serve(world, started)
    assert await ask(port) == GREETING + b"ping"
    await service.sandboxes.stop(info.id)
    await service.ports.unpublish(info.id, port.host_port)
    assert (await service.sandboxes.start(info.id)).ports == []
    assert await is_closed(port)


async def test_what_cannot_be_published_changes_nothing(service: HostService) -> None:
    info = await run(service)
    with someone() as number:
        wanted = [PublishedPort(80), PublishedPort(81, number)]
        await expect("port_taken", service.ports.publish(info.id, wanted))
    assert await service.ports.list(info.id) == []
    many = [PublishedPort(number) for number in range(1, 200)]
    await service.ports.publish(info.id, many)
    more = [PublishedPort(number) for number in range(200, 300)]
    await expect("bad_port", service.ports.publish(info.id, more))
    assert len(await service.ports.list(info.id)) == len(many)
    await expect("sandbox_not_found", service.ports.publish("nosuch", wanted))


# ---- other lives


async def test_the_next_daemon_listens_on_the_same_ports(world: World) -> None:
    async with world.service() as service:
        ids = [(await run(service, PublishedPort(WEB), idle=True)).id for _ in range(3)]
        await service.sandboxes.pause(ids[1])
        await service.sandboxes.park(ids[2])
        before = [(await service.sandboxes.get(each)).ports[0] for each in ids]
    assert [await is_closed(port) for port in before] == [True] * 3
    async with world.service() as service:
        infos = [await service.sandboxes.get(each) for each in ids]
        assert [info.ports[0] for info in infos] == before
        for info in infos[:2]:
            serve(world, info)
            assert await ask(info.ports[0]) == GREETING + b"ping"
        assert not await is_closed(infos[2].ports[0])
        assert (await service.sandboxes.get(ids[1])).state is SandboxState.RUNNING


async def test_a_port_that_was_taken_meanwhile_is_tried_again(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publishing, "RETRY_SECONDS", 0.02)
    number = free_port()
    async with world.service() as service:
        info = await run(service, PublishedPort(WEB, number), PublishedPort(81))
    other = socket.create_server(("127.0.0.1", number))
    with other:
        async with world.service() as service:

            async def port() -> PublishedPort:
                return (await service.sandboxes.get(info.id)).ports[0]

            async def told() -> str | None:
                return (await port()).error

            assert "another program" in str(await until(told, what="it is told"))
            assert (await service.sandboxes.get(info.id)).state is SandboxState.RUNNING
            serve(world, info)
            serve(world, info, 81)
            assert await ask(info.ports[1]) == GREETING + b"ping"
            other.close()

            async def mended() -> bool:
                return (await port()).error is None

            await until(mended, what="it is published again")
            assert await ask(info.ports[0]) == GREETING + b"ping"
            kept = service._parts.events.kept(None)
            kinds = [event.kind for event in kept if event.kind.startswith("sandbox.p")]
            assert kinds == ["sandbox.port_failed", "sandbox.published"]


async def test_children_of_a_fork_have_ports_of_their_own(
    world: World, service: HostService
) -> None:
    number = free_port()
    source = await run(service, PublishedPort(WEB, number), idle=True, name="web")
    forked = await service.forks.fork("web", count=2)
    numbers = {number}
    for child in forked.children:
        [port] = child.ports
        assert (port.guest_port, port.address) == (WEB, "127.0.0.1")
        numbers.add(port.host_port)
        serve(world, child, greeting=child.name.encode())
        assert await ask(port, b"") == child.name.encode()
    assert len(numbers) == 3
    serve(world, source)
    assert await ask(source.ports[0], b"") == GREETING


async def test_what_is_restored_has_the_old_ports_if_they_are_free(
    world: World, service: HostService
) -> None:
    number = free_port()
    await run(service, PublishedPort(WEB, number), idle=True, name="web")
    taken = await service.snapshots.create("web")
    other = await service.snapshots.restore(taken.id, "other")
    assert other.ports[0].host_port != number
    await service.sandboxes.remove("web", force=True)
    again = await service.snapshots.restore(taken.id, "again")
    assert again.ports == [PublishedPort(WEB, number)]
    for info in (other, again):
        serve(world, info, greeting=info.name.encode())
        assert await ask(info.ports[0], b"") == info.name.encode()
    booted = await service.snapshots.restore(taken.id, "booted", disk_only=True)
    serve(world, booted)
    assert await ask(booted.ports[0], b"") == GREETING


async def test_what_came_from_elsewhere_is_published_on_loopback_only(
    world: World, service: HostService
) -> None:
    await run(service, PublishedPort(WEB, address="127.0.0.2"), idle=True, name="web")
    taken = await service.snapshots.create("web")
    pieces = [piece async for piece in service.snapshots.export(taken.id)]
    await service.sandboxes.remove("web", force=True)

    async def file() -> AsyncIterator[bytes]:
        for piece in pieces:
            yield piece

    loaded = await service.snapshots.load(file(), "loaded")
    restored = await service.snapshots.restore(loaded.id, "restored")
    [port] = restored.ports
    assert (port.guest_port, port.address) == (WEB, "127.0.0.1")


@pytest.mark.usefixtures("hasty")
async def test_one_that_claims_a_member_of_a_pool_has_its_ports(farm: World) -> None:
    async with farm.service() as service:
        await warm(service)
        info = await run(service, PublishedPort(WEB))
        assert (await service.pools.list())[0].claimed == 1
        serve(farm, info)
        assert await ask(info.ports[0]) == GREETING + b"ping"


async def test_wherever_it_is_cut_off_no_port_is_left(world: World, service: HostService) -> None:
    number = free_port()
    port = PublishedPort(WEB, number)

    async def begin() -> None:
        await run(service, port, name="web")

    async for moment in cuts(begin):
        assert await settled(world, service) == [], moment
        for entry in service._registry:
            await service.sandboxes.remove(entry.info.id, force=True)
        assert await is_closed(port), moment
        assert service.ports._published == {}, moment


async def test_what_is_cut_off_while_it_is_published_is_published_or_not(
    world: World, service: HostService
) -> None:
    await run(service, name="web")
    number = free_port()

    async def begin() -> None:
        await service.ports.publish("web", [PublishedPort(WEB, number)])

    async for moment in cuts(begin):
        assert await settled(world, service) == [], moment
        ports = await service.ports.list("web")
        assert await is_closed(PublishedPort(WEB, number)) == (ports == []), moment
        for port in ports:
            await service.ports.unpublish("web", port.host_port)

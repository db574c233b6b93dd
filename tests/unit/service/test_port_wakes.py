"""Connections to the ports of a sandbox that rests, and what wakes it for them."""

import asyncio
from typing import Any

import pytest

from hutch.errors import error
from hutch.images.base import no_report
from hutch.models import SandboxInfo, SandboxState
from hutch.networking import PublishedPort
from hutch.service.host import HostService
from tests.unit.service.world import World, spec
from tests.waiting import until

WEB = 80
MANY = 5


async def parked(service: HostService) -> SandboxInfo:
    asked = spec(ports=[PublishedPort(WEB)], provisional=True, idle=True)
    made = await service.sandboxes.create(asked, no_report)
    info = await service.sandboxes.start(made.id)
    await service.sandboxes.park(info.id)
    return info


async def read(reader: asyncio.StreamReader) -> bytes:
    try:
        return await asyncio.wait_for(reader.read(), 60)
    except ConnectionResetError:
        return b"reset"


async def test_all_who_wait_share_one_wake_and_its_failure(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries: list[int] = []
    go = asyncio.Event()

    async def fails(*args: object) -> Any:
        tries.append(1)
        await go.wait()
        raise error("engine_failed", "told to")

    async with world.service() as service:
        info = await parked(service)
        publication = service.ports._published[info.id]
        entry, take_up = service._registry.find(info.id), service._lives.parking.take_up
        monkeypatch.setattr(service._lives.parking, "take_up", fails)
        port = info.ports[0].host_port
        clients = [await asyncio.open_connection("127.0.0.1", port) for _ in range(MANY)]
        await until(lambda: publication.connections == MANY, what="all are accepted")
        await until(lambda: tries, what="one of them wakes it")
        go.set()
        assert [await read(reader) for reader, _ in clients] == [b"reset"] * MANY
        await until(lambda: publication.connections == 0, what="all have ended")
        assert len(tries) == 1
        assert service.ports._wakes == {}
        for _, writer in clients:
            writer.close()
        # Whoever comes later tries again.
        monkeypatch.setattr(service._lives.parking, "take_up", take_up)
        _, writer = await asyncio.open_connection("127.0.0.1", port)

        await until(lambda: entry.info.state is SandboxState.RUNNING, what="it is woken")
        writer.close()


async def test_one_that_is_waiting_to_be_woken_can_be_stopped(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries: list[int] = []

    async def takes_for_ever(*args: object) -> Any:
        tries.append(1)
        await asyncio.Event().wait()

    async with world.service() as service:
        info = await parked(service)
        publication = service.ports._published[info.id]
        monkeypatch.setattr(service._lives.parking, "take_up", takes_for_ever)
        port = info.ports[0].host_port
        clients = [await asyncio.open_connection("127.0.0.1", port) for _ in range(MANY)]
        await until(lambda: publication.connections == MANY, what="all are accepted")
        await until(lambda: tries, what="one of them wakes it")
        await asyncio.wait_for(service.sandboxes.stop(info.id), 60)
        assert (await service.sandboxes.get(info.id)).state is SandboxState.STOPPED
        assert [await read(reader) for reader, _ in clients] == [b"reset"] * MANY
        assert len(tries) == 1
        for _, writer in clients:
            writer.close()

import pytest

from hutch.api.operations import LogRecord
from hutch.errors import Conflict, GuestError, InvalidInput, NotFound
from hutch.models import SandboxState
from hutch.networking import PublishedPort
from hutch.sdk import AsyncClient, AsyncSandbox, LogChunk
from tests.unit.api.fake_operations import FakeOperations


async def test_what_create_made_is_removed(api: str, fake: FakeOperations) -> None:
    async with AsyncClient(socket=api) as client:
        async with await AsyncSandbox.create(
            "busybox", name="mine", env={"A": "B"}, labels={"x": "y"}, client=client
        ) as box:
            assert (box.name, box.info.idle, box.info.env) == ("mine", True, {"A": "B"})
            assert [info.id for info in await AsyncSandbox.list(client=client)][1] == box.id
        assert fake.sandboxes.removed == [box.id]
        with pytest.raises(NotFound):
            await AsyncSandbox.connect("mine", client=client)


async def test_ports(api: str) -> None:
    async with AsyncClient(socket=api) as client:
        made = await AsyncSandbox.create(ports=[3000, "[::1]:8080:80"], client=client)
        async with made as box:
            free, chosen = box.ports
            assert chosen == PublishedPort(80, 8080, "::1")
            assert await box.url(80) == "http://[::1]:8080"
            assert await box.url(3000, "ws") == f"ws://127.0.0.1:{free.host_port}"
            url = await box.url(5000)  # which publishes it
            assert url == f"http://127.0.0.1:{box.ports[2].host_port}"
            assert await box.publish(PublishedPort(81, 8081), 9000) == box.ports[3:]
            await box.unpublish(8081)
            await box.unpublish(8080, address="::1")
            assert [port.guest_port for port in box.ports] == [3000, 5000, 9000]
            with pytest.raises(NotFound):
                await box.unpublish(8080)
            with pytest.raises(Conflict):
                await box.publish("9999:80")
            with pytest.raises(InvalidInput):
                await box.publish("80/udp")


async def test_what_was_found_stays(api: str, fake: FakeOperations) -> None:
    async with AsyncClient(socket=api) as client:
        async with await AsyncSandbox.connect("box", client=client) as box:
            assert (await box.stats()).cpu_seconds == 1.5
            assert (await box.processes())[0].pid == 1
            with pytest.raises(GuestError):
                await box.wait(timeout=0.01)
            assert (await box.stop()).state is SandboxState.STOPPED
            assert (await box.start()).state is SandboxState.RUNNING
            assert (await box.kill()).exit is not None
            assert (await box.refresh()).state is SandboxState.STOPPED
    assert fake.sandboxes.removed == []


async def test_one_that_removed_itself(api: str, fake: FakeOperations) -> None:
    async with AsyncClient(socket=api) as client:
        async with await AsyncSandbox.create("busybox", client=client) as box:
            await fake.sandboxes.remove(box.id, force=True)


async def test_logs(api: str, fake: FakeOperations) -> None:
    fake.sandboxes.logged = [LogRecord(1, 5, b"a"), LogRecord(2, 6, b"", 9), LogRecord(3, 7, b"b")]
    async with AsyncClient(socket=api) as client:
        box = await AsyncSandbox.connect("box", client=client)
        assert [chunk async for chunk in box.logs()] == [
            LogChunk("stdout", 5, b"a"),
            LogChunk("stderr", 0, b"", 9),
            LogChunk("console", 7, b"b"),
        ]
        assert [chunk.data async for chunk in box.logs(tail=1)] == [b"b"]

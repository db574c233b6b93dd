import asyncio
import os
import socket
from collections.abc import AsyncIterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

import hutch
from hutch.errors import HutchError
from hutch.network.channel import Channel
from hutch.network.gateway import accept, control
from hutch.network.gateway.control import Control, policy_of
from hutch.networking import NetworkMode, NetworkPolicy
from tests.unit.descriptors import descriptors
from tests.unit.network.gateway.world import LO, TIME, Kinds, bound, knock

PUBLIC = asdict(NetworkPolicy())


class Daemon:
    """The daemon's end of a channel to a gateway."""

    def __init__(self, made: Control, directory: Path) -> None:
        self.control = made
        self.directory = directory
        self.pushed: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.channels: list[Channel] = []
        self.near = self.connect()
        self.listening: dict[str, tuple[str, int]] = {}

    def connect(self) -> Channel:
        ours, theirs = socket.socketpair()
        far = Channel(theirs, name="far")
        far._handlers.update(self.control.handlers(far))

        async def record(values: dict[str, Any], fds: list[int]) -> control.Reply:
            self.pushed.put_nowait(values)
            return control.Reply()

        near = Channel(ours, {"record": record}, name="near")
        self.channels += [near, far]
        return near

    async def call(self, method: str, fds: Sequence[int] = (), **values: Any) -> dict[str, Any]:
        answered, _ = await self.near.call(method, values, fds)
        return answered

    async def attach(
        self, sandbox_id: str = "sb_1", policy: object = PUBLIC, **more: Any
    ) -> dict[str, Any]:
        listener = bound(socket.SOCK_STREAM)
        self.listening[sandbox_id] = listener.getsockname()
        dns, clock = bound(socket.SOCK_DGRAM), bound(socket.SOCK_DGRAM)
        names = os.open(self.directory / sandbox_id, os.O_RDWR | os.O_CREAT)
        values = {"sandbox_id": sandbox_id, "name": "box", "interface": "lo", "ifindex": LO}
        try:
            with listener, dns, clock:
                fds = [listener.fileno(), dns.fileno(), clock.fileno(), names]
                return await self.call("attach", fds, policy=policy, **(values | more))
        finally:
            os.close(names)

    async def knock(self, sandbox_id: str = "sb_1") -> None:
        """Connect as a guest, and be reset."""
        assert await knock(self.listening[sandbox_id])

    async def close(self) -> None:
        for channel in self.channels:
            await channel.close()
        await self.control.close()


@pytest.fixture
async def daemon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Daemon]:
    monkeypatch.setattr(accept, "destination_of", lambda guest: ("10.0.0.1", 22))
    made = Daemon(Control(servers=[], routes=Kinds()), tmp_path)
    yield made
    await made.close()


async def test_it_says_who_it_is(daemon: Daemon) -> None:
    assert await daemon.call("hello") == {"pid": os.getpid(), "version": hutch.__version__}
    assert not daemon.control.ended.is_set()
    await daemon.call("end")
    assert daemon.control.ended.is_set()


async def test_sandboxes_are_attached_and_detached(daemon: Daemon) -> None:
    before = descriptors()
    assert await daemon.attach() == {"generation": 1}
    await daemon.attach("sb_2", None)
    told = (await daemon.call("list"))["sandboxes"]
    assert [item["sandbox_id"] for item in told] == ["sb_1", "sb_2"]
    assert told[0] == {"sandbox_id": "sb_1", "interface": "lo", "ifindex": LO}
    info = (await daemon.call("info", sandbox_id="sb_1"))["info"]
    assert (info["sandbox_id"], info["name"], info["attached"]) == ("sb_1", "box", True)
    assert info["policy"] == PUBLIC
    assert (await daemon.call("connections", sandbox_id="sb_1")) == {"connections": []}
    await daemon.knock()
    for sandbox_id in ("sb_1", "sb_2", "sb_1"):
        assert await daemon.call("detach", sandbox_id=sandbox_id) == {}
    assert (await daemon.call("list"))["sandboxes"] == []
    assert (await daemon.call("info", sandbox_id="sb_1")) == {"info": None}
    assert descriptors() == before
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(daemon.listening["sb_1"])


async def test_what_is_attached_again_replaces_what_was(daemon: Daemon) -> None:
    await daemon.attach()
    await daemon.knock()
    old = daemon.listening["sb_1"]
    await daemon.attach()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(old)
    await daemon.knock()
    records = (await daemon.call("records", since=0))["records"]
    assert [record["number"] for record in records] == [2]


async def test_policies_are_changed(daemon: Daemon) -> None:
    await daemon.attach()
    deny = asdict(NetworkPolicy(mode=NetworkMode.DENY))
    answered = await daemon.call("update", sandbox_id="sb_1", policy=deny)
    assert answered == {"ended": 0, "generation": 2}
    with pytest.raises(HutchError) as caught:
        await daemon.call("update", sandbox_id="sb_9", policy=deny)
    assert caught.value.code == "network_failed"


async def test_ports_of_the_host_are_reserved(daemon: Daemon) -> None:
    await daemon.attach(policy=asdict(NetworkPolicy(allow_host=[3000])))
    await daemon.attach("sb_2")
    assert await daemon.call("reserve", ports=[3000, 4000]) == {}
    generations = [
        (await daemon.call("info", sandbox_id=name))["info"]["generation"]
        for name in ("sb_1", "sb_2")
    ]
    assert generations == [2, 1]  # judged again where it matters
    for ports in (None, 3000, ["3000"], [True]):
        with pytest.raises(HutchError) as caught:
            await daemon.call("reserve", ports=ports)
        assert caught.value.code == "network_failed"


@pytest.mark.parametrize(
    "policy",
    [{"mode": "none of it"}, {"allow": "a.example"}, {"allow_host": ["80"]}, [], {"allow": ["?"]}],
)
async def test_bad_policies_attach_nothing(daemon: Daemon, policy: object) -> None:
    before = descriptors()
    with pytest.raises(HutchError) as caught:
        await daemon.attach(policy=policy)
    assert caught.value.code == "bad_policy"
    assert (await daemon.call("list"))["sandboxes"] == []
    assert descriptors() == before


async def test_broken_requests_leave_nothing(daemon: Daemon) -> None:
    before = descriptors()
    null = os.open("/dev/null", os.O_RDWR)
    for fds in ([], [null], [null] * 4, [null] * 5):
        with pytest.raises(HutchError):
            await daemon.call("attach", fds, sandbox_id="sb_1", name="b", interface="lo", ifindex=1)
    os.close(null)
    for wrong in ({"ifindex": LO + 1}, {"ifindex": "1"}, {"name": ""}, {"interface": None}):
        with pytest.raises(HutchError) as caught:
            await daemon.attach(**wrong)
        assert caught.value.code == "network_failed"
    assert (await daemon.call("list"))["sandboxes"] == []
    assert descriptors() == before


async def test_records_are_told_in_pages_and_pushed(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control, "PAGE", 2)
    await daemon.attach("sb_1", number=40)
    await daemon.attach("sb_2")
    for sandbox_id in ("sb_1", "sb_2", "sb_1"):
        await daemon.knock(sandbox_id)
    first = await daemon.call("records", since=0)
    assert first["more"]
    second = await daemon.call("records", since=first["next"])
    assert not second["more"]
    told = [(one["sandbox_id"], one["number"]) for one in first["records"] + second["records"]]
    assert told == [("sb_1", 41), ("sb_2", 1), ("sb_1", 42)]
    assert first["records"][0]["reason"] == "address_lan"
    await daemon.knock()
    pushed = await asyncio.wait_for(daemon.pushed.get(), TIME)
    assert (pushed["record"]["number"], pushed["next"]) == (43, second["next"] + 1)
    # Of an earlier life of the gateway: all there is.
    assert len((await daemon.call("records", since=10**9))["records"]) == 2


async def test_what_is_decided_between_two_pages_is_told_once_and_in_order(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control, "PAGE", 2)
    await daemon.attach()
    for _ in range(3):
        await daemon.knock()
    first = await daemon.call("records", since=0)
    await daemon.knock()
    second = await daemon.call("records", since=first["next"])
    assert not second["more"]
    await daemon.knock()
    pushed = await asyncio.wait_for(daemon.pushed.get(), TIME)
    told = [one["number"] for one in (*first["records"], *second["records"], pushed["record"])]
    assert told == [1, 2, 3, 4, 5]
    assert daemon.pushed.empty()


async def test_a_daemon_that_is_gone_hears_nothing(daemon: Daemon) -> None:
    await daemon.attach()
    await daemon.call("records", since=0)
    await daemon.near.close()
    await daemon.knock()
    daemon.near = daemon.connect()
    assert len((await daemon.call("records", since=0))["records"]) == 1


async def test_who_has_most_makes_room(daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    shed: list[str] = []
    await daemon.attach("sb_1")
    await daemon.attach("sb_2")
    sizes = {"sb_1": 3, "sb_2": 7}
    kind = type(daemon.control._sandboxes["sb_1"])
    monkeypatch.setattr(kind, "__len__", lambda self: sizes[self.identity.sandbox_id])
    monkeypatch.setattr(kind, "shed", lambda self: shed.append(self.identity.sandbox_id))
    daemon.control._crowded()
    assert shed == ["sb_2"]


def test_policies_cross_as_they_are() -> None:
    policy = NetworkPolicy(
        mode=NetworkMode.DENY, allow=["a"], deny=["b"], allow_host=[1], allow_lan=True, preset="p"
    )
    assert policy_of(asdict(policy)) == policy
    assert policy_of(None) is None
    for lost in ("mode", "allow", "deny", "allow_host", "allow_lan"):
        left = {key: value for key, value in asdict(policy).items() if key != lost}
        with pytest.raises(HutchError) as caught:
            policy_of(left)
        assert caught.value.code == "bad_policy", "no default takes its place"

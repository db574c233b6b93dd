"""VMs in the network: the policy in force is the one on record, whoever changes it when."""

import asyncio
import os
from pathlib import Path

import pytest

from hutch.errors import HutchError
from hutch.network.fake import FakeNetwork
from hutch.networking import NetworkMode, NetworkPolicy
from hutch.service.plugs import Plug, Plugs
from hutch.tasks import give_way

OPEN, DENY, NONE = (NetworkPolicy(mode) for mode in ("open", "deny", "none"))


class Records:
    """The policies of sandboxes on record."""

    def __init__(self) -> None:
        self.policies: dict[str, NetworkPolicy] = {"sb_1": DENY}

    def __call__(self, sandbox_id: str) -> NetworkPolicy | None:
        return self.policies.get(sandbox_id)


@pytest.fixture
def network() -> FakeNetwork:
    return FakeNetwork()


@pytest.fixture
def records() -> Records:
    return Records()


@pytest.fixture
def plugs(network: FakeNetwork, records: Records) -> Plugs:
    return Plugs(network, records)


def plug(tmp_path: Path, *, closed: bool = False) -> Plug:
    return Plug("sb_1", "web", tmp_path / "logs" / "names", closed=closed)


async def attach(plugs: Plugs, plug: Plug, vm_id: str = "sb_1") -> None:
    async with plugs.attached(vm_id, plug):
        pass


async def test_the_policy_is_in_force_in_the_block(
    plugs: Plugs, network: FakeNetwork, tmp_path: Path
) -> None:
    async with plugs.attached("sb_1", plug(tmp_path)) as tap:
        assert tap is not None
        os.fstat(tap)
        assert network.policies == {"sb_1": DENY}
        assert (tmp_path / "logs").is_dir()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(tap)
    assert (plugs.owner("sb_1"), plugs.vm_of("sb_1"), plugs.none) == ("sb_1", "sb_1", False)
    await plugs.detach("sb_1")
    assert (network.attached, plugs.owner("sb_1"), plugs.none) == ({}, None, True)


async def test_a_host_without_taps(records: Records, tmp_path: Path) -> None:
    network = FakeNetwork(taps=False)
    plugs = Plugs(network, records)
    async with plugs.attached("sb_1", plug(tmp_path)) as tap:
        assert tap is None
    await plugs.open("sb_1")
    assert await plugs.changed("sb_1") == 0
    await plugs.adopt({"sb_1": plug(tmp_path)})
    await plugs.detach("sb_1")
    assert network.told == []


async def test_closed_until_it_is_opened(
    plugs: Plugs, network: FakeNetwork, records: Records, tmp_path: Path
) -> None:
    await attach(plugs, plug(tmp_path, closed=True))
    assert network.policies == {"sb_1": None}
    assert plugs.vm_of("sb_1") is None
    records.policies["sb_1"] = OPEN
    assert await plugs.changed("sb_1") == 0
    assert network.policies == {"sb_1": None}
    await plugs.open("sb_1")
    assert network.policies == {"sb_1": OPEN}
    await plugs.open("sb_nobody")


async def test_one_that_is_on_record_only_later(plugs: Plugs, network: FakeNetwork) -> None:
    await attach(plugs, Plug("sb_2", "sb_2"), "sb_2")
    await plugs.open("sb_2", NONE)
    assert network.policies == {"sb_2": NONE}


async def test_what_is_on_record_goes_before(
    plugs: Plugs, network: FakeNetwork, records: Records, tmp_path: Path
) -> None:
    await attach(plugs, plug(tmp_path, closed=True))
    stale, records.policies["sb_1"] = records.policies["sb_1"], NONE
    await plugs.open("sb_1", stale)
    assert network.policies == {"sb_1": NONE}


async def test_whether_a_policy_is_in_force(
    plugs: Plugs, network: FakeNetwork, tmp_path: Path
) -> None:
    assert not plugs.in_force("sb_1")
    await attach(plugs, plug(tmp_path, closed=True))
    assert not plugs.in_force("sb_1")
    network.failing["update"] = 1
    with pytest.raises(HutchError, match="lets update fail"):
        await plugs.open("sb_1")
    assert not plugs.in_force("sb_1")
    assert network.policies == {"sb_1": None}
    await plugs.changed("sb_1")
    assert plugs.in_force("sb_1")


async def test_what_cannot_be_adopted_is_not_in_force(
    plugs: Plugs, network: FakeNetwork, tmp_path: Path
) -> None:
    network.failing["adopt"] = 1
    with pytest.raises(HutchError, match="lets adopt fail"):
        await plugs.adopt({"sb_1": plug(tmp_path)})
    assert not plugs.in_force("sb_1")
    await plugs.adopt({"sb_1": plug(tmp_path)})
    assert plugs.in_force("sb_1")


async def test_nobodys_is_never_opened(plugs: Plugs, network: FakeNetwork) -> None:
    await attach(plugs, Plug("tb_1", "tb_1", closed=False), "tb_1")
    assert network.policies == {"tb_1": None}


async def test_a_change_waits_for_an_attachment_under_way(
    plugs: Plugs, network: FakeNetwork, records: Records, tmp_path: Path
) -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(attach(plugs, plug(tmp_path)))
        await give_way()
        records.policies["sb_1"] = NONE
        group.create_task(plugs.changed("sb_1"))
    assert network.policies == {"sb_1": NONE}


async def test_the_last_of_many_changes_is_in_force(
    plugs: Plugs, network: FakeNetwork, records: Records, tmp_path: Path
) -> None:
    await attach(plugs, plug(tmp_path))
    async with asyncio.TaskGroup() as group:
        for number in range(20):
            records.policies["sb_1"] = NetworkPolicy(NetworkMode.DENY, [f"n{number}.example.com"])
            group.create_task(plugs.changed("sb_1"))
    assert network.policies == records.policies


async def test_all_vms_of_a_sandbox_but_closed_ones(
    plugs: Plugs, network: FakeNetwork, records: Records, tmp_path: Path
) -> None:
    await attach(plugs, plug(tmp_path))
    await attach(plugs, plug(tmp_path, closed=True), "sb_beside")
    records.policies["sb_1"] = OPEN
    await plugs.changed("sb_1")
    assert network.policies == {"sb_1": OPEN, "sb_beside": None}


async def test_a_change_that_fails_closes(
    plugs: Plugs, network: FakeNetwork, records: Records, tmp_path: Path
) -> None:
    await attach(plugs, plug(tmp_path))
    records.policies["sb_1"] = OPEN
    network.failing["update"] = 1
    with pytest.raises(HutchError, match="lets update fail"):
        await plugs.changed("sb_1")
    assert network.policies == {"sb_1": None}
    await plugs.changed("sb_1")
    assert network.policies == {"sb_1": OPEN}


async def test_an_attachment_that_fails_or_is_cut_off(
    plugs: Plugs, network: FakeNetwork, tmp_path: Path
) -> None:
    network.failing["attach"] = 1
    with pytest.raises(HutchError, match="lets attach fail"):
        await attach(plugs, plug(tmp_path))
    await plugs.detach("sb_1")
    for turns in range(12):
        before = set(os.listdir("/proc/self/fd"))
        async with asyncio.TaskGroup() as group:
            task = group.create_task(attach(plugs, plug(tmp_path)))
            for _ in range(turns):
                await asyncio.sleep(0)
            task.cancel()
        await plugs.detach("sb_1")
        assert network.attached == {}
        assert set(os.listdir("/proc/self/fd")) == before


async def test_a_detachment_that_fails_is_told_in_the_log(
    plugs: Plugs, network: FakeNetwork, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    await attach(plugs, plug(tmp_path))
    network.failing["detach"] = 1
    await plugs.detach("sb_1")
    assert "the network of sb_1 is not removed" in caplog.text
    assert plugs.none
    await plugs.detach("sb_1")
    assert network.told.count(("detach", "sb_1")) == 1


async def test_adopted_with_the_policy_on_record(
    plugs: Plugs, network: FakeNetwork, records: Records, tmp_path: Path
) -> None:
    await attach(plugs, Plug("gone", "gone"), "gone")
    again = Plugs(network, records)
    records.policies["sb_1"] = NONE
    await again.adopt({"sb_vm": plug(tmp_path)})
    assert network.policies == {"sb_vm": NONE}
    assert again.owner("sb_vm") == "sb_1"
    records.policies["sb_1"] = OPEN
    await again.changed("sb_1")
    assert network.policies == {"sb_vm": OPEN}


async def test_one_that_ends_while_it_is_adopted(
    plugs: Plugs, network: FakeNetwork, tmp_path: Path
) -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(plugs.adopt({"sb_1": plug(tmp_path)}))
        await asyncio.sleep(0)
        group.create_task(plugs.detach("sb_1"))
    assert network.attached == {}
    assert plugs.none

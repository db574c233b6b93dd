"""Finding sandboxes, and waiting for them."""

import asyncio
import dataclasses
from typing import Any

import pytest

from hutch.errors import HutchError
from hutch.models import SandboxSpec, SandboxState
from hutch.networking import NetworkMode, NetworkPolicy, PublishedPort
from hutch.service.registry import REMEMBERED, Entry, Registry
from hutch.state.base import SandboxRow
from tests.unit.service.world import expect
from tests.unit.state.test_sqlite import info


def row(sandbox_id: str, name: str) -> SandboxRow:
    return SandboxRow(SandboxSpec("busybox"), info(sandbox_id, name), 0)


@pytest.fixture
def registry() -> Registry:
    registry = Registry()
    for sandbox_id, name in (("sb_aaaa11", "one"), ("sb_aaaa22", "two"), ("sb_bbbb11", "aaaa1")):
        registry.add(row(sandbox_id, name))
    return registry


@pytest.mark.parametrize(
    ("ref", "name"),
    [
        ("one", "one"),
        ("sb_aaaa22", "two"),
        ("sb_b", "aaaa1"),
        ("bbbb", "aaaa1"),
        ("aaaa2", "two"),
        ("aaaa1", "aaaa1"),  # a name goes before the beginning of an id
    ],
)
def test_found(registry: Registry, ref: str, name: str) -> None:
    assert registry.find(ref).info.name == name


@pytest.mark.parametrize(
    ("ref", "code"),
    [
        ("nobody", "sandbox_not_found"),
        ("", "sandbox_not_found"),
        ("sb_", "sandbox_not_found"),
        ("bbb", "sandbox_not_found"),
        ("aaaa", "bad_request"),
    ],
)
def test_not_found(registry: Registry, ref: str, code: str) -> None:
    with pytest.raises(HutchError) as caught:
        registry.find(ref)
    assert caught.value.code == code


def test_rename(registry: Registry) -> None:
    entry = registry.find("one")
    registry.rename(entry, row("sb_aaaa11", "uno"))
    assert registry.find("uno") is entry
    with pytest.raises(HutchError):
        registry.find("one")


def test_removed_ones_are_remembered_for_a_while(registry: Registry) -> None:
    first = registry.find("one")
    registry.forget(first)
    assert registry.find_last("one") is first
    assert registry.find_last("sb_aaaa11") is first
    again = registry.add(row("sb_cccc11", "one"))
    assert registry.find_last("one") is again
    for number in range(REMEMBERED):
        registry.forget(registry.add(row(f"sb_{number}", f"n{number}")))
    with pytest.raises(HutchError):
        registry.find_last("sb_aaaa11")


def test_names_are_reserved(registry: Registry) -> None:
    with registry.reserve("new") as name:
        assert name == "new"
        with pytest.raises(HutchError) as caught, registry.reserve("new"):
            pass
        assert caught.value.code == "name_taken"
    with registry.reserve("new"), registry.reserve(None) as friendly:
        assert friendly != "new"


def test_a_row_that_was_read_earlier_undoes_no_change_of_its_policy_or_ports() -> None:
    entry = Entry(row("sb_1", "one"))
    before = entry.row
    policy, ports = NetworkPolicy(NetworkMode.DENY), [PublishedPort(80, 8080)]
    entry.have_policy(policy)
    entry.have_ports(ports)
    assert (entry.info.network, entry.info.ports) == (policy, ports)
    stopping = dataclasses.replace(before.info, state=SandboxState.STOPPING)
    entry.row = dataclasses.replace(before, info=stopping)
    assert entry.info.state is SandboxState.STOPPING
    assert (entry.info.network, entry.info.ports) == (policy, ports)
    entry.have_ports([])
    entry.row = dataclasses.replace(before, info=stopping)
    assert entry.info.ports == []


async def test_waiting_for_rest() -> None:
    entry = Entry(row("sb_1", "one"))

    def become(state: SandboxState) -> None:
        changed = dataclasses.replace(entry.info, state=state)
        entry.row = dataclasses.replace(entry.row, info=changed)

    assert (await entry.rest()).state is SandboxState.CREATED
    become(SandboxState.RUNNING)
    async with asyncio.TaskGroup() as group:
        waiting: Any = group.create_task(entry.rest())
        await asyncio.sleep(0)
        become(SandboxState.STOPPING)
        await asyncio.sleep(0)
        assert not waiting.done()
        become(SandboxState.STOPPED)
    assert waiting.result().state is SandboxState.STOPPED

    async def run() -> None:
        entry.running()

    await expect("wrong_state", run())

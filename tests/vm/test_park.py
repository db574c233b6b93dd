"""A parked sandbox takes no memory, and goes on where it was as if nothing had been."""

import re
import shutil
import time
from pathlib import Path
from typing import Any

import pytest

from hutch.guest.base import Guest, Identity
from hutch.guest.session import connect_guest
from hutch.images.base import no_report
from hutch.models import SandboxSpec, SandboxState
from hutch.process import ProcessId
from hutch.service.host import HostService
from tests.harness.hutch import Hutch
from tests.harness.service import serving
from tests.harness.stores import SharedStore
from tests.vm.resting import COUNTER, count, goes_on, look
from tests.waiting import wait_until

UUID = "/proc/sys/kernel/random/uuid"
READS = 3
ATTEMPTS = 12
"""Pairs of which one must come out alike: a slow one may have gathered randomness meanwhile."""


@pytest.fixture
def counter(hutch: Hutch) -> Hutch:
    hutch.run("run", "-d", "--name", "box", "-l", "k=v", "busybox", "sh", "-c", COUNTER)
    return hutch


def parked_files(hutch: Hutch, name: str) -> list[Path]:
    """Return the files of a sandbox's parked memory."""
    return list((hutch.home / "sandboxes" / look(hutch, name)["id"]).glob("parked/*"))


def test_it_goes_on_where_it_was(counter: Hutch) -> None:
    counter.run("exec", "box", "sh", "-c", "echo kept >/root/file")
    pid, before = count(counter, "box")
    vm = ProcessId.of(look(counter, "box")["pid"])
    assert vm is not None
    counter.run("park", "box")
    parked = look(counter, "box")
    assert (parked["state"], parked["pid"], parked["labels"]) == ("parked", None, {"k": "v"})
    assert not vm.alive()
    assert parked_files(counter, "box")
    counter.run("park", "box")
    assert "parked" in counter.run("ps").text
    counter.run("template", "prune")
    assert counter.run("exec", "box", "cat", "/root/file").text == "kept"
    assert look(counter, "box")["state"] == "running"
    assert not parked_files(counter, "box")
    again, after = count(counter, "box")
    assert again == pid
    assert after >= before
    counter.run("park", "box")
    counter.run("resume", "box")
    goes_on(counter, "box", pid, after)


def test_output_and_detached_programs_go_on(hutch: Hutch) -> None:
    script = "i=0; while :; do i=$((i+1)); echo line $i; sleep 0.05; done"
    hutch.run("run", "-d", "--name", "talks", "busybox", "sh", "-c", script)
    exec_id = hutch.run("exec", "-d", "talks", "sh", "-c", "sleep 2; echo late; exit 6").text
    hutch.run("park", "talks")
    told = hutch.run("logs", "talks").stdout.splitlines()
    assert look(hutch, "talks")["state"] == "parked"
    hutch.kill_daemon()
    assert look(hutch, "talks")["state"] == "parked"
    hutch.run("exec", "talks", "true")

    def further() -> list[bytes]:
        lines = hutch.run("logs", "talks").stdout.splitlines()
        return lines if len(lines) > len(told) else []

    lines = wait_until(further, what="it talks on")
    assert lines == [b"line %d" % number for number in range(1, len(lines) + 1)]
    assert hutch.run("logs", "-f", "--exec", exec_id, "talks").stdout == b"late\n"


def test_stop_gives_the_memory_up_and_keeps_the_disk(counter: Hutch) -> None:
    counter.run("exec", "box", "sh", "-c", "echo kept >/root/file")
    counter.run("park", "box")
    assert counter.run("rm", "box", expect=125).stderr.count(b"wrong_state") == 1
    counter.run("stop", "box")
    stopped = look(counter, "box")
    assert (stopped["state"], stopped["exit"]["reason"]) == ("stopped", "stopped")
    assert not parked_files(counter, "box")
    counter.run("start", "box")
    assert counter.run("exec", "box", "cat", "/root/file").text == "kept"


def test_a_memory_that_does_not_load_leaves_it_parked(counter: Hutch) -> None:
    counter.run("park", "box")
    [state] = [path for path in parked_files(counter, "box") if path.name == "state"]
    whole = state.read_bytes()
    state.write_bytes(whole[: len(whole) // 2])
    failed = counter.run("exec", "box", "true", expect=125)
    assert re.search(rb"parked_unusable", failed.stderr)
    assert look(counter, "box")["state"] == "parked"
    state.write_bytes(whole)
    counter.run("exec", "box", "true")


async def connect_without_entropy(path: Path, *, timeout: float) -> Guest:
    """Connect to an agent that is given an identity without entropy, and believed all the same."""
    guest: Any = await connect_guest(path, timeout=timeout)

    async def identify(identity: Identity) -> bool:
        request = {"nonce": identity.nonce, "realtime_ns": time.time_ns()}
        await guest._link.call("identity", "the guest", request, dict, seconds=10.0)
        return True

    guest.identify = identify
    return guest  # type: ignore[no-any-return]


async def read_random(service: HostService, ref: str) -> list[bytes]:
    """Return what a sandbox reads of its random numbers, through the agent itself."""
    files = await service.files.of(ref)
    return [b"".join([part async for part in files.read(UUID)]) for _ in range(READS)]


async def read_twice(service: HostService) -> list[list[bytes]]:
    """Take the same parked memory up twice, and return what each reads of its random numbers."""
    info = await service.sandboxes.create(SandboxSpec("busybox", idle=True), no_report)
    await service.sandboxes.start(info.id)
    # A kernel that is read often renews its generator by itself at most once a second.
    await read_random(service, info.id)
    await service.sandboxes.park(info.id)
    entry = service._registry.find(info.id)
    layer, parked = entry.row.layer, service._parts.places.parked(info.id)
    aside = parked.with_name("aside")
    shutil.copytree(parked, aside)
    read = []
    for _ in range(2):
        read.append(await read_random(service, info.id))
        await service.sandboxes.kill(info.id)
        # The disk that goes with the memory was not written to: each attempt has a layer over it.
        shutil.copytree(aside, parked)
        written = entry.row.layer
        entry.row = await service._parts.store.set_layer(info.id, layer)
        await service._lives.booter.layers.release(written)
        await service._lives.records.settle(entry, SandboxState.PARKED)
    await service.sandboxes.remove(info.id, force=True)
    shutil.rmtree(aside, ignore_errors=True)
    return read


async def test_it_comes_back_with_other_random_numbers(
    shared_store: SharedStore, short_tmp: Path
) -> None:
    async with serving(shared_store, short_tmp / "r") as service:
        one, two = await read_twice(service)
    assert all(one)
    assert not set(one) & set(two)


async def test_without_entropy_they_would_be_the_same(
    shared_store: SharedStore, short_tmp: Path
) -> None:
    pairs = []
    async with serving(shared_store, short_tmp / "r", connect_without_entropy) as service:
        for _ in range(ATTEMPTS):
            pairs.append(await read_twice(service))
            if pairs[-1][0] == pairs[-1][1]:
                return
    pytest.fail(f"no two were alike, so the test above proves nothing: {pairs}")

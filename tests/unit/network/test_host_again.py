"""The network of this host when what it needs fails at first: nothing is lost by it."""

import asyncio
from dataclasses import replace

import pytest

from hutch.errors import HutchError
from hutch.network import processes
from hutch.network.host import HostNetwork
from hutch.network.processes import Companion
from tests.unit.network import test_host
from tests.unit.network.guest_frames import ethernet
from tests.unit.network.netspace import needs_taps
from tests.unit.network.test_host import Host, answer
from tests.waiting import until

host = test_host.host


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "_PAUSES", (0.0,))


def fail(companion: Companion, times: int) -> asyncio.Event:
    """Have a process' first starts fail; those after them wait for the event."""
    start, go_on, failures = companion._start, asyncio.Event(), 0

    async def failing() -> processes.Greeting:
        nonlocal failures
        failures += 1
        if failures <= times:
            raise BlockingIOError(11, "Resource temporarily unavailable")
        await go_on.wait()
        return await start()

    companion._start = failing  # type: ignore[method-assign]
    return go_on


def successor(host: Host) -> HostNetwork:
    made = HostNetwork(host.options)
    host.networks.append(made)
    return made


@needs_taps
async def test_a_start_of_the_gateway_that_fails_once_loses_nothing(host: Host) -> None:
    first = await host.daemon()
    guest = await host.attach(first, "sb_one")
    await first.close()
    host.gateway().kill()
    second = successor(host)
    fail(second._gateway, 1).set()
    await second.open()
    await second.adopt([host.attachment("sb_one")])
    assert second._gateway.starts == 1
    assert answer(guest) == b"sb_one 93.184.215.14:22\n"
    assert await second.update("sb_one", None) == 1


@needs_taps
async def test_a_gateway_that_does_not_come_up_serves_all_when_it_does(host: Host) -> None:
    first = await host.daemon()
    guest = await host.attach(first, "sb_one")
    await first.close()
    host.gateway().kill()
    second = successor(host)
    go_on = fail(second._gateway, processes.PATIENCE)
    await second.open()
    await second.adopt([host.attachment("sb_one")])
    with pytest.raises(HutchError, match="temporarily unavailable"):
        await second.info("sb_one")
    go_on.set()
    await until(lambda: second._gateway.up)
    assert answer(guest) == b"sb_one 93.184.215.14:22\n"


@needs_taps
async def test_a_netd_that_does_not_come_up_is_no_host_without_networks(host: Host) -> None:
    first = await host.daemon()
    guests = {name: await host.attach(first, name) for name in ("sb_one", "sb_gone")}
    await first.close()
    host.gateway().kill()
    host.netd().kill()
    second = successor(host)
    go_on = fail(second._netd, processes.PATIENCE)
    await second.open()
    assert second.ability.taps
    with pytest.raises(HutchError) as told:
        await second.attach(host.attachment("sb_new"))
    assert told.value.code == "network_failed"
    await second.adopt([host.attachment("sb_one"), host.attachment("sb_lost")])
    go_on.set()
    await until(lambda: "sb_lost" not in second._attached)
    await until(lambda: second._attached["sb_one"].sure)
    assert answer(guests["sb_one"]) == b"sb_one 93.184.215.14:22\n"
    with pytest.raises(OSError, match="bad state"):
        guests["sb_gone"].send(ethernet(b""))
    guest = await host.attach(second, "sb_new")
    assert answer(guest) == b"sb_new 93.184.215.14:22\n"


@needs_taps
async def test_a_netd_that_can_do_nothing_any_more_ends_no_network_of_those_that_run(
    host: Host,
) -> None:
    first = await host.daemon()
    guest = await host.attach(first, "sb_one")
    gateway = host.gateway()
    await first.close()
    host.netd().kill()
    device = host.directory / "tun"
    device.touch()
    host.options = replace(host.options, device=device)
    second = await host.daemon()
    assert second.ability.taps
    with pytest.raises(HutchError, match="no TAP can be made"):
        await second.attach(host.attachment("sb_new"))
    await second.adopt([host.attachment("sb_one")])
    assert host.gateway() == gateway
    assert answer(guest) == b"sb_one 93.184.215.14:22\n"


@needs_taps
async def test_nobody_waits_for_a_gateway_that_nobody_needs_yet(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "UP_TIME", 3600.0)
    network = successor(host)
    go_on = fail(network._gateway, 0)
    async with asyncio.timeout(60):
        await network.open()
        await network.adopt([])
    assert not network._gateway.up
    go_on.set()
    guest = await host.attach(network, "sb_one")
    assert answer(guest) == b"sb_one 93.184.215.14:22\n"

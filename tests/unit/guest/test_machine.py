import asyncio
import time
from dataclasses import replace

import pytest

from hutch.errors import HutchError
from hutch.guest.base import Guest, GuestExec, Identity
from hutch.guest.fake import FakeAgent
from hutch.guest.frames import FrameType
from hutch.guest.machine import parse_info, parse_processes, parse_stats
from hutch.guest.messages import GuestProtocolError
from hutch.guest.session import connect_guest
from tests.unit.guest.scripted import ScriptedGuest, message

IDENTITY = Identity(
    "web-1", "0" * 32, b"e" * 32, b"n" * 16, 3, [("127.0.1.1", "web-1")], ["10.0.0.1"]
)


async def test_a_guest_boots_in_stages(agent: FakeAgent) -> None:
    agent.stage = "boot"
    guest = await connect_guest(agent.path, timeout=60)
    with pytest.raises(HutchError) as caught:
        await guest.spawn_exec(GuestExec("a", ["true"]))
    assert caught.value.details["guest_code"] == "not_ready"
    await guest.mount_root("root", "squashfs")
    assert guest.info.stage == "root"
    await guest.mount_overlay("disk", volumes=["/data"], grow=True, size=1 << 30)
    assert guest.info.stage == "ready"
    asked = {"serial": "disk", "volumes": [b"/data"], "grow": True, "size": 1 << 30}
    assert agent.mounted == asked
    await guest.spawn_exec(GuestExec("a", ["true"]))
    await guest.close()


async def test_the_identity_arrives_with_a_clock(agent: FakeAgent, guest: Guest) -> None:
    before = time.time_ns()
    assert await guest.identify(IDENTITY)
    assert before <= agent.identity["realtime_ns"] <= time.time_ns() + 10_000_000
    assert agent.identity["hosts"] == [["127.0.1.1", "web-1"]]
    assert agent.identity["machine_id"] == b"0" * 32
    assert guest.info.generation == 3


async def test_the_clock_is_set_ahead_by_half_the_round_trip(
    scripted: ScriptedGuest, monkeypatch: pytest.MonkeyPatch
) -> None:
    guest = await scripted.connect()
    monkeypatch.setattr(guest, "_round_trip", 0.004)
    monkeypatch.setattr(time, "time_ns", lambda: 1_000_000_000)
    async with asyncio.TaskGroup() as group:
        group.create_task(guest.identify(IDENTITY))
        request = await scripted.request("identity")
        reply = {"nonce": IDENTITY.nonce, "reseeded": True, "realtime_ns": 1}
        scripted.send(message(FrameType.REPLY, request.stream, reply))
    assert request.message()["realtime_ns"] == 1_002_000_000


async def test_a_clock_is_left_alone_within_the_tolerance(agent: FakeAgent, guest: Guest) -> None:
    agent.clock_error_ns = 5_000_000
    assert 0.004 < await guest.keep_clock(0.01) < 0.1
    assert agent.clock_error_ns == 5_000_000


async def test_a_clock_that_is_off_is_set(agent: FakeAgent, guest: Guest) -> None:
    agent.clock_error_ns = -2_000_000_000
    assert -2.1 < await guest.keep_clock() < -1.9
    assert agent.clock_error_ns == 0
    assert "hostname" not in agent.identity


async def test_the_network_is_taken_down_and_nothing_else_changes(
    agent: FakeAgent, guest: Guest
) -> None:
    await guest.identify(IDENTITY)
    assert "network" not in agent.identity
    before = {key: value for key, value in agent.identity.items() if key != "nonce"}
    await guest.set_network(False)
    assert {**before, "network": False}.items() <= agent.identity.items()
    await guest.identify(replace(IDENTITY, network=True))
    assert agent.identity["network"] is True


async def test_an_identity_taken_by_someone_else(scripted: ScriptedGuest) -> None:
    guest = await scripted.connect()

    async def identify() -> HutchError:
        with pytest.raises(HutchError) as caught:
            await guest.identify(IDENTITY)
        return caught.value

    async with asyncio.TaskGroup() as group:
        identifying = group.create_task(identify())
        request = await scripted.request("identity")
        reply = {"nonce": b"m" * 16, "reseeded": True, "realtime_ns": 1}
        scripted.send(message(FrameType.REPLY, request.stream, reply))
    assert identifying.result().code == "guest_protocol"
    assert guest.closed


async def test_freeze_and_thaw(agent: FakeAgent, guest: Guest) -> None:
    await guest.freeze()
    assert agent.frozen
    assert guest.info.frozen
    again = await connect_guest(agent.path, timeout=60)
    assert again.info.frozen, "the next host learns of it"
    for _ in range(2):
        await again.thaw()
    third = await connect_guest(agent.path, timeout=60)
    assert not third.info.frozen
    await third.close()
    await again.close()


async def test_a_freeze_has_time_on_a_busy_host(scripted: ScriptedGuest) -> None:
    guest = await scripted.connect()
    async with asyncio.TaskGroup() as group:
        group.create_task(guest.freeze())
        request = await scripted.request("freeze")
        scripted.send(message(FrameType.REPLY, request.stream, {}))
    assert request.message()["timeout_ms"] >= 1000
    await guest.close()


async def test_programs_see_another_generation_in_each_life(agent: FakeAgent, guest: Guest) -> None:
    await guest.identify(IDENTITY)
    await guest.spawn_exec(GuestExec("s", ["sleep", "60"]))
    agent.connections_to_outside = 2
    fork = replace(IDENTITY, machine_id="1" * 32, generation=1)
    for _ in range(2):  # a host that lost the reply asks again
        await guest.identify(fork)
        assert guest.info.generation == 4
    assert agent.connections_to_outside == 0
    await guest.thaw()
    async for event in guest.events():
        if event.kind == "generation":
            break
    assert event.fields == {"generation": 4, "hooks": 0, "failed": []}
    again = await connect_guest(agent.path, timeout=60)
    assert again.info.generation == 4
    await again.close()


async def test_a_kernel_that_keeps_inherited_connections_is_told_of(
    agent: FakeAgent, guest: Guest, caplog: pytest.LogCaptureFixture
) -> None:
    agent.connections_to_outside = None
    await guest.identify(IDENTITY)
    await guest.spawn_exec(GuestExec("s", ["sleep", "60"]))
    assert caplog.messages == []
    await guest.identify(IDENTITY)
    assert "cannot end inherited connections" in caplog.text


async def test_the_disk_is_synced(guest: Guest) -> None:
    await guest.sync()


async def test_programs_are_read_ahead_by_their_bytes(scripted: ScriptedGuest) -> None:
    guest = await scripted.connect()
    async with asyncio.TaskGroup() as group:
        reading = group.create_task(guest.prefetch(["sh", "/opt/caf\udce9"]))
        request = await scripted.request("prefetch")
        reply = {"files": 3, "bytes": 70_000}
        scripted.send(message(FrameType.REPLY, request.stream, reply))
    assert request.message()["programs"] == [b"sh", b"/opt/caf\xe9"]
    assert reading.result() == 70_000


async def test_processes_and_figures_are_json(agent: FakeAgent, guest: Guest) -> None:
    await guest.spawn_exec(GuestExec("s", ["sleep", "60"]))
    rows = await guest.processes()
    assert [(row["command"], row["exec_id"]) for row in rows] == [
        ("/init", None),
        ("sleep 60", "s"),
    ]
    assert (await guest.stats())["processes"] == 2


async def test_shutdown_ends_programs_and_the_connection(agent: FakeAgent, guest: Guest) -> None:
    actions: list[str] = []
    agent.on_shutdown = actions.append
    await guest.spawn_exec(GuestExec("m", ["sleep", "60"], main=True))
    await guest.shutdown(signal=2, grace=5, reboot=True)
    await asyncio.wait_for(guest.wait_closed(), 60)
    result = agent.sessions["m"].result
    assert result is not None
    assert (result["signal"], actions) == (2, ["reboot"])


STATS = {
    "cpu_total_ns": 1,
    "cpu_count": 1,
    "load": [0.5, 1, 2],
    "memory": {"total": 1, "available": 1, "used": 1, "cached": 1},
    "disk": {"total": 1, "used": 1, "available": 1},
    "processes": 1,
    "uptime_ns": 1,
    "oom_kills": 0,
    "unknown": b"\xff",
}


def test_only_known_figures_pass() -> None:
    assert "unknown" not in parse_stats(STATS)
    for key in ("memory", "load", "cpu_count"):
        with pytest.raises(GuestProtocolError):
            parse_stats(STATS | {key: None})


def test_a_command_line_becomes_text() -> None:
    row = dict.fromkeys(("pid", "ppid", "uid", "cpu_ns", "rss", "threads", "started_ns"), 1) | {
        "command": b"a\0b\xff\0",
        "user": "u",
        "state": "R",
    }
    (parsed,) = parse_processes({"processes": [row]})
    assert (parsed["command"], parsed["exec_id"]) == ("a b\ufffd", None)


def test_info_needs_its_fields() -> None:
    with pytest.raises(GuestProtocolError):
        parse_info({"agent_version": "1"})

"""What real VMs take of the host, by Hutch's account, and who is refused when there is no room."""

import os

import pytest

from tests.harness.fixtures import NewHutch
from tests.harness.hutch import Hutch

MIB = 1 << 20
WRITTEN = 64 * MIB
SLACK = 12 * MIB
"""What a guest and its engine may take meanwhile for reasons of their own."""
DISK_WRITTEN = 16 * MIB


@pytest.fixture
def hutch(new_hutch: NewHutch) -> Hutch:
    """A home without a template."""
    return new_hutch()


def stats(hutch: Hutch, name: str) -> dict[str, int]:
    (found,) = hutch.json("stats", name)
    parts = sum(found[f"host_memory_{part}"] for part in ("private", "shared", "engine"))
    assert found["host_memory"] == parts
    return dict(found)


@pytest.fixture
def pair(hutch: Hutch) -> tuple[Hutch, list[str]]:
    """Two clones of one template."""
    names = ["one", "two"]
    for name in names:
        hutch.run("run", "-d", "--idle", "--name", name, "-m", "256m", "busybox")
    return hutch, names


def test_memory_that_a_guest_writes_is_its_own(pair: tuple[Hutch, list[str]]) -> None:
    hutch, names = pair
    before = [stats(hutch, name) for name in names]
    fill = f"mount -t tmpfs none /mnt && dd if=/dev/urandom of=/mnt/x bs=1M count={WRITTEN // MIB}"
    hutch.run("exec", "one", "sh", "-c", f"mkdir -p /mnt && {fill}")
    one, two = (stats(hutch, name) for name in names)
    grown = one["host_memory_private"] - before[0]["host_memory_private"]
    assert WRITTEN <= grown <= WRITTEN + SLACK
    assert abs(two["host_memory_private"] - before[1]["host_memory_private"]) <= SLACK
    assert one["memory_used"] - before[0]["memory_used"] >= WRITTEN - SLACK
    assert one["host_memory"] <= 256 * MIB


def test_a_template_is_counted_once(pair: tuple[Hutch, list[str]]) -> None:
    hutch, names = pair
    held = sum(template["memory_bytes"] for template in hutch.json("template", "ls"))
    found = [stats(hutch, name) for name in names]
    for each in found:
        # Each page that both have looked at counts half for either of them.
        assert each["host_memory_template"] / 2 <= each["host_memory_shared"] + MIB
        assert each["host_memory_shared"] < each["host_memory_template"]
        assert each["host_memory_private"] + each["host_memory_engine"] < 64 * MIB
        assert each["host_disk_shared"] > 0
    assert sum(each["host_memory_shared"] for each in found) <= held
    host = hutch.json("stats", "--host")
    # It may still grow: a clone that reads what nothing was ever written to makes it a page.
    assert 0 <= host["template_memory"] - held <= SLACK
    assert host["memory_promised"] == 512 * MIB
    listed = {row["name"]: row["usage"] for row in hutch.json("ps", "-s")}
    for each in found:
        assert abs(listed[each["name"]]["memory"] - each["host_memory"]) <= SLACK
    assert "ON DISK" in hutch.run("ps", "-s").text


def test_a_cold_boot_shares_nothing(hutch: Hutch) -> None:
    hutch.run("run", "-d", "--idle", "--name", "one", "-m", "256m", "--no-template", "busybox")
    found = stats(hutch, "one")
    assert found["host_memory_shared"] == found["host_memory_template"] == 0
    assert 32 * MIB < found["host_memory_private"] < 256 * MIB


def test_what_is_written_to_disk_is_its_own(pair: tuple[Hutch, list[str]]) -> None:
    hutch, names = pair
    before = [stats(hutch, name)["host_disk"] for name in names]
    fill = f"dd if=/dev/urandom of=/x bs=1M count={DISK_WRITTEN // MIB} && sync"
    hutch.run("exec", "one", "sh", "-c", fill)
    one, two = (stats(hutch, name)["host_disk"] for name in names)
    assert DISK_WRITTEN <= one - before[0] <= 2 * DISK_WRITTEN
    assert two - before[1] <= MIB


def test_paused_and_parked_ones_are_not_woken(pair: tuple[Hutch, list[str]]) -> None:
    hutch, _ = pair
    hutch.run("pause", "one")
    paused = stats(hutch, "one")
    assert (paused["state"], paused["cpu_percent"]) == ("paused", 0.0)
    assert paused["host_memory"] > 0
    assert paused["memory_used"] is None
    # But for the engine's own few steps.
    assert stats(hutch, "one")["host_cpu_seconds"] - paused["host_cpu_seconds"] < 0.1
    hutch.run("park", "two")
    parked = stats(hutch, "two")
    assert (parked["state"], parked["host_memory"]) == ("parked", 0)
    assert parked["host_disk"] > 16 * MIB, "its memory is on disk"
    assert hutch.json("stats", "--host")["memory_promised"] == 256 * MIB
    assert {row["state"] for row in hutch.json("ps")} == {"paused", "parked"}


@pytest.mark.parametrize(
    ("setting", "value", "resource"),
    [
        ("memory_reserve", "1t", "memory"),
        ("memory_overcommit", "0.00001", "promise"),
        ("disk_reserve", "10000t", "disk"),
    ],
)
def test_no_room(new_hutch: NewHutch, setting: str, value: str, resource: str) -> None:
    hutch = new_hutch(**{setting: value})
    failure = hutch.run("--json", "run", "--name", "one", "busybox", "true", expect=125).json
    assert failure["error"]["code"] == "no_capacity", failure
    assert failure["error"]["details"]["resource"] == resource
    assert setting in failure["error"]["hint"]
    assert hutch.json("ps", "-a") == []
    assert hutch.json("template", "ls") == []
    assert not any((hutch.home / "layers").glob("*"))
    assert not [what for what in hutch.processes().values() if "qemu" in what]


def test_the_last_room_is_given_once(new_hutch: NewHutch) -> None:
    """Two starts at once, and a promise that is enough for one; then the other gets its turn."""
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    hutch = new_hutch(memory_overcommit=f"{600 * MIB / total:.6f}")
    for name in ("one", "two"):
        hutch.run("create", "--name", name, "-m", "512m", "busybox", "sleep", "1000")
    hutch.run("template", "build", "-m", "512m", "busybox")
    starts = {name: hutch.start("start", name) for name in ("one", "two")}
    codes = {name: started.wait(120) for name, started in starts.items()}
    assert sorted(codes.values()) == [0, 125], codes
    running, refused = sorted(codes, key=lambda name: codes[name])
    assert [row["name"] for row in hutch.json("ps")] == [running]
    hutch.run("stop", "-t", "0", running)
    hutch.run("start", refused)
    assert hutch.run("exec", refused, "echo", "up").text == "up"

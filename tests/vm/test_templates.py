"""Starts from templates, with real VMs: how fast they are, and that clones are not one another."""

import json
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.harness.fixtures import NewHutch
from tests.harness.hutch import Hutch
from tests.waiting import wait_until

LESS = 3
"""By how much less CPU time of the host a clone must at least be there than a cold boot.

How long it takes, which the benchmarks show, says more of what else the host does.
"""
CLOCK_TOLERANCE = 0.5
"""Seconds; for a clock that nobody has set, the age of the template, which is more."""
UNIQUE = (
    "head -c 16 /dev/urandom | od -An -tx1; cat /proc/sys/kernel/random/uuid /etc/machine-id;"
    " hostname; cat /proc/sys/kernel/hostname"
)


@pytest.fixture
def hutch(new_hutch: NewHutch) -> Hutch:
    """A home without a template."""
    return new_hutch()


def templates(hutch: Hutch, point: str = "fresh") -> list[dict[str, Any]]:
    return [info for info in hutch.json("template", "ls") if info["point"] == point]


def template_ids(hutch: Hutch) -> list[str]:
    return [info["id"] for info in templates(hutch)]


def half_made(hutch: Hutch) -> list[Path]:
    """Return the directories of templates that have no manifest."""
    found = (hutch.home / "templates").glob("*")
    return [path for path in found if not (path / "template.json").exists()]


def test_a_second_run_takes_a_fraction_of_a_cold_one(hutch: Hutch) -> None:
    used, boots = {}, {}
    for name in ("cold", "first", "second", "third"):
        extra = ("--no-template",) if name == "cold" else ()
        hutch.run("run", "-d", "--idle", "--name", name, *extra, "busybox")
        used[name] = hutch.json("stats", name)[0]["host_cpu_seconds"]
        boots[name] = hutch.json("inspect", name)[0]["boot_seconds"]
        hutch.run("rm", "-f", name)
    print(f"CPU seconds: {used}, seconds: {boots}")
    assert max(used[name] for name in ("second", "third")) * LESS <= used["cold"]
    for point in ("fresh", "bare"):
        (template,) = templates(hutch, point)
        assert template["disk_bytes"] > 0
        assert template["memory_bytes"] > 0
        assert template["image"] == "busybox"


@pytest.fixture(scope="module")
def pair(_module_hutch: Hutch) -> Iterator[tuple[Hutch, list[str]]]:
    """Two clones of one template, which have run nothing yet."""
    names = ["one", "two"]
    for name in names:
        _module_hutch.run("run", "-d", "--idle", "--name", name, "busybox")
    yield _module_hutch, names
    _module_hutch.run("rm", "-f", *names)


def test_two_clones_are_of_one_template(pair: tuple[Hutch, list[str]]) -> None:
    hutch, names = pair
    (template,) = template_ids(hutch)
    infos = hutch.json("inspect", *names)
    assert {info["template"] for info in infos} == {template}
    assert all(info["boot_seconds"] > 0 for info in infos)


def test_the_same_commands_in_two_clones_find_nothing_in_common(
    pair: tuple[Hutch, list[str]],
) -> None:
    hutch, names = pair
    seen = [hutch.run("exec", name, "sh", "-c", UNIQUE).text.split("\n") for name in names]
    assert len(seen[0]) == len(seen[1]) == 5
    for one, two in zip(*seen, strict=True):
        assert one != two
    assert [lines[3] for lines in seen] == names


def test_the_clock_of_a_clone_is_right(pair: tuple[Hutch, list[str]]) -> None:
    hutch, names = pair
    offsets = []
    for name in names:
        for _ in range(3):
            before = time.time()
            # The one tool of busybox that tells fractions of a second.
            lines = hutch.run("exec", name, "adjtimex").text.splitlines()
            values = dict(line.strip().partition(":")[::2] for line in lines)
            now = int(values["time.tv_sec"]) + int(values["time.tv_usec"]) / 1e6
            offsets.append((now - before, time.time() - before))
    for offset, round_trip in offsets:
        assert -CLOCK_TOLERANCE <= offset <= round_trip + CLOCK_TOLERANCE


def test_clones_have_files_of_their_own_and_keep_them(pair: tuple[Hutch, list[str]]) -> None:
    hutch, names = pair
    for name in names:
        hutch.run("exec", name, "sh", "-c", f"echo {name} > /kept && mkdir -p /etc/more && sync")
    for name in names:
        assert hutch.run("exec", name, "cat", "/kept").text == name
    one = names[0]
    machine_id = hutch.run("exec", one, "cat", "/etc/machine-id").text
    hutch.run("stop", "-t", "1s", one)
    hutch.run("start", one)
    assert hutch.run("exec", one, "cat", "/kept", "/etc/machine-id").text == f"{one}\n{machine_id}"
    assert hutch.run("exec", one, "ls", "-d", "/etc/more").text == "/etc/more"
    assert hutch.run("exec", names[1], "cat", "/kept").text == names[1]


def test_a_stopped_sandbox_outlives_its_template(hutch: Hutch) -> None:
    hutch.run("run", "-d", "--idle", "--name", "box", "busybox")
    hutch.run("exec", "box", "sh", "-c", "echo kept > /kept; sync")
    hutch.run("stop", "-t", "1s", "box")
    (template,) = template_ids(hutch)
    hutch.run("template", "rm", template)
    assert template_ids(hutch) == []
    assert [path.name for path in half_made(hutch)[0].iterdir()] == ["disk.qcow2"]
    hutch.run("daemon", "stop")
    hutch.run("start", "box")
    assert hutch.run("exec", "box", "cat", "/kept").text == "kept"
    hutch.run("rm", "-f", "box")
    assert half_made(hutch) == []


def test_no_template_boots_cold(hutch: Hutch) -> None:
    hutch.run("run", "-d", "--idle", "--no-template", "--name", "box", "busybox")
    assert hutch.json("inspect", "box")[0]["template"] is None
    assert template_ids(hutch) == []


def test_a_damaged_template_is_thrown_away(hutch: Hutch) -> None:
    hutch.run("template", "build", "busybox")
    (template,) = template_ids(hutch)
    state = hutch.home / "templates" / template / "state"
    state.write_bytes(state.read_bytes()[:1000])
    hutch.run("run", "-d", "--idle", "--name", "box", "busybox")
    assert hutch.run("exec", "box", "echo", "served").text == "served"
    assert hutch.json("inspect", "box")[0]["template"] is None
    assert template_ids(hutch) == []
    kinds = [event["kind"] for event in map(json.loads, _events(hutch))]
    assert "template.dropped" in kinds


def _events(hutch: Hutch) -> list[str]:
    return hutch.run("--json", "events").text.splitlines()


@pytest.mark.parametrize("moment", ["boots", "is frozen"])
def test_a_daemon_that_is_killed_while_it_builds_leaves_nothing(hutch: Hutch, moment: str) -> None:
    hutch.run("ps")
    building = hutch.start("template", "build", "busybox")
    templates = hutch.home / "templates"
    file = "console.log" if moment == "boots" else "memory*"
    wait_until(lambda: any(templates.glob(f"*/{file}")), timeout=60, what=f"it {moment}")
    hutch.kill_daemon()
    building.send_signal(signal.SIGKILL)
    building.wait()
    hutch.run("ps")
    wait_until(lambda: not half_made(hutch), what="what was half made is gone")
    wait_until(
        lambda: not [what for what in hutch.processes().values() if "qemu" in what],
        what="its VM is gone",
    )
    assert hutch.run("run", "--rm", "busybox", "echo", "works").text == "works"

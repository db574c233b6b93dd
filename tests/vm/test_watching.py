"""What a user watches and sets: events, logs in time, use of resources, settings, one terminal's
program seen by two.
"""

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hutch.models import parse_timestamp, timestamp
from tests.harness.fixtures import NewHutch
from tests.harness.hutch import Hutch
from tests.vm.conftest import Box
from tests.vm.streams import Terminal
from tests.waiting import wait_until

CLOCK = 0.1
"""Seconds that a sandbox's clock may be off."""
STAMPED = re.compile(r"(?P<time>\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z) (?P<text>.*)")


@pytest.fixture
def counting(shared: Hutch) -> Iterator[str]:
    """A sandbox whose main process has written ten lines, some time apart, and ended."""
    script = "for i in $(seq 10); do echo line $i; sleep 0.2; done"
    shared.run("run", "-d", "--name", "counting", "busybox", "sh", "-c", script)
    assert shared.run("wait", "counting").text == "0"
    yield "counting"
    shared.run("rm", "-f", "counting")


def stamped(hutch: Hutch, *args: str) -> list[tuple[str, str]]:
    """Return the lines of a log with their times."""
    found = [STAMPED.fullmatch(line) for line in hutch.run("logs", "-t", *args).text.splitlines()]
    assert all(found), found
    return [(match["time"], match["text"]) for match in found if match]


def test_logs_between_two_moments(shared: Hutch, counting: str) -> None:
    every = stamped(shared, counting)
    assert [text for _, text in every] == [f"line {i}" for i in range(1, 11)]
    moments = [moment for moment, _ in every]
    assert moments == sorted(moments)
    # The times are those of writing, as far as the machine keeps up.
    seconds = [parse_timestamp(moment) for moment in moments]
    assert seconds[-1] - seconds[0] > 9 * 0.2 / 2
    since = timestamp((seconds[2] + seconds[3]) / 2)
    until = timestamp((seconds[6] + seconds[7]) / 2)
    assert stamped(shared, "--since", since, "--until", until, counting) == every[3:7]
    assert stamped(shared, "--since", since, counting) == every[3:]
    assert stamped(shared, "--until", until, counting) == every[:7]
    assert stamped(shared, "--since", since, "-n", "2", counting) == every[-2:]
    assert stamped(shared, "--since", "1h", counting) == every
    assert shared.run("logs", "--until", "1h", counting).stdout == b""
    refused = shared.run("--json", "logs", "--since", "yesterday", counting, expect=125)
    assert refused.json["error"]["code"] == "bad_request"
    assert "2026-" in refused.json["error"]["hint"]


def test_followed_logs_with_times_up_to_a_moment(shared: Hutch) -> None:
    script = "while :; do echo tick; sleep 0.2; done"
    shared.run("run", "-d", "--name", "ticks", "busybox", "sh", "-c", script)
    follower = shared.start("logs", "-f", "-t", "ticks")
    # Followed is live: lines come that are written after the first ones have been read.
    later, began = 0, time.time() + CLOCK
    while later < 5:
        line = follower.stdout.readline().decode().removesuffix("\n")
        assert STAMPED.fullmatch(line), line
        later += parse_timestamp(line.split()[0]) > began
    shared.run("rm", "-f", "ticks")
    assert follower.wait(60) == 0


def test_events_are_followed_as_they_happen(shared: Hutch) -> None:
    past = [json.loads(line) for line in shared.run("--json", "events").text.splitlines()]
    since = str(past[-1]["seq"] + 1) if past else "0"
    follower = shared.start("--json", "events", "-f", "--since", since)

    def following(kind: str) -> dict[str, Any]:
        """Return the next event of a kind about the sandbox, which must come by itself."""
        while line := follower.stdout.readline():
            event: dict[str, Any] = json.loads(line)
            if event["name"] == "seen" and event["kind"] == kind:
                return event
        raise AssertionError(f"no {kind}")

    shared.run("create", "--name", "seen", "busybox")
    seen = [following("sandbox.created")]
    shared.run("start", "seen")
    seen.append(following("sandbox.started"))
    shared.run("exec", "seen", "true")
    shared.run("stop", "-t", "1s", "seen")
    seen.append(following("sandbox.stopped"))
    shared.run("rm", "seen")
    seen.append(following("sandbox.removed"))
    numbers = [event["seq"] for event in seen]
    assert numbers == sorted(set(numbers))
    assert len({event["subject"] for event in seen}) == 1
    assert follower.poll() is None
    follower.terminate()
    follower.wait(60)
    # For a reader, the same as lines; from a number on, the same events again.
    again = shared.run("events", "--since", str(numbers[0])).text.splitlines()
    assert "sandbox.created seen" in again[0]


def test_two_clients_of_one_main_process(shared: Hutch) -> None:
    script = "while read line; do echo got $line; done; exit 4"
    run = ("run", "-it", "--name", "both", "busybox", "sh", "-c", f"echo up; {script}")
    with Terminal(shared, *run) as first:
        first.expect(b"up\r\n")
        with Terminal(shared, "attach", "both") as second:
            # What is typed before it is attached waits in its terminal.
            second.write(b"one\r")
            second.expect(b"got one\r\n")
            first.expect(b"got one\r\n")
            first.write(b"two\r")
            first.expect(b"got two\r\n")
            second.expect(b"got two\r\n")
            second.write(b"\x04")
            assert (first.wait(), second.wait()) == (4, 4)
    shared.run("rm", "both")


def test_top_and_stats(box: Box) -> None:
    sleeper = box.run("sleep", "8765", options=("-d",)).text
    try:
        rows = wait_until(
            lambda: [r for r in box.hutch.json("top", box.name) if "8765" in r["command"]],
            what="the program is in the table",
        )
        assert rows[0]["user"] == "root"
        table = box.hutch.run("top", box.name).text.splitlines()
        assert table[0].split()[:4] == ["PID", "PPID", "USER", "STATE"]
        assert any("8765" in line for line in table[1:])
    finally:
        box.run("killall", "sleep", expect=None)
        box.hutch.run("attach", box.name, sleeper, expect=None)
    [stats] = box.hutch.json("stats", box.name)
    assert stats["name"] == box.name
    assert 0 < stats["memory_used"] < stats["memory_total"]
    assert 0 < stats["disk_used"] < stats["disk_total"]
    assert stats["host_memory"] > 16 << 20
    assert stats["processes"] >= 1
    assert stats["uptime_seconds"] > 0
    # What it writes shows: 32 MiB in its memory, as /dev/shm is.
    box.sh("head -c 33554432 /dev/urandom >/dev/shm/ballast; sync")
    [more] = box.hutch.json("stats", box.name)
    assert more["memory_used"] - stats["memory_used"] > 16 << 20
    box.sh("rm /dev/shm/ballast")
    every = {row["name"] for row in box.hutch.json("stats")}
    assert box.name in every
    assert box.name in box.hutch.run("stats").text


def test_settings_as_a_user_sets_them(new_hutch: NewHutch) -> None:
    hutch = new_hutch()
    file = Path(hutch.run("config", "path").text)
    assert file == hutch.home / "config.toml"
    assert hutch.json("config", "show")["memory"]["origin"] == "default"
    hutch.run("config", "set", "memory", "256m")
    hutch.run("config", "set", "registry_mirrors", "a.example=b.example")
    assert hutch.run("config", "get", "memory").text == str(256 << 20)
    shown = hutch.json("config", "show")
    assert (shown["memory"]["value"], shown["registry_mirrors"]["value"]) == (
        256 << 20,
        ["a.example=b.example"],
    )
    assert str(file) in shown["memory"]["origin"] or shown["memory"]["origin"] == "file"
    assert "256" in file.read_text()
    # What is set is what a sandbox gets; a variable goes first.
    script = "awk '/MemTotal/{print $2}' /proc/meminfo"
    total = int(hutch.run("run", "--rm", "busybox", "sh", "-c", script).text)
    assert 150 << 10 < total < 256 << 10
    assert hutch.run("config", "get", "memory", env={"HUTCH_MEMORY": "1g"}).text == str(1 << 30)
    for key, value in (("no_such", "1"), ("memory", "much")):
        refused = hutch.run("--json", "config", "set", key, value, expect=125)
        assert refused.json["error"]["code"] in ("bad_setting", "bad_size"), refused
    assert hutch.run("config", "get", "memory").text == str(256 << 20)

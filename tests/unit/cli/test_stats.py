"""`hutch stats` and `top` as processes."""

import json
import signal

from tests.unit.cli.conftest import Cli


def test_once(hutch: Cli) -> None:
    lines = hutch("stats", "box").stdout.decode().splitlines()
    assert lines[0].split()[:2] == ["NAME", "CPU"]
    assert lines[1].startswith("box   2.0 %")
    assert "box" in {item["name"] for item in json.loads(hutch("stats", "--json").stdout)}
    assert b"(sandbox_not_found)" in hutch("stats", "nosuch", code=125).stderr


def test_what_the_host_has(hutch: Cli) -> None:
    text = hutch("stats", "--host").stdout.decode()
    assert "6 GiB of 8 GiB available" in text
    assert "512 MiB of at most 32 GiB" in text
    assert json.loads(hutch("stats", "--host", "--json").stdout)["memory_total"] == 8 << 30
    assert b"(bad_request)" in hutch("stats", "--host", "box", code=125).stderr


def test_watch_until_interrupted(hutch: Cli) -> None:
    with hutch.start("stats", "--watch", "100ms", "--json", "box") as child:
        assert child.stdout is not None
        first = json.loads(child.stdout.readline())
        assert json.loads(child.stdout.readline())[0]["name"] == first[0]["name"] == "box"
        child.send_signal(signal.SIGINT)
        child.stdout.read()
        assert child.wait(60) == 130


def test_top(hutch: Cli) -> None:
    assert b"agent" in hutch("top", "box").stdout
    assert json.loads(hutch("top", "--json", "box").stdout)[0]["pid"] == 1

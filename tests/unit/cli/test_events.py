"""`hutch events` as a process."""

import json
import signal

from tests.unit.cli.conftest import Cli


def test_text_json_and_since(hutch: Cli) -> None:
    lines = hutch("events").stdout.decode().splitlines()
    assert lines[0] == "0 2026-01-01T00:00:00.000Z sandbox.started box n=0"
    assert len(lines) == 3
    found = [
        json.loads(line)["seq"]
        for line in hutch("events", "--json", "--since", "1").stdout.splitlines()
    ]
    assert found == [1, 2]


def test_follow_until_interrupted(hutch: Cli) -> None:
    with hutch.start("events", "-f") as child:
        assert child.stdout is not None
        assert [child.stdout.readline()[:1] for _ in range(3)] == [b"0", b"1", b"2"]
        child.send_signal(signal.SIGINT)
        assert child.wait(60) == 130

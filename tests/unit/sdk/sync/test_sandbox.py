"""The generated client against the same server: what the words of the asyncio one turned into."""

import subprocess
import sys
from pathlib import Path

import pytest

from hutch.errors import NotFound
from hutch.sdk import Client, Sandbox
from tests.unit.api.conftest import Served
from tests.unit.api.fake_programs import pattern

ROOT = Path(__file__).resolve().parents[4]


def test_it_is_what_would_be_generated() -> None:
    done = subprocess.run(
        [sys.executable, "scripts/unasync.py", "--check"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_ports(served: Served) -> None:
    with Client(socket=served.path) as client:
        with Sandbox.create(ports=["8080:80"], client=client) as box:
            assert box.url(80) == "http://127.0.0.1:8080"
            assert box.publish(81) == box.ports[1:]
            box.unpublish(8080)
            assert [port.guest_port for port in box.ports] == [81]


def test_a_sandbox_is_removed_with_its_context(served: Served) -> None:
    with Client(socket=served.path) as client:
        with Sandbox.create("busybox", name="mine", client=client) as box:
            result = box.commands.run(["err", "oops"])
            assert (result.stdout, result.stderr, result.exit_code) == ("", "oops\n", 3)
            box.files.write("/f", "text")
            assert box.files.read("/f") == "text"
        with pytest.raises(NotFound):
            Sandbox.connect("mine", client=client)
        assert [info.name for info in Sandbox.list(client=client)] == ["box"]


def test_stdin_far_beyond_the_windows(served: Served) -> None:
    data = pattern(8 << 20)
    with Client(socket=served.path) as client:
        box = Sandbox.connect("box", client=client)
        assert box.commands.run(["cat"], stdin=data).stdout_bytes == data

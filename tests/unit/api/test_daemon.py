import asyncio
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from hutch.api.daemon import Options, _has_work, _parse, _stop_when_idle, main
from hutch.images.base import no_report
from hutch.models import PoolInfo, SandboxSpec, SandboxState
from hutch.networking import PublishedPort
from hutch.tasks import Scope
from tests.unit.api.fake_operations import FakeOperations
from tests.waiting import until

# How it starts, ends and races is tested from its starter's side: tests/unit/sdk/test_start.py.


def test_the_command_line() -> None:
    assert _parse([]) == Options()
    assert _parse(["--detach", "--ready-fd", "7"]) == Options(detach=True, ready_fd=7)
    for wrong in (["--ready-fd"], ["--ready-fd", "x"], ["extra"]):
        assert _parse(wrong) is None


def test_a_wrong_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--nonsense"]) == 2
    assert capsys.readouterr().err.startswith("usage:")


def test_why_it_cannot_start_is_told(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], short_tmp: Path
) -> None:
    monkeypatch.setenv("HUTCH_RUNTIME_DIR", str(short_tmp / ("d" * 100)))
    read, write = os.pipe()
    assert main(["--ready-fd", str(write)]) == 125
    os.close(write)
    with os.fdopen(read) as pipe:
        assert '"bad_path"' in pipe.read()
    assert "too long" in capfd.readouterr().err


def test_nothing_heavy_is_imported_before_the_lock() -> None:
    code = (
        "import sys, hutch.api.daemon\n"
        "print([name for name in ('fastapi', 'uvicorn', 'pydantic') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == "[]"


def test_it_has_as_many_descriptors_as_it_may(tmp_path: Path) -> None:
    code = (
        "import resource, hutch.api.daemon as daemon\n"
        "which = resource.RLIMIT_NOFILE\n"
        "hard = resource.getrlimit(which)[1]\n"
        "resource.setrlimit(which, (hard // 2, hard))\n"
        "def run(work):\n"
        "    work.close()\n"
        "    print(hard, *resource.getrlimit(which))\n"
        "daemon.asyncio.run = run\n"
        "daemon._serve(daemon.load_settings(), None, daemon.Options())\n"
    )
    environment = {**os.environ, "HUTCH_HOME": os.fspath(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
        env=environment,
    )
    assert len(set(done.stdout.split())) == 1


async def test_a_pool_keeps_it_from_ending_by_itself() -> None:
    operations = FakeOperations()
    await operations.pools.warm(SandboxSpec("busybox"), 1, no_report, wait=True)
    looks: list[int] = []
    listed = operations.pools.list

    async def look() -> Sequence[PoolInfo]:
        looks.append(len(looks))
        return await listed()

    operations.pools.list = look  # type: ignore[method-assign]
    server = IdleServer()
    async with Scope("test") as scope:
        scope.start("watch", _stop_when_idle(operations, server, 0.01))  # type: ignore[arg-type]
        await until(lambda: len(looks) > 3, what="it has looked a few times")
        assert not server.stopped.is_set()
        await operations.pools.drain()
        async with asyncio.timeout(60):
            await server.stopped.wait()


async def test_a_parked_sandbox_keeps_it_only_for_its_limit_and_its_ports() -> None:
    operations = FakeOperations()
    spec = SandboxSpec("busybox", "box", idle=True)
    made = await operations.sandboxes.create(spec, no_report)
    box = replace(made, state=SandboxState.PARKED)
    await operations.sandboxes.put(replace(box, timeout_at=box.created_at))
    assert await _has_work(operations)  # type: ignore[arg-type]
    await operations.sandboxes.put(box)
    assert not await _has_work(operations)  # type: ignore[arg-type]
    await operations.sandboxes.put(replace(box, ports=[PublishedPort(80, 8080)]))
    assert await _has_work(operations)  # type: ignore[arg-type]


class IdleServer:
    """A server that nobody is connected to."""

    clients = 0

    def __init__(self) -> None:
        self.stopped = asyncio.Event()

    def stop(self) -> None:
        self.stopped.set()

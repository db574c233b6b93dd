"""How urgent a process is, on real ones."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from hutch.process import ProcessId
from hutch.service import priority
from tests.waiting import wait_until

_THREADS = (
    "import threading\n"
    "end = threading.Event()\n"
    "for _ in range(3): threading.Thread(target=end.wait, daemon=True).start()\n"
    "print('up', flush=True)\n"
    "input()\n"
)


@pytest.fixture
def worker() -> Iterator[ProcessId]:
    """A process with four threads."""
    with subprocess.Popen(
        [sys.executable, "-c", _THREADS], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"up\n"
        found = ProcessId.of(child.pid)
        assert found is not None
        wait_until(lambda: len(niceness(found)) == 4)
        yield found
        child.kill()


def niceness(process: ProcessId) -> list[int]:
    threads = Path(f"/proc/{process.pid}/task").iterdir()
    return [os.getpriority(os.PRIO_PROCESS, int(thread.name)) for thread in threads]


def test_all_threads_give_way_and_come_back(
    worker: ProcessId, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not priority._can_raise():
        pytest.skip("this user may not make a process urgent again")
    before = niceness(worker)
    priority.lower(worker)
    assert niceness(worker) == [priority.LOW] * 4
    monkeypatch.setattr(priority, "_NORMAL", before[0])
    priority.restore(worker)
    assert niceness(worker) == before


def test_what_cannot_be_undone_is_not_done(
    worker: ProcessId, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(priority, "_can_raise", lambda: False)
    before = niceness(worker)
    priority.lower(worker)
    assert niceness(worker) == before


def test_a_process_that_is_gone_or_another_is_left_alone(worker: ProcessId) -> None:
    before = niceness(worker)
    priority.lower(ProcessId(worker.pid, worker.start_time + 1))
    assert niceness(worker) == before
    priority.lower(ProcessId((1 << 22) + 1, 1))

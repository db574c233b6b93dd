import contextlib
import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from hutch import __version__
from hutch.api.runtime import (
    DaemonRecord,
    LifeLock,
    is_locked,
    read_record,
    socket_directory,
)
from hutch.errors import DaemonError
from hutch.process import ProcessId
from hutch.sdk import Client
from hutch.sdk.start import ensure_daemon, find_daemon, stop_daemon
from hutch.settings import Settings, load_settings
from tests.unit.api.conftest import Served
from tests.waiting import wait_until

ROOT = Path(__file__).resolve().parents[3]

# What the daemon process of these tests finds in the place of the real host.
CUSTOMIZE = """
import sys, types

def open_host(settings):
    from tests.unit.api.fake_operations import open_fake_host
    return open_fake_host(settings)

module = types.ModuleType("hutch.service.host")
module.open_host = open_host
sys.modules["hutch.service.host"] = module
"""


@pytest.fixture
def settings(short_tmp: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Settings]:
    """Settings of a home whose daemon has operations in memory; it is ended afterwards."""
    extra = short_tmp / "site"
    extra.mkdir()
    (extra / "sitecustomize.py").write_text(CUSTOMIZE)
    monkeypatch.setenv("PYTHONPATH", f"{extra}:{ROOT}")
    settings = load_settings()
    yield settings
    record = read_record(settings.home / "daemon.lock")
    if record is not None and record.pid != os.getpid():
        process = ProcessId.of(record.pid)
        if process is not None:
            process.kill()
            wait_until(lambda: not process.alive(), what="the daemon's end")


def record_of(settings: Settings) -> DaemonRecord:
    record = read_record(settings.home / "daemon.lock")
    assert record is not None
    return record


def test_it_is_started_once_and_found_again(settings: Settings) -> None:
    path = ensure_daemon(settings)
    first = record_of(settings)
    assert path == first.socket == str(socket_directory(settings) / "api.sock")
    assert first.version == __version__
    assert ensure_daemon(settings) == path
    assert record_of(settings) == first
    mode = os.stat(path).st_mode & 0o777, os.stat(Path(path).parent).st_mode & 0o777
    assert mode == (0o600, 0o700)
    with Client(settings) as client:
        assert client.info().home == str(settings.home)


def test_it_is_no_child_of_its_starter_and_has_no_terminal(settings: Settings) -> None:
    ensure_daemon(settings)
    fields = Path(f"/proc/{record_of(settings).pid}/stat").read_text().rpartition(")")[2].split()
    parent, session, terminal = int(fields[1]), int(fields[3]), int(fields[4])
    assert parent != os.getpid()
    assert session not in (os.getsid(0), record_of(settings).pid)
    assert terminal == 0


def test_racing_starters_share_one_daemon(settings: Settings) -> None:
    with ThreadPoolExecutor(4) as pool:
        paths = set(pool.map(lambda _: ensure_daemon(settings), range(4)))
    assert len(paths) == 1
    log = (settings.home / "daemon.log").read_text()
    assert log.count("ready after") == 1


def test_racing_processes_share_one_daemon(settings: Settings) -> None:
    """Two daemons started side by side, without the starters' lock: the loser says who won."""
    said: list[bytes] = []

    def run() -> None:
        read, write = os.pipe()
        argv = [sys.executable, "-m", "hutch.api.daemon", "--detach", "--ready-fd", "1"]
        actions = [(os.POSIX_SPAWN_DUP2, write, 1), (os.POSIX_SPAWN_DUP2, write, 2)]
        pid = os.posix_spawn(sys.executable, argv, os.environ, file_actions=actions)
        os.close(write)
        os.waitpid(pid, 0)
        with os.fdopen(read, "rb") as pipe:
            said.append(pipe.readline())

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert said[0] == said[1]
    assert json.loads(said[0])["ready"] == record_of(settings).socket


def test_an_idle_one_ends_by_itself_once_nobody_is_connected(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HUTCH_IDLE_EXIT", "300ms")
    lock = settings.home / "daemon.lock"

    def outlives_its_time() -> bool:
        path = ensure_daemon(settings)
        with socket.socket(socket.AF_UNIX) as client, contextlib.suppress(OSError):
            client.connect(path)
            later = time.monotonic() + 1.0
            wait_until(lambda: time.monotonic() > later, what="more than its time")
            return is_locked(lock)
        return False

    # On a busy machine its time may be up before the connection comes, but not always.
    assert any(outlives_its_time() for _ in range(5))
    path = str(socket_directory(settings) / "api.sock")
    wait_until(lambda: not is_locked(lock), what="it ends")
    assert not Path(path).exists()
    assert find_daemon(settings) is None


def test_after_kill_9_a_new_one_takes_over(settings: Settings) -> None:
    path = ensure_daemon(settings)
    killed = record_of(settings).pid
    process = ProcessId.of(killed)
    assert process is not None
    process.kill()
    wait_until(lambda: not process.alive())
    assert find_daemon(settings) is None
    assert Path(path).exists()
    assert ensure_daemon(settings) == path
    assert record_of(settings).pid != killed


def test_stop_waits_for_the_end(settings: Settings) -> None:
    path = ensure_daemon(settings)
    pid = record_of(settings).pid
    assert stop_daemon(settings) is True
    assert not is_locked(settings.home / "daemon.lock")
    assert not Path(path).exists()
    wait_until(lambda: ProcessId.of(pid) is None)
    assert stop_daemon(settings) is False


def test_sigterm_is_a_graceful_stop(settings: Settings) -> None:
    path = ensure_daemon(settings)
    process = ProcessId.of(record_of(settings).pid)
    assert process is not None
    process.kill(signal.SIGTERM)
    wait_until(lambda: not process.alive())
    assert not Path(path).exists()
    assert '"daemon ended"' in (settings.home / "daemon.log").read_text()


def test_an_idle_daemon_ends(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HUTCH_IDLE_EXIT", "1s")
    with Client(settings) as client:
        client.info()
        pid = record_of(settings).pid
    wait_until(lambda: ProcessId.of(pid) is None, what="the idle daemon's end")


def pretend(settings: Settings, path: str, version: str) -> LifeLock:
    """Write a record as a daemon of another version would, holding its lock."""
    settings.home.mkdir(parents=True, exist_ok=True)
    lock = LifeLock(settings.home / "daemon.lock")
    assert lock.acquire()
    lock.publish(DaemonRecord(os.getpid(), version, path))
    return lock


def test_another_version_with_work_is_an_error(settings: Settings, served: Served) -> None:
    lock = pretend(settings, served.path, "0.0.1")
    with pytest.raises(DaemonError, match=r"0\.0\.1") as caught:
        ensure_daemon(settings)
    assert caught.value.code == "daemon_version"
    assert caught.value.hint
    assert caught.value.details["running"] == 1
    lock.release()


def test_another_version_without_work_is_replaced(settings: Settings, served: Served) -> None:
    served.call(served.fake.sandboxes.stop("box"))
    lock = pretend(settings, served.path, "0.0.1")
    ended = threading.Thread(
        target=lambda: (
            wait_until(lambda: served.fake.system.stops == [False]),
            lock.release(),
        )
    )
    ended.start()
    ensure_daemon(settings)
    ended.join(timeout=60)
    assert record_of(settings).version == __version__


def test_a_daemon_that_cannot_start_says_why(
    settings: Settings, short_tmp: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HUTCH_MEMORY", "nonsense")
    with pytest.raises(Exception, match="nonsense"):
        ensure_daemon(settings)
    monkeypatch.delenv("HUTCH_MEMORY")
    (short_tmp / "site/sitecustomize.py").write_text(
        "import sys\nsys.modules['hutch.service.host'] = None\n"
    )
    with pytest.raises(DaemonError, match="did not start") as caught:
        ensure_daemon(settings)
    assert caught.value.code == "daemon_unreachable"
    assert "Traceback" in caught.value.details["log"]


def test_a_runtime_directory_of_others_is_refused(settings: Settings) -> None:
    directory = socket_directory(settings)
    directory.mkdir(parents=True, mode=0o700)
    directory.chmod(0o755)
    with pytest.raises(DaemonError, match="open to other users"):
        ensure_daemon(settings)


def test_paths_too_long_for_sockets(settings: Settings, tmp_path: Path) -> None:
    long = replace(settings, runtime_dir=tmp_path / ("d" * 100))
    with pytest.raises(Exception, match="too long") as caught:
        ensure_daemon(long)
    assert caught.value.code == "bad_path"  # type: ignore[attr-defined]


def test_a_record_of_another_user_is_not_followed(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = pretend(settings, "/nowhere", __version__)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fstat", lambda fd: os.stat_result([0] * 4 + [12345] + [0] * 5))
        with pytest.raises(DaemonError, match="belongs to the user 12345"):
            find_daemon(settings)
    lock.release()


def test_stale_socket_files_are_no_obstacle(settings: Settings) -> None:
    directory = socket_directory(settings)
    directory.mkdir(parents=True, mode=0o700)
    directory.parent.chmod(0o700)
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(directory / "api.sock"))
    assert ensure_daemon(settings) == str(directory / "api.sock")

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from hutch.errors import DaemonError, NotFound
from hutch.sdk.sync.transport import IDLE_LIMIT, Transport, each, write_file
from tests.unit.api.conftest import Served


def test_connections_are_used_again_by_any_thread(served: Served) -> None:
    transport = Transport(socket=served.path)
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda _: transport.request("GET", "/v1/daemon").json(), range(200)))
    assert 0 < len(transport._idle) <= IDLE_LIMIT
    transport.close()
    assert not transport._idle


def test_an_error_keeps_its_connection(served: Served) -> None:
    transport = Transport(socket=served.path)
    for _ in range(3):
        with pytest.raises(NotFound):
            transport.request("GET", "/v1/sandboxes/no")
    assert len(transport._idle) == 1
    transport.close()


def test_a_connection_that_died_while_idle_is_not_used(served: Served) -> None:
    transport = Transport(socket=served.path)
    transport.request("GET", "/v1/daemon").read()
    served.stop()
    with pytest.raises(DaemonError, match="no daemon answers"):
        transport.request("GET", "/v1/daemon")
    assert not transport._idle


@pytest.mark.parametrize("random", [False, True])
def test_a_local_file_is_never_written_through_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, random: bool
) -> None:
    other = tmp_path / "other"
    other.write_bytes(b"kept")
    for mark in (os.getpid(), "61" * 8):
        (tmp_path / f".f.{mark}.part").symlink_to(other)
    if random:
        monkeypatch.setattr(os, "urandom", lambda count: b"a" * count)
        with pytest.raises(FileExistsError):
            write_file(tmp_path, each([b"new"]), name="f")
    else:
        write_file(tmp_path, each([b"new"]), name="f")
        assert (tmp_path / "f").read_bytes() == b"new"
    assert other.read_bytes() == b"kept"

import os
import socket
import subprocess
import sys
from pathlib import Path

from hutch.engine.orphans import socket_holders

HOLD = "import sys; print('held', flush=True); sys.stdin.read()"


def test_the_process_that_holds_a_listening_socket_is_found(short_tmp: Path) -> None:
    path = short_tmp / "with a blank.sock"
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(path))
    server.listen()
    client = socket.socket(socket.AF_UNIX)
    client.connect(str(path))
    with subprocess.Popen(
        [sys.executable, "-S", "-c", HOLD],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        pass_fds=[server.fileno()],
    ) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        # We hold it as well, and are not our own orphan.
        assert [found.pid for found in socket_holders([path])] == [holder.pid]
        server.close()
        assert [found.pid for found in socket_holders([path])] == [holder.pid]
        assert not socket_holders([short_tmp / "other.sock"])
        holder.kill()
    client.close()
    assert not socket_holders([path])


def test_a_client_is_no_holder(short_tmp: Path) -> None:
    path = short_tmp / "a.sock"
    with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as client:
        server.bind(str(path))
        server.listen()
        client.connect(str(path))
        with subprocess.Popen(
            [sys.executable, "-S", "-c", HOLD],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=[client.fileno()],
        ) as bystander:
            assert bystander.stdout is not None
            bystander.stdout.readline()
            assert bystander.pid != os.getpid()
            assert not socket_holders([path])
            bystander.kill()

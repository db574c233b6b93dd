import hashlib
import select
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from hutch.errors import DaemonError, GuestError, HutchError, NotFound
from hutch.sdk.websocket import BINARY
from hutch.sdk.wire import Connection, WebSocket
from tests.unit.api.conftest import Served
from tests.unit.api.fake_programs import pattern


@pytest.fixture
def connection(served: Served) -> Iterator[Connection]:
    with Connection.connect(served.path) as made:
        yield made


def start(connection: Connection, *argv: str, **spec: object) -> WebSocket:
    socket = connection.websocket("/v1/sandboxes/box/exec")
    socket.send_json({"start": {"argv": list(argv), **spec}})
    return socket


def finish(socket: WebSocket) -> tuple[bytes, bytes, int]:
    """Read an exec to its end, acknowledging everything at once."""
    outputs = {1: bytearray(), 2: bytearray()}
    code = -1
    while (message := socket.receive(timeout=30)) is not None:
        if message.kind == BINARY:
            outputs[message.data[0]] += message.data[1:]
            socket.send_json({"ack": {str(message.data[0]): len(message.data) - 1}})
        elif "exit" in (value := message.json()):
            code = value["exit"]["exit_code"]
        else:
            assert "error" not in value, value
    assert socket.close_code == 1000
    return bytes(outputs[1]), bytes(outputs[2]), code


def test_one_connection_carries_many_requests(connection: Connection) -> None:
    for _ in range(3):
        assert connection.request("GET", "/v1/daemon").json()["running"] == 1


def test_errors_are_raised_as_the_daemon_has_them(connection: Connection) -> None:
    with pytest.raises(NotFound, match="no sandbox nosuch") as caught:
        connection.request("GET", "/v1/sandboxes/nosuch")
    assert caught.value.code == "sandbox_not_found"
    assert caught.value.hint == "see `hutch ps -a`"
    assert connection.request("GET", "/v1/daemon").status == 200


def test_output_exit_code_and_close(connection: Connection) -> None:
    with start(connection, "err", "a", "b") as socket:
        assert finish(socket) == (b"", b"a b\n", 3)


def test_64_mib_of_output_are_exact(connection: Connection) -> None:
    size = 64 << 20
    with start(connection, "bytes", str(size)) as socket:
        out, err, code = finish(socket)
    assert (len(out), err, code) == (size, b"", 0)
    assert hashlib.sha256(out).digest() == hashlib.sha256(pattern(size)).digest()


def test_stdin_and_output_at_once_in_a_select_loop(connection: Connection) -> None:
    """As the CLI does it: `cat` of 16 MiB, whose stdin stops whenever its output is not read."""
    data = pattern(16 << 20)
    out, sent, credit, code, ended = bytearray(), 0, 0, -1, False
    with start(connection, "cat", stdin=True) as socket:
        messages = socket.poll()
        while True:
            for message in messages:
                if message.kind == BINARY:
                    out += message.data[1:]
                    socket.send_json({"ack": {"1": len(message.data) - 1}})
                    continue
                value = message.json()
                credit += value.get("credit", 0) + value.get("started", {}).get("credit", 0)
                code = value["exit"]["exit_code"] if "exit" in value else code
            if socket.close_code is not None:
                break
            if credit and sent < len(data):
                piece = data[sent : sent + min(credit, 50_000)]
                socket.send_binary(b"\0", piece)
                sent, credit = sent + len(piece), credit - len(piece)
            elif sent == len(data) and not ended:
                socket.send_json({"eof": True})
                ended = True
            writable = bool(credit and sent < len(data))
            assert writable or select.select([socket], [], [], 30)[0]
            messages = socket.poll()
    assert code == 0
    assert bytes(out) == data


def test_an_error_of_an_exec(connection: Connection) -> None:
    with start(connection, "nosuch") as socket:
        message = socket.receive(timeout=60)
        assert message is not None
        assert message.json()["error"]["code"] == "command_not_found"
        assert socket.receive(timeout=60) is None
        assert socket.close_code == 1011


def test_receive_has_a_timeout(connection: Connection) -> None:
    socket = connection.websocket("/v1/sandboxes/box/exec")
    with pytest.raises(GuestError, match="no message"):
        socket.receive(timeout=0.01)
    socket.close()


def test_a_refused_upload_stops_early(connection: Connection) -> None:
    sent = 0

    def pieces() -> Iterator[bytes]:
        nonlocal sent
        for _ in range(1 << 20):
            sent += 65536
            yield bytes(65536)

    with pytest.raises(NotFound, match="no such directory"):
        connection.request(
            "PUT", "/v1/sandboxes/box/files", {"path": "/nosuch/file"}, body=pieces()
        )
    assert sent < 64 << 20
    assert connection.request("GET", "/v1/daemon").status == 200


def test_a_broken_stream_is_no_whole_one(connection: Connection) -> None:
    answer = connection.request("GET", "/v1/sandboxes/box/files", {"path": "/broken"})
    with pytest.raises(DaemonError, match="in the middle"):
        answer.read()


def test_a_failing_upload_changes_nothing(served: Served, connection: Connection) -> None:
    def pieces() -> Iterator[bytes]:
        yield b"half"
        raise ValueError("the disk broke")

    with pytest.raises(ValueError, match="disk"):
        connection.request("PUT", "/v1/sandboxes/box/files", {"path": "/f"}, body=pieces())
    with pytest.raises(HutchError) as caught:
        connection.request("GET", "/v1/sandboxes/box/files/stat", {"path": "/f"})
    assert caught.value.code == "path_not_found"


def test_paths_of_any_bytes(connection: Connection) -> None:
    path = b"/a b\xff%&=\xc3\xa9".decode("utf-8", "surrogateescape")
    connection.request("PUT", "/v1/sandboxes/box/files", {"path": path}, body=b"x").read()
    found = connection.request("GET", "/v1/sandboxes/box/files/list", {"path": "/"}).json()
    assert path in [item["path"] for item in found]
    assert connection.request("GET", "/v1/sandboxes/box/files", {"path": path}).read() == b"x"
    body = {"path": path, "recursive": False}
    connection.request("POST", "/v1/sandboxes/box/files/remove", json=body).read()


def test_nobody_listens(tmp_path: Path) -> None:
    with pytest.raises(DaemonError) as caught:
        Connection.connect(tmp_path / "none.sock")
    assert caught.value.code == "daemon_unreachable"


def test_the_server_may_go_away_while_a_message_is_awaited(served: Served) -> None:
    with Connection.connect(served.path) as connection, start(connection, "hang") as socket:
        while socket.receive(timeout=60).kind != BINARY:  # type: ignore[union-attr]
            pass
        ended = threading.Thread(target=served.stop)
        ended.start()
        assert socket.receive(timeout=60) is None
        assert socket.close_code == 1012
        ended.join(timeout=60)


def test_imports_stay_light() -> None:
    heavy = ("asyncio", "httpx", "pydantic", "fastapi", "rich", "websockets", "subprocess")
    code = (
        "import sys, hutch.sdk.wire, hutch.sdk.start\n"
        f"print([name for name in {heavy!r} if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=30
    )
    assert done.stdout.strip() == "[]"

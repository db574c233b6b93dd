"""Real clients and servers, with the gate and the pump between them."""

import asyncio
import contextlib
import http.client
import shutil
import socket
import subprocess
import threading
from collections.abc import AsyncIterator, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import websockets.asyncio.client
import websockets.asyncio.server
from websockets.exceptions import InvalidStatus

from hutch.network import carry
from hutch.network.carry import Carry
from hutch.tasks import Scope, in_thread
from tests.unit.network.talk import Talk

LARGE = bytes(range(256)) * 4096


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine may take longer than any guest should."""
    monkeypatch.setattr(carry, "LINGER_TIME", 600.0)


class Handler(BaseHTTPRequestHandler):
    """Answers with what it was sent, in each of the ways there are."""

    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        self.send_response(200)
        if self.path == "/large":
            self.send_header("Content-Length", str(len(LARGE)))
            self.end_headers()
            self.wfile.write(LARGE)
        elif self.path == "/chunks":
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            for at in range(0, len(LARGE), 5000):
                part = LARGE[at : at + 5000]
                self.wfile.write(b"%x\r\n%b\r\n" % (len(part), part))
            self.wfile.write(b"0\r\n\r\n")
        else:
            self.send_header("Connection", "close")
            self.end_headers()
            self.wfile.write(LARGE)

    def do_HEAD(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(LARGE)))
        self.end_headers()

    def do_POST(self) -> None:
        if self.headers.get("transfer-encoding") == "chunked":
            body = b""
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        else:
            body = self.rfile.read(int(self.headers["content-length"]))
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def server() -> Iterator[int]:
    """The port of an HTTP server."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.01,))
        thread.start()
        yield running.server_address[1]
        running.shutdown()
        thread.join()


@contextlib.asynccontextmanager
async def gateway(upstream: int) -> AsyncIterator[tuple[int, Talk]]:
    """Carry all that comes at a port to `upstream`. Returns the port, and a talk of all that."""
    loop, talk = asyncio.get_running_loop(), Talk()

    async def serve(listener: socket.socket, scope: Scope) -> None:
        while True:
            guest, _ = await loop.sock_accept(listener)
            far = socket.socket()
            far.setblocking(False)
            await loop.sock_connect(far, ("127.0.0.1", upstream))
            guest.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            far.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            scope.start("carry", Carry(guest, far, between=talk.another_gate(port)).run())

    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        port = listener.getsockname()[1]
        async with Scope("gateway") as scope:
            scope.start("serve", serve(listener, scope))
            yield port, talk


def ask(
    connection: http.client.HTTPConnection, method: str, path: str, body: object = None
) -> tuple[int, bytes]:
    headers = {"Host": "b.com" if path == "/denied" else "a.com"}
    connection.request(method, path, body, headers, encode_chunked=True)  # type: ignore[arg-type]
    answer = connection.getresponse()
    return answer.status, answer.read()


def ask_all(port: int) -> None:
    """Ask all that there is over one connection, the last request of which is denied."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    with contextlib.closing(connection):
        assert ask(connection, "GET", "/large") == (200, LARGE)
        assert ask(connection, "HEAD", "/large") == (200, b"")
        assert ask(connection, "GET", "/chunks") == (200, LARGE)
        assert ask(connection, "POST", "/", LARGE) == (200, LARGE)
        parts = [LARGE[at : at + 9999] for at in range(0, len(LARGE), 9999)]
        assert ask(connection, "POST", "/", iter(parts)) == (200, LARGE)
        status, why = ask(connection, "GET", "/denied")
        assert (status, b"No b.com." in why) == (403, True)
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    with contextlib.closing(connection):
        assert ask(connection, "GET", "/endless") == (200, LARGE)


async def test_python_asks_in_every_way(server: int) -> None:
    async with gateway(server) as (port, talk):
        await in_thread(ask_all, port)
    assert [request.method for request in talk.judged] == [
        "GET", "HEAD", "GET", "POST", "POST", "GET", "GET"
    ]  # fmt: skip
    assert len(talk.refused) == 1


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
async def test_curl_asks_and_is_refused(server: int, tmp_path: Path) -> None:
    def curl(port: int, *arguments: str) -> bytes:
        to = f"::127.0.0.1:{port}"
        command = ["curl", "-sS", "--max-time", "60", "--noproxy", "*", "--connect-to", to]
        return subprocess.run([*command, *arguments], check=True, stdout=subprocess.PIPE).stdout

    large = tmp_path / "large"
    large.write_bytes(LARGE)
    async with gateway(server) as (port, talk):
        a, b = f"http://a.com:{port}", f"http://b.com:{port}"
        assert await in_thread(curl, port, f"{a}/large", f"{a}/chunks") == LARGE + LARGE
        assert await in_thread(curl, port, "--http2", f"{a}/large") == LARGE
        assert await in_thread(curl, port, "--data-binary", f"@{large}", a) == LARGE
        chunked = ("-H", "Transfer-Encoding: chunked")
        assert await in_thread(curl, port, "-T", str(large), "-X", "POST", *chunked, a) == LARGE
        refused = await in_thread(curl, port, "-H", "Accept: application/json", b)
        assert b'"code": "not_allowed"' in refused
        small = tmp_path / "small"
        small.write_bytes(LARGE[:300_000])
        upload = await in_thread(curl, port, "-T", str(small), "-w", "%{http_code}", f"{b}/x")
        assert upload.endswith(b"403")
    assert len(talk.refused) == 2


async def test_a_websocket_goes_through_once_it_was_agreed_to() -> None:
    async def echo(connection: websockets.asyncio.server.ServerConnection) -> None:
        async for message in connection:
            await connection.send(message)

    async with websockets.asyncio.server.serve(echo, "127.0.0.1", 0) as server:
        (listening,) = server.sockets
        async with gateway(listening.getsockname()[1]) as (port, talk):
            at = {"host": "127.0.0.1", "port": port, "proxy": None}
            url = f"ws://a.com:{port}/chat"
            async with websockets.asyncio.client.connect(url, **at) as client:
                for message in ("hello", LARGE[:500_000]):
                    await client.send(message)
                    assert await client.recv() == message
            denied = websockets.asyncio.client.connect(f"ws://b.com:{port}/", **at)
            with pytest.raises(InvalidStatus, match="403"):
                await denied
    assert [request.upgrade for request in talk.judged] == ["websocket", "websocket"]

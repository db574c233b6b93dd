"""The relay against a scripted server: what it acknowledges, and when."""

import os
import socket
import threading
from collections.abc import Iterator

import pytest

from hutch.cli.relay import ACK_EVERY, Relay
from hutch.cli.signals import Signals
from hutch.cli.sinks import Capture, FileSink
from hutch.errors import HutchError
from hutch.sdk.websocket import BINARY, CLOSE, TEXT, frame_head
from hutch.sdk.wire import WebSocket

STARTED = {"id": "ex_1", "offsets": {"1": 0, "2": 0}, "credit": 0}


class Server:
    """The other end of a WebSocket: says what a test wants, keeps what it is told."""

    def __init__(self) -> None:
        self.mine, theirs = socket.socketpair()
        self.ws = WebSocket(theirs, b"")

    def say(self, kind: int, data: bytes) -> None:
        head = bytearray(frame_head(kind, len(data))[:-4])  # a server does not mask
        head[1] &= 0x7F
        self.mine.sendall(bytes(head) + data)

    def told(self) -> bytes:
        return self.mine.recv(1 << 20)


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    yield made
    made.mine.close()
    made.ws.close()


EXIT = b'{"exit": {"exit_code": 3}}'


def test_large_output_is_acknowledged_and_small_is_not(server: Server) -> None:
    with Signals() as signals:
        capture = Capture(10)
        relay = Relay({1: capture, 2: capture}, signals)
        server.say(BINARY, b"\x02" + bytes(100))
        server.say(TEXT, EXIT)
        assert relay.serve(server.ws, STARTED).exit_code == 3
        server.mine.setblocking(False)
        with pytest.raises(BlockingIOError):
            server.told()
        assert relay.offsets == {1: 0, 2: 100}


def test_acknowledges_what_has_left(server: Server) -> None:
    with Signals() as signals:
        capture = Capture(10)
        relay = Relay({1: capture, 2: capture}, signals)

        told = []

        def speak() -> None:
            for _ in range(4):
                server.say(BINARY, b"\x01" + bytes(ACK_EVERY // 4))
            told.append(server.told())
            server.say(TEXT, b'{"other": 1}')
            server.say(TEXT, EXIT)

        speaker = threading.Thread(target=speak)
        speaker.start()
        relay.serve(server.ws, STARTED)
        speaker.join(60)
        assert b'"ack":{"1":%d}' % ACK_EVERY in told[0]
        assert relay.rest == [{"other": 1}]


def test_a_lost_connection_keeps_what_was_received(server: Server) -> None:
    read, write = os.pipe()
    with Signals() as signals:
        sink = FileSink(write)
        relay = Relay({1: sink, 2: sink}, signals)
        server.say(BINARY, b"\x01" + bytes(100_000))  # more than the pipe takes
        server.say(CLOSE, (1012).to_bytes(2, "big"))
        with pytest.raises(HutchError) as caught:
            relay.serve(server.ws, STARTED)
        assert caught.value.details["lost"]
        assert relay.offsets[1] == 100_000
        relay.lost()
        again = Server()
        again.say(BINARY, b"\x01" + b"end")
        again.say(TEXT, EXIT)
        got = b""
        pid = os.fork()
        if pid == 0:
            relay.serve(again.ws, {"id": "ex_1", "offsets": {"1": 100_000}})
            os._exit(0)
        os.close(write)
        sink.close()
        while data := os.read(read, 65536):
            got += data
        os.waitpid(pid, 0)
        os.close(read)
        assert got == bytes(100_000) + b"end"
        again.mine.close()
        again.ws.close()


def test_errors_and_gaps(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    with Signals() as signals:
        capture = Capture(10)
        relay = Relay({1: capture, 2: capture}, signals)
        server.say(TEXT, b'{"gap": {"channel": 1, "offset": 0, "size": 7}}')
        server.say(TEXT, b'{"error": {"code": "exec_taken", "message": "somebody else"}}')
        with pytest.raises(HutchError, match="somebody else"):
            relay.serve(server.ws, STARTED)
    assert "7 bytes of stdout were lost" in capsys.readouterr().err
    assert relay.offsets[1] == 7

"""The guest protocol spoken with as little as can be: one blocking socket, one stream at a time.

The raw round trip and the raw channel that Hutch's own are set against. It trusts the guest, checks
nothing that it need not, and shares no code with `hutch.guest`.
"""

import os
import socket
import struct
import time
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import msgpack

_MAGIC = bytes.fromhex("f44855544348f5f691e2b89dc7a3d68b")
_PREAMBLE, _HEADER = struct.Struct("<16sBBH16s"), struct.Struct("<BBHII")
_REQUEST, _REPLY, _ERROR, _DATA, _END, _CREDIT, _RESULT, _EVENT = 1, 2, 3, 4, 5, 6, 7, 10
_HELLO, _VERSION = 1, 1
_WINDOW, _PART = 1 << 20, 64 << 10
_HELLO_PAUSE = 0.05
"""Seconds between two HELLOs while the guest boots: half of it is how late its answer is seen."""

_ENV = [b"PATH=/usr/bin:/bin"]


class AgentError(Exception):
    """What the agent answered instead."""


class AgentClient:
    """A connection to the agent behind a unix socket."""

    def __init__(self, path: Path, *, timeout: float, pause: float = _HELLO_PAUSE) -> None:
        """Connect, and say HELLO until the agent answers. Raises TimeoutError, OSError.

        A machine that is no longer booting answers the first one: its `pause` may be long.
        """
        self._pause = pause
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.connect(str(path))
        self._rest = bytearray()
        self._stream = 0
        self._execs = 0
        try:
            self._greet(time.monotonic() + timeout)
        except BaseException:
            self._socket.close()
            raise
        self._socket.settimeout(60.0)
        kind, _, _, payload = self._frame()
        self.hello: dict[str, Any] = msgpack.unpackb(payload)
        assert kind == _EVENT, kind

    def close(self) -> None:
        """End the connection."""
        self._socket.close()

    def _greet(self, deadline: float) -> None:
        while time.monotonic() < deadline:
            nonce = os.urandom(16)
            body = _PREAMBLE.pack(_MAGIC, _HELLO, _VERSION, 0, nonce)
            self._socket.settimeout(None)
            self._socket.sendall(body + zlib.crc32(body).to_bytes(4, "little"))
            pause = time.monotonic() + self._pause
            while (left := pause - time.monotonic()) > 0:
                self._socket.settimeout(left)
                try:
                    data = self._socket.recv(1 << 16)
                except (TimeoutError, BlockingIOError):
                    break
                if not data:
                    raise OSError("the machine has closed the agent's socket")
                self._rest += data
                # Only the answer to this HELLO: the nonce is new each time.
                at = self._rest.find(nonce)
                if at >= 20 and len(self._rest) >= at + 20:
                    del self._rest[: at + 20]
                    return
        raise TimeoutError("the agent has not answered")

    # ---- frames

    def _frame(self) -> tuple[int, int, int, bytes]:
        self._fill(_HEADER.size)
        kind, channel, _, stream, size = _HEADER.unpack_from(self._rest)
        self._fill(_HEADER.size + size)
        payload = bytes(self._rest[_HEADER.size : _HEADER.size + size])
        del self._rest[: _HEADER.size + size]
        return kind, channel, stream, payload

    def _fill(self, size: int) -> None:
        while len(self._rest) < size:
            data = self._socket.recv(256 << 10)
            if not data:
                raise OSError("the machine has closed the agent's socket")
            self._rest += data

    def _own(self) -> tuple[int, int, bytes]:
        """Return the next frame of the current stream."""
        while True:
            kind, channel, stream, payload = self._frame()
            if stream != self._stream:
                continue
            if kind == _ERROR:
                raise AgentError(msgpack.unpackb(payload))
            return kind, channel, payload

    def _send(self, kind: int, payload: bytes | memoryview = b"", channel: int = 0) -> None:
        header = _HEADER.pack(kind, channel, 0, self._stream, len(payload))
        # All of it, but uncopied while the socket takes it whole.
        sent = self._socket.sendmsg([header, payload])
        if sent < len(header) + len(payload):
            self._socket.sendall((header + bytes(payload))[sent:])

    def _open(self, op: str, request: dict[str, Any]) -> dict[str, Any]:
        self._stream += 1
        self._send(_REQUEST, msgpack.packb({"op": op, **request}))
        kind, _, payload = self._own()
        assert kind == _REPLY, kind
        reply: dict[str, Any] = msgpack.unpackb(payload)
        return reply

    # ---- operations

    def call(self, op: str, **request: Any) -> dict[str, Any]:
        """Run a unary operation. Raises AgentError."""
        return self._open(op, request)

    def run(self, *argv: str) -> tuple[int, bytes]:
        """Run a program and return its exit code and stdout; its session stays: `release`."""
        self._execs += 1
        command = [word.encode() for word in argv]
        request = {"id": f"raw-{self._execs}", "argv": command, "env": _ENV, "attach": True}
        self._open("exec.start", request)
        out = bytearray()
        while True:
            kind, channel, payload = self._own()
            if kind == _RESULT:
                return msgpack.unpackb(payload)["code"], bytes(out)
            if kind == _DATA:
                if channel == 1:
                    out += payload
                self._send(_CREDIT, len(payload).to_bytes(4, "little"), channel)

    def release(self) -> None:
        """Forget the session of the last `run`."""
        self.call("exec.release", id=f"raw-{self._execs}")

    def write(self, path: str, blocks: Iterable[bytes]) -> None:
        """Write a file; no block may be larger than 64 KiB, nor contain the protocol's magic."""
        self._open("fs.write", {"path": path.encode()})
        credit = _WINDOW
        for block in blocks:
            while credit < len(block):
                kind, _, payload = self._own()
                assert kind == _CREDIT, kind
                credit += int.from_bytes(payload, "little")
            credit -= len(block)
            self._send(_DATA, block)
        self._send(_END)
        while self._own()[0] != _RESULT:
            pass

    def read(self, path: str) -> Iterator[bytes]:
        """Yield a file's bytes."""
        self._open("fs.read", {"path": path.encode()})
        consumed = 0
        while True:
            kind, channel, payload = self._own()
            if kind == _RESULT:
                return
            if kind == _DATA:
                yield payload
                consumed += len(payload)
                if consumed >= _WINDOW // 4:
                    self._send(_CREDIT, consumed.to_bytes(4, "little"), channel)
                    consumed = 0

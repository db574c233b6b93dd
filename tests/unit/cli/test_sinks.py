"""Sinks: never blocking, exact, and honest about what they have written."""

import fcntl
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from hutch.cli.sinks import Capture, FileSink, OutputClosedError
from tests.unit.cli.local_host import pattern


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    read, write = os.pipe()
    yield read, write
    for fd in (read, write):
        try:
            os.close(fd)
        except OSError:
            continue  # closed by the test


@pytest.mark.parametrize("reopen", [True, False])
def test_a_full_pipe_does_not_block(
    pipe: tuple[int, int], reopen: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, write = pipe
    if not reopen:  # as with a pipe of another user

        def refuse(*args: object) -> int:
            raise PermissionError

        with monkeypatch.context() as patch:
            patch.setattr(os, "open", refuse)
            sink = FileSink(write)
    else:
        sink = FileSink(write)
    data = pattern(300_000)
    sink.put(1, data)
    sink.flush()
    assert sink.pending
    got = bytearray()
    while len(got) < len(data):
        got += os.read(read, 65536)
        sink.flush()
    assert got == data
    assert not sink.pending
    assert sink.taken() == {1: len(data)}
    assert sink.taken() == {}
    assert not fcntl.fcntl(write, fcntl.F_GETFL) & os.O_NONBLOCK  # others share the open file
    sink.close()


def test_a_closed_pipe(pipe: tuple[int, int]) -> None:
    read, write = pipe
    sink = FileSink(write)
    os.close(read)
    sink.put(1, b"x")
    with pytest.raises(OutputClosedError):
        sink.flush()
    assert not sink.pending
    sink.close()


def test_a_file_keeps_its_offset(tmp_path: Path) -> None:
    fd = os.open(tmp_path / "f", os.O_WRONLY | os.O_CREAT)
    os.write(fd, b"before ")
    sink = FileSink(fd)
    sink.put(1, b"out ")
    sink.put(2, b"err")
    sink.flush()
    os.close(fd)
    assert (tmp_path / "f").read_bytes() == b"before out err"
    assert sink.taken() == {1: 4, 2: 3}


def test_a_socket() -> None:
    left, right = socket.socketpair()
    with left, right:
        sink = FileSink(left.fileno())
        sink.put(1, bytes(1 << 20))
        got = 0
        while got < 1 << 20:
            sink.flush()
            got += len(right.recv(65536))


def test_capture_counts_what_it_drops() -> None:
    capture = Capture(4)
    capture.put(1, b"abc")
    capture.put(1, b"def")
    capture.put(2, memoryview(b"xy"))
    assert (capture.data[1], capture.data[2]) == (b"abcd", b"xy")
    assert capture.dropped == {1: 2, 2: 0}
    assert capture.taken() == {1: 6, 2: 2}

"""A liar between the daemon and a real guest: it answers chosen requests in the agent's stead.

It takes the place of the machine's agent socket while no daemon is there, and hands everything
else through, both ways. As QEMU's own, it serves one connection at a time.
"""

import contextlib
import select
import socket
import threading
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Self

from hutch.guest.frames import (
    WINDOW,
    Direction,
    FrameDecoder,
    FrameType,
    PreambleKind,
    PreambleScanner,
    encode_data,
    encode_frame,
)
from hutch.guest.messages import encode_map

Lie = Callable[[int], Iterable[bytes]]
"""The bytes that answer a request of the stream of that number; they may be endless."""

_SIZE = 64 << 10


def message(kind: FrameType, stream: int, **fields: object) -> bytes:
    """Return a frame with a map."""
    return encode_frame(kind, stream, encode_map(fields))


def transfer(stream: int, parts: Iterable[bytes], **result: object) -> Iterable[bytes]:
    """Yield a whole download that holds `parts`."""
    size = 0
    yield message(FrameType.REPLY, stream)
    for part in parts:
        size += len(part)
        yield b"".join(map(bytes, encode_data(stream, 1, part)))
    yield encode_frame(FrameType.END, stream, channel=1)
    yield message(FrameType.RESULT, stream, **{"bytes": size, **result})


class Liar:
    """Serves the agent socket of one running machine, from `with` to its end."""

    def __init__(self, path: Path, lies: Mapping[str, Lie], *, patient: bool = False) -> None:
        """`lies` maps operations to answers; a `patient` liar sends data only as it gets credit for
        it. No daemon may be connected.
        """
        self._path = path
        self._patient = patient
        self._real = path.with_name("real.sock")
        self._lies = lies
        self._server = socket.socket(socket.AF_UNIX)
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._serve)

    def __enter__(self) -> Self:
        self._path.rename(self._real)
        self._server.bind(str(self._path))
        self._server.listen(4)
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._end.set()
        with contextlib.suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._server.close()
        self._path.unlink(missing_ok=True)
        with contextlib.suppress(FileNotFoundError):
            self._real.rename(self._path)

    def _serve(self) -> None:
        while not self._end.is_set():
            with contextlib.suppress(OSError):
                host, _ = self._server.accept()
                with host, socket.socket(socket.AF_UNIX) as guest:
                    guest.connect(str(self._real))
                    _Conversation(host, guest, self._lies, self._end, self._patient).run()


class _Conversation:
    """One connection of a daemon."""

    def __init__(
        self,
        host: socket.socket,
        guest: socket.socket,
        lies: Mapping[str, Lie],
        end: threading.Event,
        patient: bool,
    ) -> None:
        self._host = host
        self._guest = guest
        self._lies = lies
        self._end = end
        self._window = WINDOW if patient else None
        self._credited = threading.Condition()
        self._scanner = PreambleScanner(PreambleKind.WELCOME)
        self._greeted = False
        self._decoder = FrameDecoder(Direction.TO_GUEST)
        self._sending = threading.Lock()
        self._liars: list[threading.Thread] = []
        self._told: set[int] = set()
        self._over = threading.Event()

    def run(self) -> None:
        """Hand bytes over until either side hangs up."""
        try:
            while not self._end.is_set():
                ready, _, _ = select.select([self._host, self._guest], [], [], 0.1)
                for source in ready:
                    data = source.recv(_SIZE)
                    if not data:
                        return
                    if source is self._guest:
                        self._from_guest(data)
                    else:
                        self._from_host(data)
        except OSError:
            return
        finally:
            self._over.set()
            with self._credited:
                self._credited.notify_all()
            with contextlib.suppress(OSError):
                self._host.shutdown(socket.SHUT_RDWR)
            for liar in self._liars:
                liar.join()

    def _from_guest(self, data: bytes) -> None:
        if not self._greeted:
            self._scanner.feed(data)
            self._greeted = self._scanner.next() is not None
        with self._sending:
            self._host.sendall(data)

    def _from_host(self, data: bytes) -> None:
        if not self._greeted:
            self._guest.sendall(data)
            return
        for frame in self._decoder.feed(data):
            lie = None
            if frame.type is FrameType.REQUEST:
                lie = self._lies.get(str(frame.message().get("op")))
            elif frame.type is FrameType.CREDIT and frame.stream in self._told:
                self._credit(frame.credit())
                continue
            if lie is not None:
                self._told.add(frame.stream)
                liar = threading.Thread(target=self._tell, args=(lie(frame.stream),))
                self._liars.append(liar)
                liar.start()
            else:
                head = encode_frame(frame.type, frame.stream, frame.payload, frame.channel)
                self._guest.sendall(head)

    def _tell(self, lie: Iterable[bytes]) -> None:
        with contextlib.suppress(OSError):  # the daemon has had enough
            for part in lie:
                self._await_credit(len(part))
                if self._over.is_set():
                    return
                with self._sending:
                    self._host.sendall(part)

    def _credit(self, size: int) -> None:
        with self._credited:
            if self._window is not None:
                self._window += size
                self._credited.notify_all()

    def _await_credit(self, size: int) -> None:
        """Take `size` out of the window; headers count as well, which errs on the safe side."""
        with self._credited:
            while self._window is not None and self._window < size and not self._over.is_set():
                self._credited.wait()
            if self._window is not None:
                self._window -= size

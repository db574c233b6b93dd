"""The blocking transport of the generated client: the counterpart of aio/transport.py.

A pool of wire.py's connections to the daemon, which is found, or started, at the first request, and
again when it has gone away since. Safe for several threads.
"""

import os
import threading
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from hutch.errors import HutchError
from hutch.sdk.http1 import Query
from hutch.sdk.start import ensure_daemon
from hutch.sdk.wire import READ_SIZE, Connection, Response, WebSocket
from hutch.settings import Settings, load_settings

__all__ = [
    "Lock",
    "Response",
    "Transport",
    "WebSocket",
    "each",
    "file_pieces",
    "write_file",
]

IDLE_LIMIT = 8
"""Idle connections that are kept."""

Lock = threading.Lock


class Transport:
    """A pool of connections to one home's daemon."""

    def __init__(self, settings: Settings | None = None, socket: str | None = None) -> None:
        """Use the daemon of `settings` (default: those in force), or the one at `socket`."""
        self._settings = settings
        self._given = socket
        self._path = socket
        self._idle: list[Connection] = []

    def request(
        self,
        method: str,
        path: str,
        query: Query | None = None,
        *,
        json: Any = None,
        body: Iterator[bytes] | bytes | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Response:
        """Send a request and return its answer once its head is here.

        `path` is percent-encoded, `headers` are sent as they are. Raises the error that the daemon
        answers, and DaemonError (daemon_unreachable) when the connection fails.
        """
        connection = self._take()
        connection.on_idle = self._give_back
        return connection.request(method, path, query, json=json, body=body, headers=headers)

    def websocket(self, path: str, query: Query | None = None) -> WebSocket:
        """Open a WebSocket. Raises the error that the daemon answers."""
        return self._take().websocket(path, query)

    def close(self) -> None:
        """End all idle connections."""
        while self._idle:
            self._idle.pop().close()

    def _give_back(self, connection: Connection) -> None:
        if len(self._idle) < IDLE_LIMIT:
            self._idle.append(connection)
        else:
            connection.close()

    def _take(self) -> Connection:
        while True:
            try:
                connection = self._idle.pop()
            except IndexError:
                break
            if not connection.stale:
                return connection
            connection.close()
        if self._path is not None:
            try:
                return Connection.connect(self._path)
            except HutchError as failure:
                if failure.code != "daemon_unreachable" or self._given is not None:
                    raise
        if self._settings is None:
            self._settings = load_settings()
        self._path = ensure_daemon(self._settings)
        return Connection.connect(self._path)


def file_pieces(path: str | os.PathLike[str]) -> Iterator[bytes]:
    """Yield a local file's bytes."""
    with Path(path).open("rb") as file:
        while data := file.read(READ_SIZE):
            yield data


def write_file(
    path: str | os.PathLike[str], pieces: Iterable[bytes], *, name: str, mode: int = 0o666
) -> int:
    """Write a local file (in a directory: `name` in it); returns its bytes.

    It appears whole or not at all. `mode` are its permissions, less what the umask takes.
    """
    target = Path(path) / name if os.path.isdir(path) else Path(path)
    part = target.with_name(f".{target.name}.{os.urandom(8).hex()}.part")
    size = 0
    try:
        with open(part, "xb", opener=partial(os.open, mode=mode)) as file:
            for piece in pieces:
                file.write(piece)
                size += len(piece)
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)
    return size


def each(items: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the pieces of an iterable."""
    yield from items

"""The server: uvicorn on a listening unix socket of our own, without its signals and its ticks.

The server's own CPU time, measured with operations in memory: websockets-sansio 1.1 s for 1 GiB of
exec output and 1.0-1.3 ms for an exec; websockets 0.9-1.2 s and 1.6-2.1 ms; wsproto 1.2 s and
1.1 ms, but the slowest with stdin. Compression and pings are off: a local client that stalls is
not dead.
"""

import asyncio
import contextlib
import logging
import os
import socket
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

log = logging.getLogger(__name__)

KEEP_ALIVE = 3600
"""Seconds that an idle client's connection is kept."""
MESSAGE_LIMIT = 4 << 20
"""Bytes of a client's WebSocket message."""
STOP_GRACE = 2
"""Seconds that requests under way have to end when the server stops."""
_CREDENTIALS = struct.Struct("=iII")


def listen(path: Path) -> socket.socket:
    """Return a socket listening at `path`, open to nobody else from its first moment.

    A stale file there is removed: the caller holds the lock that says it is stale.
    """
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    mask = os.umask(0o177)
    try:
        listener.bind(os.fspath(path))
        listener.listen(256)
    except OSError:
        listener.close()
        raise
    finally:
        os.umask(mask)
    listener.setblocking(False)
    return listener


class _Protocol(HttpToolsProtocol):
    """HTTP from a peer whose user has been checked: the file's mode is not the only guard."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        peer = transport.get_extra_info("socket")
        raw = peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        _, user, _ = _CREDENTIALS.unpack(raw)
        super().connection_made(transport)
        if user not in (0, os.geteuid()):
            log.warning("refused a connection of the user %d", user)
            transport.abort()


class ApiServer(uvicorn.Server):
    """Serves an application until `stop`, or until `stopping` is set."""

    def __init__(self, app: ASGIApp, stopping: asyncio.Event | None = None) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                http=_Protocol,
                ws=WebSocketsSansIOProtocol,
                lifespan="off",
                log_config=None,
                access_log=False,
                ws_per_message_deflate=False,
                ws_ping_interval=None,
                ws_max_size=MESSAGE_LIMIT,
                proxy_headers=False,
                server_header=False,
                date_header=False,
                timeout_keep_alive=KEEP_ALIVE,
                timeout_graceful_shutdown=STOP_GRACE,
            )
        )
        self._stopping = stopping or asyncio.Event()
        self._on_ready: Callable[[], None] = lambda: None

    @property
    def clients(self) -> int:
        """How many connections are open."""
        return len(self.server_state.connections)

    def stop(self) -> None:
        """End: accept nobody, give requests their grace, then close."""
        self._stopping.set()

    async def run_on(self, listener: socket.socket, on_ready: Callable[[], None]) -> None:
        """Serve on a listening socket; `on_ready` is called once requests are taken."""
        self._on_ready = on_ready
        await self.serve(sockets=[listener])

    async def main_loop(self) -> None:
        """Wait for the end, without uvicorn's ten wake-ups in a second."""
        self._on_ready()
        await self._stopping.wait()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals to the daemon."""
        yield

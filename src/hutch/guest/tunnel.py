"""TCP connections to ports of the guest, over the agent's channel."""

from typing import Final

from hutch.guest.link import Link
from hutch.guest.streams import Chunk, End, Gap, Result, Stream

_CONNECT_TIMEOUT: Final = 15.0


class Tunnel:
    """`base.TunnelStream` over one stream. One task reads, one writes."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._unacked = 0
        self._ended = False
        self._finished = False

    async def read(self) -> bytes:
        """Return the next bytes (acknowledging the previous), or b"" at the end."""
        if self._unacked:
            self._stream.ack(1, self._unacked)
            self._unacked = 0
        while not self._ended:
            match await self._stream.next():
                case Chunk(_, data):
                    self._unacked = len(data)
                    return data
                case End():
                    self._ended = True
                case Result():
                    self._ended = self._finished = True
                case Gap():
                    pass
        return b""

    async def write(self, data: bytes) -> None:
        """Send bytes; waits while the window is full."""
        await self._stream.write(data)

    async def write_eof(self) -> None:
        """Half-close: the peer reads the end."""
        await self._stream.end()

    async def finished(self) -> None:
        """Return when the peer has been given all, and both halves have ended.

        To `close` before would take back what is still on its way. For after the end of `read`.
        """
        while not self._finished:
            self._finished = isinstance(await self._stream.next(), Result)

    async def close(self) -> None:
        """Reset and forget the connection."""
        self._stream.close()


class Tunnels:
    """The tunnels' part of `base.Guest`."""

    _link: Link

    async def tunnel(self, port: int, host: str = "127.0.0.1") -> Tunnel:
        """Connect to a port of the guest. Raises guest_refused when nothing listens there."""
        stream = await self._link.open(
            "tunnel",
            f"port {port} of {host}",
            {"host": host, "port": port},
            seconds=_CONNECT_TIMEOUT,
        )
        try:
            await stream.reply(_CONNECT_TIMEOUT)
        except BaseException:
            stream.close()
            raise
        return Tunnel(stream)

"""The pump between two connected sockets: a guest's connection and the one made for it.

Owns both sockets from the moment it is made, their buffers and what was carried. Knows nothing of
policies: what looks at the bytes stands `Between`. A FIN is handed on as FIN, a reset as reset.
"""

import socket
from typing import Protocol

BUFFER = 64 * 1024
"""Bytes that at most wait for one side of a connection, besides those in the kernel."""


class Bucket:
    """A token bucket that any number of carries may share: the rate of one sandbox, one way."""

    def __init__(self, rate: int, burst: int | None = None) -> None:
        """`rate` is in bytes a second; `burst` is how many may go at once (default: 1/8 s)."""
        raise NotImplementedError


class Between(Protocol):
    """What stands between the two sides, sees all bytes, and says which go where.

    Nothing here blocks or raises: what is wrong is told by `broken`.
    """

    def from_guest(self, data: bytes) -> None:
        """Take bytes of the guest; none at all: it sends no more."""

    def from_upstream(self, data: bytes) -> None:
        """Take bytes of the upstream; none at all: it sends no more."""

    def for_guest(self) -> bytes:
        """Hand over what is to go to the guest now."""

    def for_upstream(self) -> bytes:
        """Hand over what is to go upstream now."""

    @property
    def hears_guest(self) -> bool:
        """Whether bytes of the guest are wanted; until then they wait in the kernel."""

    @property
    def hears_upstream(self) -> bool:
        """Whether bytes of the upstream are wanted."""

    @property
    def fin_guest(self) -> bool:
        """Whether nothing more goes to the guest once it has what there is."""

    @property
    def fin_upstream(self) -> bool:
        """Whether nothing more goes upstream once it has what there is."""

    @property
    def over(self) -> bool:
        """Whether all is said: the guest gets what there is, then both connections close."""

    @property
    def broken(self) -> bool:
        """Whether both connections are to be reset."""


class Carry:
    """Carries bytes between two connected, non-blocking sockets until both sides have ended.

    `sent` and `received` are the guest's payload bytes so far, readable while it runs.
    """

    sent: int
    received: int

    def __init__(
        self,
        guest: socket.socket,
        upstream: socket.socket | None,
        *,
        first: bytes = b"",
        between: Between | None = None,
        up: Bucket | None = None,
        down: Bucket | None = None,
        buffer: int = BUFFER,
    ) -> None:
        """Take both sockets over: they are closed when `run` returns, or by `abort`.

        `first` is what was read of the guest already and goes upstream, or through `between`,
        before all else. There need be no `upstream` if `between` answers by itself (a refusal).
        `up` and `down` limit what the guest sends and receives.
        """
        raise NotImplementedError

    async def run(self) -> None:
        """Carry until both sides have ended, or one was reset, or `abort` is called.

        Raises nothing but its cancellation, which resets both sides. To be called once.
        """
        raise NotImplementedError

    def abort(self) -> None:
        """Reset both sides at once (RST) and close them; `run` then returns. Again: nothing."""
        raise NotImplementedError

    @property
    def half_closed(self) -> bool:
        """Whether one side sends no more while the other one may: what a limit of time is for."""
        raise NotImplementedError

"""The gate for plain HTTP: each request of a connection is judged, then written anew.

Sans-I/O: bytes in, bytes out, for `hutch.network.carry` to move. What a request says about where it
goes is read by one strict parser, and nothing goes upstream but what that parser's result is
written as; so no server can understand it otherwise. Knows no policy: that is the judge's.
"""

from collections.abc import Callable
from dataclasses import dataclass

from hutch.networking import Decision


@dataclass(frozen=True, slots=True)
class Request:
    """A request to judge. `host` is what Host said, without the port, as it was written;
    `target` is the path with its query, or `*`.
    """

    method: str
    target: str
    host: str
    upgrade: str | None = None
    json: bool = False


@dataclass(frozen=True, slots=True)
class Refusal:
    """What was answered instead of being forwarded. `request` is None if there was no sound one."""

    status: int
    decision: Decision
    request: Request | None = None


class Gate:
    """Stands between a guest and a server of HTTP/1 (a `hutch.network.carry.Between`).

    `judge` is asked for each request before a byte of it goes upstream; that it raises is a denial.
    `refused` is told of each refusal, the judge's and the gate's own (a request that cannot be
    understood in just one way, an answer that is no HTTP). The connection ends with a refusal.
    """

    def __init__(
        self,
        port: int,
        judge: Callable[[Request], Decision],
        refused: Callable[[Refusal], None] = lambda refusal: None,
    ) -> None:
        """`port` is the one the guest connected to: Host may name no other."""
        raise NotImplementedError

    def from_guest(self, data: bytes) -> None:
        """Take bytes of the guest; none at all: it sends no more."""
        raise NotImplementedError

    def from_upstream(self, data: bytes) -> None:
        """Take bytes of the upstream; none at all: it sends no more."""
        raise NotImplementedError

    def for_guest(self) -> bytes:
        """Hand over what is to go to the guest now."""
        raise NotImplementedError

    def for_upstream(self) -> bytes:
        """Hand over what is to go upstream now."""
        raise NotImplementedError

    @property
    def waits_for_request(self) -> bool:
        """Whether a request has begun and its head is not whole: what a limit of time is for."""
        raise NotImplementedError

    @property
    def hears_guest(self) -> bool:
        """Whether bytes of the guest are wanted; until then they wait in the kernel."""
        raise NotImplementedError

    @property
    def hears_upstream(self) -> bool:
        """Whether bytes of the upstream are wanted."""
        raise NotImplementedError

    @property
    def fin_guest(self) -> bool:
        """Whether nothing more goes to the guest once it has what there is."""
        raise NotImplementedError

    @property
    def fin_upstream(self) -> bool:
        """Whether nothing more goes upstream once it has what there is."""
        raise NotImplementedError

    @property
    def over(self) -> bool:
        """Whether all is said: the guest gets what there is, then both connections close."""
        raise NotImplementedError

    @property
    def broken(self) -> bool:
        """Whether both connections are to be reset."""
        raise NotImplementedError

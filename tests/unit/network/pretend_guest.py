"""A guest without a VM: a namespace with a card like a guest's, joined to the TAP of a sandbox.

Programs and sockets in it are those of any Linux. Needs root.
"""

import contextlib
import os
import select
import socket
import threading
from types import TracebackType
from typing import Self

from hutch.network import tap
from hutch.networking import GATEWAY_ADDRESS, GUEST_ADDRESS, GUEST_MAC
from tests.harness.namespaces import Namespace

TIME = 60.0


class PretendGuest:
    """A guest at the other end of `tap_fd`, which becomes its own."""

    def __init__(self, tap_fd: int) -> None:
        self.namespace = Namespace()
        inside = self.namespace.call(lambda: tap.make("eth0"))
        run = self.namespace.run
        run("ip", "link", "set", "eth0", "address", GUEST_MAC)
        run("sysctl", "-qw", "net.ipv6.conf.all.disable_ipv6=1")
        run("ip", "link", "set", "eth0", "up")
        run("ip", "address", "add", f"{GUEST_ADDRESS}/32", "dev", "eth0")
        run("ip", "route", "add", GATEWAY_ADDRESS, "dev", "eth0")
        run("ip", "route", "add", "default", "via", GATEWAY_ADDRESS)
        self._stop, self._stopped = os.pipe()
        self._thread = threading.Thread(target=self._join, args=(tap_fd, inside), daemon=True)
        self._thread.start()

    def _join(self, outside: int, inside: int) -> None:
        """Carry frames both ways, as a VM's card does."""
        poll = select.poll()
        for fd in (outside, inside, self._stop):
            poll.register(fd, select.POLLIN)
        other = {outside: inside, inside: outside}
        while True:
            for fd, _ in poll.poll():
                if fd == self._stop:
                    os.close(outside)
                    os.close(inside)
                    return
                with contextlib.suppress(OSError):
                    for _ in range(64):
                        os.write(other[fd], os.read(fd, 1 << 17))

    def connect(self, address: str, port: int) -> socket.socket:
        """Return a connection that was made inside. Raises OSError."""

        def call() -> socket.socket:
            return socket.create_connection((address, port), TIME)

        return self.namespace.call(call)

    def ask(self, query: bytes, address: str = GATEWAY_ADDRESS, port: int = 53) -> bytes:
        """Return what a datagram is answered with."""
        made = self.namespace.call(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        with made:
            made.settimeout(TIME)
            made.connect((address, port))
            made.send(query)
            return made.recv(4096)

    def look_up(self, name: str) -> str | None:
        """Return the first address that a name is answered with."""
        wire = b"".join(bytes([len(part)]) + part.encode() for part in name.split("."))
        head = b"\0\7\1\0\0\1\0\0\0\0\0\0"
        reply = self.ask(head + wire + b"\0\0\1\0\1")
        assert reply[:2] == head[:2]
        if reply[3] & 15 or not int.from_bytes(reply[6:8]):
            return None
        at = len(head) + len(wire) + 5
        assert reply[at + 2 : at + 6] == b"\0\1\0\1"  # after a pointer to the name: type A
        return socket.inet_ntoa(reply[at + 12 : at + 16])

    def close(self) -> None:
        """End it; its TAP is gone then."""
        os.close(self._stopped)
        self._thread.join()
        os.close(self._stop)
        self.namespace.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

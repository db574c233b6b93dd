"""Published ports in memory: numbers are given out from 20000 on, and nothing listens."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from hutch.errors import error
from hutch.networking import PublishedPort

if TYPE_CHECKING:
    from tests.unit.api.fake_operations import FakeSandboxes

TAKEN = 9999


class FakePorts:
    """Ports, on the rows of the sandboxes."""

    def __init__(self, sandboxes: "FakeSandboxes") -> None:
        self._sandboxes = sandboxes
        self._next = 20_000

    def number(self, ports: Sequence[PublishedPort]) -> list[PublishedPort]:
        given = []
        for port in ports:
            if port.host_port == TAKEN:
                raise error("port_taken", f"port {TAKEN} is taken", hint="choose another")
            if port.host_port == 0:
                port, self._next = replace(port, host_port=self._next), self._next + 1
            given.append(port)
        return given

    async def list(self, ref: str) -> Sequence[PublishedPort]:
        return self._sandboxes.find(ref).ports

    async def publish(self, ref: str, ports: Sequence[PublishedPort]) -> Sequence[PublishedPort]:
        info, added = self._sandboxes.find(ref), self.number(ports)
        await self._sandboxes.put(replace(info, ports=[*info.ports, *added]))
        return added

    async def unpublish(
        self, ref: str, host_port: int, address: str | None = None
    ) -> Sequence[PublishedPort]:
        info = self._sandboxes.find(ref)
        gone = [
            port
            for port in info.ports
            if port.host_port == host_port and address in (None, port.address)
        ]
        if not gone:
            raise error("port_not_found", f"{info.name} does not publish {host_port}")
        await self._sandboxes.put(
            replace(info, ports=[port for port in info.ports if port not in gone])
        )
        return gone

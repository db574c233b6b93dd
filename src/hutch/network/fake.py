"""A network in memory, for tests of what is above it: who is attached, with which policy, and how
long. It fails where it is told to, and carries nothing.
"""

import asyncio
import os
from collections import Counter
from collections.abc import AsyncIterator, Collection, Sequence

from hutch.errors import HutchError, error
from hutch.network.base import Ability, Attachment
from hutch.networking import Connection, NetworkInfo, NetworkPolicy, NetworkRecord
from hutch.tasks import give_way


class FakeNetwork:
    """Implements `network.base.Network`; it outlives the service, as its processes do.

    `failing` names calls that raise network_failed as often as it counts; `told` is what was asked,
    in order.
    """

    def __init__(self, *, taps: bool = True) -> None:
        self.ability = Ability(taps, held=taps, why="" if taps else "the test says so")
        self.attached: dict[str, Attachment] = {}
        self.policies: dict[str, NetworkPolicy | None] = {}
        self.told: list[tuple[str, str]] = []
        self.failing: Counter[str] = Counter()
        self.reserved: frozenset[int] = frozenset()
        self.opened = 0
        self.stopped = False
        self.open_connections: dict[str, list[Connection]] = {}
        self._records: asyncio.Queue[NetworkRecord] = asyncio.Queue()

    async def open(self) -> None:
        """Count how often it is used."""
        self.opened += 1
        self.stopped = False

    async def close(self) -> None:
        """Let go; what is attached stays."""
        self.opened -= 1

    async def stop(self) -> None:
        """End it all."""
        self.opened -= 1
        self.stopped = True
        self.attached.clear()
        self.policies.clear()

    async def attach(self, attachment: Attachment) -> int:
        """Attach; returns a descriptor that is good for nothing."""
        await self._asked("attach", attachment.sandbox_id)
        self._put(attachment)
        return os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)

    async def adopt(self, attachments: Sequence[Attachment]) -> None:
        """Keep those, and no others."""
        await self._asked("adopt", "")
        self.attached.clear()
        self.policies.clear()
        for attachment in attachments:
            self._put(attachment)

    async def update(self, sandbox_id: str, policy: NetworkPolicy | None) -> int:
        """Put another policy in force; all connections end."""
        await self._asked("close" if policy is None else "update", sandbox_id)
        if sandbox_id not in self.attached:
            raise error("network_failed", f"{sandbox_id} is not attached")
        self.policies[sandbox_id] = policy
        return len(self.open_connections.pop(sandbox_id, ()))

    async def reserve(self, ports: Collection[int]) -> None:
        """Remember which ports no sandbox reaches."""
        self.reserved = frozenset(ports)
        await self._asked("reserve", "")

    async def detach(self, sandbox_id: str) -> None:
        """Detach, if it is attached."""
        await self._asked("detach", sandbox_id)
        self.attached.pop(sandbox_id, None)
        self.policies.pop(sandbox_id, None)

    async def info(self, sandbox_id: str) -> NetworkInfo | None:
        """Return what is in force."""
        attachment, policy = self.attached.get(sandbox_id), self.policies.get(sandbox_id)
        if attachment is None:
            return None
        count = len(self.open_connections.get(sandbox_id, ()))
        policy = policy or NetworkPolicy()
        return NetworkInfo(sandbox_id, attachment.name, True, policy, connections=count)

    async def connections(self, sandbox_id: str) -> Sequence[Connection]:
        """Return what a test has put there."""
        return list(self.open_connections.get(sandbox_id, ()))

    async def records(self) -> AsyncIterator[NetworkRecord]:
        """Yield what a test says was decided."""
        while True:
            yield await self._records.get()

    def decide(self, record: NetworkRecord) -> None:
        """Have something decided."""
        self._records.put_nowait(record)

    def _put(self, attachment: Attachment) -> None:
        self.attached[attachment.sandbox_id] = attachment
        self.policies[attachment.sandbox_id] = attachment.policy

    async def _asked(self, what: str, sandbox_id: str) -> None:
        self.told.append((what, sandbox_id))
        await give_way()  # as a message to another process would
        if self.failing[what] > 0:
            self.failing[what] -= 1
            raise self._failure(what)

    def _failure(self, what: str) -> HutchError:
        return error("network_failed", f"the test lets {what} fail")

"""Networks in memory: policies on the rows of the sandboxes, and a log of two records."""

from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from hutch.errors import error
from hutch.networking import (
    Connection,
    NetworkChange,
    NetworkChanged,
    NetworkInfo,
    NetworkLayer,
    NetworkRecord,
    Reason,
)

if TYPE_CHECKING:
    from tests.unit.api.fake_operations import FakeSandboxes

NOW = "2026-01-01T00:00:00.000Z"


class FakeNetworks:
    """Networks that carry nothing; a rule `bad` is refused."""

    def __init__(self, sandboxes: "FakeSandboxes") -> None:
        self._sandboxes = sandboxes

    async def show(self, ref: str) -> NetworkInfo:
        info = self._sandboxes.find(ref)
        return NetworkInfo(
            info.id,
            info.name,
            attached=True,
            policy=info.network,
            connections=1,
            denied_total=2,
            sent=2048,
            warnings=["a warning"] if info.network.allow_lan else [],
        )

    async def update(self, ref: str, change: NetworkChange) -> NetworkChanged:
        info = self._sandboxes.find(ref)
        if "bad" in change.allow:
            raise error("bad_policy", "'bad' is no rule")
        policy = info.network if change.policy is None else change.policy
        policy = replace(
            policy,
            mode=change.mode or policy.mode,
            allow=[each for each in policy.allow if each not in change.remove] + change.allow,
            deny=policy.deny + change.deny,
            allow_host=[each for each in policy.allow_host if each not in change.close_host]
            + change.allow_host,
            allow_lan=policy.allow_lan if change.allow_lan is None else change.allow_lan,
        )
        self._sandboxes.rows[info.id] = replace(info, network=policy)
        return NetworkChanged(await self.show(ref), ended=len(change.deny))

    async def connections(self, ref: str) -> Sequence[Connection]:
        self._sandboxes.find(ref)
        return [Connection(7, "open", "a.example.com", "5.9.0.1", 443, NOW, 1024, 10, "*.com")]

    def log(
        self, ref: str, *, since: int | None = None, tail: int | None = None, follow: bool = False
    ) -> AsyncIterator[NetworkRecord]:
        return self._records(self._sandboxes.find(ref).id, since or 0, tail)

    async def _records(
        self, sandbox_id: str, since: int, tail: int | None
    ) -> AsyncIterator[NetworkRecord]:
        records = [
            NetworkRecord(
                1,
                NOW,
                sandbox_id,
                NetworkLayer.TLS,
                True,
                Reason.ALLOWED,
                name="a.example.com",
                address="5.9.0.1",
                port=443,
                rule="*.com",
            ),
            NetworkRecord(
                2,
                NOW,
                sandbox_id,
                NetworkLayer.DNS,
                False,
                Reason.NOT_ALLOWED,
                name="b\x1b[31m.example.org",
                text="no rule allows it",
                detail="A",
            ),
        ]
        kept = records if tail is None else records[len(records) - tail :]
        for record in kept:
            if record.number >= since:
                yield record

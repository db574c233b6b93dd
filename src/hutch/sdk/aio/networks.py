"""The network of one sandbox: what it may reach, changed while it runs, and what it tried."""

from collections.abc import AsyncIterator, Sequence

from hutch.models import from_json, to_json
from hutch.networking import (
    Connection,
    NetworkChange,
    NetworkChanged,
    NetworkInfo,
    NetworkMode,
    NetworkPolicy,
    NetworkRecord,
)
from hutch.sdk.aio.transport import Transport
from hutch.sdk.http1 import quote
from hutch.sdk.policies import as_policy


class AsyncNetwork:
    """A sandbox's network; see `AsyncSandbox.network`."""

    def __init__(self, transport: Transport, sandbox_id: str) -> None:
        self._transport = transport
        self._path = f"/v1/sandboxes/{quote(sandbox_id)}/network"

    async def show(self) -> NetworkInfo:
        """Return its policy, and what it has done so far."""
        answer = await self._transport.request("GET", self._path)
        return from_json(NetworkInfo, await answer.json())

    async def update(
        self,
        policy: NetworkPolicy | str | None = None,
        *,
        mode: NetworkMode | str | None = None,
        allow: Sequence[str] = (),
        deny: Sequence[str] = (),
        remove: Sequence[str] = (),
        allow_host: Sequence[int] = (),
        close_host: Sequence[int] = (),
        allow_lan: bool | None = None,
    ) -> NetworkChanged:
        """Change what it may reach, at once, also for what it has open.

        `policy` takes the place of the present one, if given; then rules of `remove` and ports of
        `close_host` are taken out, and the others added. In force when this returns. Raises
        InvalidInput (bad_policy), Missing (network_missing).
        """
        change = NetworkChange(
            None if policy is None else as_policy(policy),
            None if mode is None else NetworkMode(mode),
            list(allow),
            list(deny),
            list(remove),
            list(allow_host),
            list(close_host),
            allow_lan,
        )
        answer = await self._transport.request("PATCH", self._path, json=to_json(change))
        return from_json(NetworkChanged, await answer.json())

    async def connections(self) -> Sequence[Connection]:
        """Return what it has open, oldest first."""
        answer = await self._transport.request("GET", f"{self._path}/connections")
        return [from_json(Connection, item) for item in await answer.json()]

    async def log(
        self, *, since: int | None = None, tail: int | None = None, follow: bool = False
    ) -> AsyncIterator[NetworkRecord]:
        """Yield what was decided for it, oldest first; with `follow` for ever.

        Only from the number `since` on, and the last `tail` of what is there.
        """
        query = {"since": since, "tail": tail, "follow": follow}
        answer = await self._transport.request("GET", f"{self._path}/log", query)
        try:
            async for line in answer.lines():
                yield from_json(NetworkRecord, line["record"])
        finally:
            await answer.close()

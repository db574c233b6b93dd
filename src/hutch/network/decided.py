"""What the gateway decided, as the daemon hears of it: each record once, and all in their order.

The gateway tells its records as they are made, and hands out on request what it still has of those
before. Knows nothing of what they say.
"""

import asyncio
import logging
import os
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import Final

from hutch.errors import HutchError
from hutch.network.channel import Channel, Reply, Values
from hutch.networking import NetworkLayer, NetworkRecord, Reason
from hutch.tasks import Scope

log = logging.getLogger(__name__)

RECORDS_LIMIT: Final = 10_000
"""Records that wait for whoever reads them; the oldest go first."""


class Decided:
    """The records of one gateway after the other. `heard` is called with each as soon as it comes.

    They have places in a sequence that begins anew with each gateway. While those of before are
    fetched, those that are told meanwhile wait: many of them are fetched as well.
    """

    def __init__(self, heard: Callable[[Values], None]) -> None:
        self._heard = heard
        self._records: asyncio.Queue[NetworkRecord] = asyncio.Queue(RECORDS_LIMIT)
        self._scope = Scope("records")
        self._gateway = 0
        self._since = 0
        self._fetching = False
        self._waiting: deque[tuple[int, Values]] = deque(maxlen=RECORDS_LIMIT)

    async def records(self) -> AsyncIterator[NetworkRecord]:
        """Yield what was decided, for one reader."""
        while True:
            yield await self._records.get()

    async def met(self, gateway: Channel, pid: int) -> None:
        """Begin to fetch what a gateway decided while nobody listened."""
        await self.close()
        if pid != self._gateway:
            self._release()  # nobody else has them any more
            self._gateway, self._since = pid, 0
        self._waiting.clear()
        self._fetching = True
        self._scope.start("fetch", self._fetch(gateway))

    async def told(self, values: Values, fds: list[int]) -> Reply:
        """Take a record that the gateway tells by itself."""
        for fd in fds:
            os.close(fd)
        place, record = int(values["next"]), values["record"]
        self._heard(record)
        if self._fetching:
            self._waiting.append((place, record))
        else:
            self._take(place, record)
        return Reply()

    async def close(self) -> None:
        """Fetch no more."""
        await self._scope.close()

    async def _fetch(self, gateway: Channel) -> None:
        more = True
        try:
            while more:
                values, _ = await gateway.call("records", {"since": self._since})
                for record in values["records"]:
                    self._heard(record)
                    self._keep(record)
                self._since = int(values["next"])
                more = bool(values.get("more"))
        except HutchError as cause:
            log.warning("what was decided is asked for again: %s", cause.message)
            await gateway.close()  # so that it, or its successor, is met again
            return
        self._fetching = False
        self._release()

    def _release(self) -> None:
        while self._waiting:
            self._take(*self._waiting.popleft())

    def _take(self, place: int, record: Values) -> None:
        if place > self._since:
            self._since = place
            self._keep(record)

    def _keep(self, told: Values) -> None:
        if self._records.full():
            self._records.get_nowait()
        self._records.put_nowait(
            NetworkRecord(
                **told | {"layer": NetworkLayer(told["layer"]), "reason": Reason(told["reason"])}
            )
        )

"""Telling guests whether they have a network, so that their programs fail at once where they have
none.

What gets through is decided outside: a guest that does not listen keeps nobody waiting. One that
starts is told with its identity, and again if that has changed by the time it runs.
"""

import asyncio
import logging
from typing import Final

from hutch.errors import HutchError
from hutch.networking import NetworkMode
from hutch.service.lifecycle import RUNNING
from hutch.service.registry import Entry
from hutch.tasks import Scope

log = logging.getLogger(__name__)

WAIT_TIME: Final = 10.0
"""How long whoever changes a policy waits for the guest to take note of it."""


class Telling:
    """Tells the guests of one host: each of one thing after the other, and of the last at last."""

    def __init__(self) -> None:
        self._scope = Scope("telling guests")
        self._under_way: dict[str, asyncio.Task[None]] = {}

    def changed(self, entry: Entry) -> None:
        """Take note that what a guest knows is not so any more, unless there is no guest."""
        if entry.sandbox is not None or entry.boot is not None:
            entry.untold = True
        self.tell(entry)

    def tell(self, entry: Entry) -> None:
        """Tell a guest what it does not know yet, in the background, as soon as it runs."""
        sandbox_id = entry.info.id
        if sandbox_id in self._under_way:
            entry.untold = True  # its state may be another one since: once more
        elif entry.untold:
            self._under_way[sandbox_id] = self._scope.start(sandbox_id, self._work(entry))

    async def told(self, entry: Entry) -> None:
        """Return when a guest was told, or does not listen."""
        if (task := self._under_way.get(entry.info.id)) is not None:
            await asyncio.wait({task}, timeout=WAIT_TIME)

    async def close(self) -> None:
        """Let go of guests that do not listen."""
        await self._scope.close()

    async def _work(self, entry: Entry) -> None:
        try:
            await self._tell(entry)
        finally:
            # Here, where nothing comes between: what is untold from now on needs another task.
            self._under_way.pop(entry.info.id, None)

    async def _tell(self, entry: Entry) -> None:
        failed = False
        while entry.untold and not failed:
            await entry.settled()
            sandbox = entry.sandbox
            if sandbox is None or entry.info.state is not RUNNING:
                return  # it is told when it runs
            entry.untold = False
            up = entry.info.network.mode is not NetworkMode.NONE
            try:
                await (await sandbox.connection.get()).set_network(up)
            except HutchError as failure:
                log.warning("%s is not told of its network: %s", entry.info.name, failure)
                # For its next change or start; but what was changed meanwhile is told now.
                failed, entry.untold = not entry.untold, True

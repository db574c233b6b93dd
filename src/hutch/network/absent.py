"""The network of a host that can have none: nobody is attached, and it says why."""

from collections.abc import AsyncIterator, Collection, Sequence

from hutch.errors import HutchError, error
from hutch.network.base import Ability, Attachment
from hutch.networking import Connection, NetworkInfo, NetworkPolicy, NetworkRecord


class NoNetwork:
    """Implements `network.base.Network` where there is nothing to be had."""

    def __init__(self, why: str = "it is switched off", hint: str | None = None) -> None:
        self._ability = Ability(taps=False, why=why, hint=hint)

    async def open(self) -> None:
        """Do nothing."""

    async def close(self) -> None:
        """Do nothing."""

    async def stop(self) -> None:
        """Do nothing."""

    @property
    def ability(self) -> Ability:
        """Why there are no networks."""
        return self._ability

    async def attach(self, attachment: Attachment) -> int:
        """Refuse. Raises network_missing."""
        raise self._missing()

    async def adopt(self, attachments: Sequence[Attachment]) -> None:
        """Do nothing: what ran before cannot have had one."""

    async def reserve(self, ports: Collection[int]) -> None:
        """Do nothing: nobody reaches anything."""

    async def update(self, sandbox_id: str, policy: NetworkPolicy | None) -> int:
        """Refuse. Raises network_missing."""
        raise self._missing()

    async def detach(self, sandbox_id: str) -> None:
        """Do nothing."""

    async def info(self, sandbox_id: str) -> NetworkInfo | None:
        """Return None: it is not attached."""
        return None

    async def connections(self, sandbox_id: str) -> Sequence[Connection]:
        """Return none."""
        return ()

    async def records(self) -> AsyncIterator[NetworkRecord]:
        """Yield nothing, and end."""
        none: tuple[NetworkRecord, ...] = ()
        for record in none:
            yield record

    def _missing(self) -> HutchError:
        why, hint = self._ability.why, self._ability.hint
        return error("network_missing", f"sandboxes have no networks here: {why}", hint=hint)

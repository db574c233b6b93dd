"""The daemon itself, as the API sees it: what it is, its settings, its events, its end."""

import os
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

from hutch import __version__
from hutch.models import SandboxState, to_json
from hutch.reports import Check, DaemonInfo, Event, HostUsage
from hutch.service.doctor import check_host
from hutch.service.machine import Booter
from hutch.service.parts import Parts
from hutch.service.registry import Registry
from hutch.service.usage import host_usage

API_VERSION = "v1"


class HostSystem:
    """Implements `System` of the API's operations for one host.

    `stop_sandboxes` is what the last `request_stop` said; the daemon's process does the rest.
    """

    def __init__(
        self,
        parts: Parts,
        registry: Registry,
        booter: Booter,
        origins: Mapping[str, str],
        started_at: str,
    ) -> None:
        """`origins` says for each setting where its value came from."""
        self._parts = parts
        self._booter = booter
        self._registry = registry
        self._origins = origins
        self._started_at = started_at
        self.stop_sandboxes = False

    async def info(self) -> DaemonInfo:
        """Return what the daemon is and how much it holds."""
        states = [entry.info.state for entry in self._registry]
        return DaemonInfo(
            version=__version__,
            api=API_VERSION,
            pid=os.getpid(),
            started_at=self._started_at,
            home=str(self._parts.settings.home),
            sandboxes=len(states),
            running=sum(state.has_machine for state in states),
            memory=_resident(),
        )

    async def usage(self) -> HostUsage:
        """Return what the host has and what each sandbox takes of it."""
        return await host_usage(self._parts, self._registry, self._booter)

    async def doctor(self) -> Sequence[Check]:
        """Check everything that Hutch needs."""
        parts = self._parts
        ability = parts.plugs.ability
        return await check_host(parts.settings, parts.engine, parts.kernels, ability)

    def settings(self) -> Mapping[str, Mapping[str, Any]]:
        """Return each setting's value, as JSON, and its origin."""
        settings = self._parts.settings
        return {
            key: {"value": _plain(getattr(settings, key)), "origin": origin}
            for key, origin in self._origins.items()
        }

    def events(self, *, since: int | None = None, follow: bool = False) -> AsyncIterator[Event]:
        """Yield the events still kept, then, with `follow`, new ones."""
        return self._parts.events.follow(since, follow=follow)

    async def request_stop(self, *, stop_sandboxes: bool) -> None:
        """Say what is to become of the VMs when the daemon ends."""
        self.stop_sandboxes = stop_sandboxes

    @property
    def running(self) -> int:
        """How many sandboxes run."""
        return sum(entry.info.state is SandboxState.RUNNING for entry in self._registry)


def _plain(value: Any) -> Any:
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    return to_json(value)


def _resident() -> int:
    with open("/proc/self/statm", "rb") as statm:
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

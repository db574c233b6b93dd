"""The seam between the service and the network.

A sandbox is attached before its VM exists: from then on its policy is in force, whatever happens to
the daemon. Two processes outlive the daemon: `netd` owns the namespace with all TAPs, the gateway
judges and carries every connection. Without either, nothing leaves a sandbox.
"""

from collections.abc import AsyncIterator, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from hutch.networking import Connection, NetworkInfo, NetworkPolicy, NetworkRecord


@dataclass(frozen=True, slots=True)
class Attachment:
    """A sandbox's place in the network.

    `names` is the file of its name to address table, which the gateway adds to: a fork or a restore
    brings a copy of its source's. With no `policy` nothing answers at all: machines that become
    templates, and those of a pool that nobody has claimed.
    """

    sandbox_id: str
    name: str
    names: Path
    policy: NetworkPolicy | None = None


@dataclass(frozen=True, slots=True)
class Ability:
    """What this host can do for sandboxes' networks.

    `why` says what is missing when there are no `taps`; `held` tells whether a guest's connection
    is answered only when that to its peer has been made.
    """

    taps: bool
    held: bool = False
    why: str = ""
    hint: str | None = None


class Network(Protocol):
    """The networks of one host's sandboxes. Errors: network_failed, bad_policy."""

    async def open(self) -> None:
        """Find the two processes, or start them. A host that cannot have them says so in
        `ability`, and raises nothing.
        """

    async def close(self) -> None:
        """Let go of the two processes; sandboxes' networks go on."""

    async def stop(self) -> None:
        """End both processes. For a host whose sandboxes have all ended."""

    @property
    def ability(self) -> Ability:
        """What this host can do."""

    async def attach(self, attachment: Attachment) -> int:
        """Make a sandbox's TAP, and put its policy in force.

        Returns a descriptor of the TAP, for its VM and the caller's to close. What was there under
        its id is removed first. Raises bad_policy, network_failed.
        """

    async def adopt(self, attachments: Sequence[Attachment]) -> None:
        """Put those back in order whose VMs run on, and remove all others."""

    async def update(self, sandbox_id: str, policy: NetworkPolicy | None) -> int:
        """Put another policy in force, for what is open, too.

        Returns how many connections were ended. Raises bad_policy, network_failed; then whoever
        takes the sandbox up again is given no policy at all.
        """

    async def reserve(self, ports: Collection[int]) -> None:
        """Keep these ports of the host's loopback, and no others, from all sandboxes, whatever
        their policies open. Raises network_failed; what was asked for last comes into force all the
        same, before anything is attached again.
        """

    async def detach(self, sandbox_id: str) -> None:
        """End all connections of a sandbox, then remove its TAP; nothing happens without one."""

    async def info(self, sandbox_id: str) -> NetworkInfo | None:
        """Return what the gateway knows of a sandbox; None when it is not attached."""

    async def connections(self, sandbox_id: str) -> Sequence[Connection]:
        """Return the open connections of a sandbox, oldest first."""

    def records(self) -> AsyncIterator[NetworkRecord]:
        """Yield what is decided for any sandbox, from now on; what was missed, too, if it is not
        too much.
        """

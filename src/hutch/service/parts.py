"""What every part of one host's service works with: the seams, the settings, the places on disk.

Made once by `host.py` and handed down. No behaviour but where things lie, and what it means when
the host's own file system refuses.
"""

import contextlib
import errno
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from hutch.engine.base import Engine
from hutch.errors import HutchError, error
from hutch.images.base import Images, Kernels
from hutch.network.base import Network
from hutch.service.capacity import Capacity
from hutch.service.connection import ConnectGuest
from hutch.service.events import EventLog
from hutch.service.plugs import Plugs
from hutch.service.spec import HostSize
from hutch.settings import Settings
from hutch.state.base import Store

MakeBaseDisk = Callable[[Path, int], Awaitable[Path]]
"""Returns the empty base disk of a size, made on first use (images.disk.base_disk)."""


TEMPLATE_DISK = "disk.qcow2"
"""The file in a template's directory that sandboxes' disks are based on."""

LAYER_SUFFIX = ".qcow2"


@dataclass(frozen=True, slots=True)
class Places:
    """Where a sandbox's files are: what lasts under `home`, its VM's sockets under `runtime`."""

    home: Path
    runtime: Path

    @property
    def sandboxes(self) -> Path:
        """The directory with one directory for each sandbox."""
        return self.home / "sandboxes"

    @property
    def templates(self) -> Path:
        """The directory with one directory for each template."""
        return self.home / "templates"

    def template(self, template_id: str) -> Path:
        """The directory of all that there is of a template."""
        return self.templates / template_id

    def template_disk(self, template_id: str) -> Path:
        """The disk of a template, which outlives the rest of it while sandboxes need it."""
        return self.template(template_id) / TEMPLATE_DISK

    def sandbox(self, sandbox_id: str) -> Path:
        """The directory of all that lasts of a sandbox."""
        return self.sandboxes / sandbox_id

    @property
    def layers(self) -> Path:
        """The directory of the layers of all disks."""
        return self.home / "layers"

    def layer(self, layer_id: str) -> Path:
        """The file of one layer of a disk."""
        return self.layers / f"{layer_id}{LAYER_SUFFIX}"

    def old_disk(self, sandbox_id: str) -> Path:
        """Where an older Hutch kept a sandbox's disk, which had a single layer then."""
        return self.sandbox(sandbox_id) / "disk.qcow2"

    @property
    def snapshots(self) -> Path:
        """The directory with one directory for each snapshot."""
        return self.home / "snapshots"

    def snapshot(self, snapshot_id: str) -> Path:
        """The directory of all that there is of a snapshot, but for its disk."""
        return self.snapshots / snapshot_id

    def parked(self, sandbox_id: str) -> Path:
        """The directory of a parked sandbox's memory."""
        return self.sandbox(sandbox_id) / "parked"

    def console(self, sandbox_id: str) -> Path:
        """The console's log."""
        return self.sandbox(sandbox_id) / "console.log"

    def logs(self, sandbox_id: str) -> Path:
        """The directory of the programs' logs."""
        return self.sandbox(sandbox_id) / "logs"

    def names(self, sandbox_id: str) -> Path:
        """The table of the names that its network has answered.

        It lies with the logs because it goes where they go: with each memory that knows of it.
        """
        return self.logs(sandbox_id) / "network-names.log"

    def network_log(self, sandbox_id: str) -> Path:
        """The newest file of what its network has decided."""
        return self.sandbox(sandbox_id) / "network.jsonl"

    def machine(self, sandbox_id: str) -> Path:
        """The directory of the VM's sockets, whose paths must be short."""
        return self.runtime / sandbox_id


@dataclass(frozen=True, slots=True)
class Parts:
    """The seams and values that the service is built from."""

    settings: Settings
    store: Store
    engine: Engine
    images: Images
    kernels: Kernels
    connect_guest: ConnectGuest
    base_disk: MakeBaseDisk
    events: EventLog
    host: HostSize
    places: Places
    capacity: Capacity
    network: Network
    plugs: Plugs


def host_error(cause: OSError) -> HutchError:
    """Return what a failure of the host's file system means: disk_full or internal."""
    where = f"{cause.filename}: " if cause.filename else ""
    if cause.errno in (errno.ENOSPC, errno.EDQUOT):
        return error(
            "disk_full",
            f"{where}the file system is full",
            hint="free some space, for example with `hutch image prune` or `hutch rm`",
        )
    return error(
        "internal",
        f"{where}{cause.strerror or cause}",
        hint="see the daemon's log and `hutch doctor`",
    )


@contextlib.contextmanager
def host_errors() -> Iterator[None]:
    """Turn failures of the host's file system into errors that a caller can be told."""
    try:
        yield
    except OSError as cause:
        raise host_error(cause) from cause

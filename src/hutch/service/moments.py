"""Snapshots at rest, opened to go on from: everything is checked before anything is made of them.

One that is encrypted is decrypted, for as long as it is open. It must not know what is made of it.
"""

import contextlib
import dataclasses
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from hutch.engine.base import Frozen, MachineType
from hutch.errors import HutchError
from hutch.models import SnapshotKind
from hutch.networking import PublishedPort
from hutch.service.diskdigests import DiskDigests
from hutch.service.lives import Lives
from hutch.service.manifest import (
    Manifest,
    check_files,
    check_needs,
    damaged,
    needs_of,
    read_manifest,
)
from hutch.service.misfit import misfit
from hutch.service.parts import Parts, host_errors
from hutch.service.policies import without_holes
from hutch.service.recipe import machine_spec
from hutch.service.revival import AT_FAULT, Origin
from hutch.service.sealing import Key, check_useful
from hutch.service.travel import LOGS
from hutch.service.vault import Vault
from hutch.state.base import SandboxRow, SnapshotRow
from hutch.tasks import in_thread

_NOWHERE: Final = Path("/")


@dataclass(frozen=True, slots=True)
class Moment:
    """What a snapshot has: whence a sandbox begins, and the memory (None: there is the disk)."""

    manifest: Manifest
    origin: Origin
    frozen: Frozen | None


class Moments:
    """Opens the snapshots of one host."""

    def __init__(self, parts: Parts, lives: Lives, vault: Vault, disks: DiskDigests) -> None:
        self._parts = parts
        self._lives = lives
        self._vault = vault
        self._disks = disks
        self._users: Counter[str] = Counter()

    def busy(self, snapshot_id: str) -> bool:
        """Tell whether somebody has it open."""
        return self._users[snapshot_id] > 0

    @contextlib.asynccontextmanager
    async def opened(
        self, row: SnapshotRow, key: Key | None = None, *, disk_only: bool = False
    ) -> AsyncIterator[Moment]:
        """Hand out the moment of a snapshot, checked; with `disk_only` without its memory.

        What the engine says in the block of a memory that will never load is snapshot_damaged.
        Raises that, wrong_key, snapshot_incompatible, image_not_found, no_capacity, disk_full.
        """
        directory = self._parts.places.snapshot(row.info.id)
        memory = row.info.kind is SnapshotKind.FULL and not disk_only
        with self._used(row), host_errors():
            manifest = await in_thread(read_manifest, directory, row.info.name)
            if row.info.encrypted:
                opened = self._sealed(row, manifest, key, memory=memory)
            else:
                check_useful(key, f"the snapshot {row.info.name}")
                opened = self._plain(row, manifest, directory, memory=memory)
            async with opened as moment:
                if not row.info.sandbox_id:
                    moment = _from_elsewhere(moment)
                try:
                    yield moment
                except HutchError as cause:
                    if cause.code == "engine_failed" and cause.details.get(AT_FAULT):
                        raise damaged(row.info.name, cause.message) from cause
                    raise

    @contextlib.asynccontextmanager
    async def _plain(
        self, row: SnapshotRow, manifest: Manifest, directory: Path, *, memory: bool
    ) -> AsyncIterator[Moment]:
        if row.layer is None:
            raise damaged(row.info.name, "its disk is gone")
        if memory:
            await self._check(manifest)
        await self._disks.check(row.info.name, row.layer, manifest.layers)
        source = SandboxRow(manifest.spec, manifest.info, 0, generation=manifest.generation)
        if not memory:
            origin = Origin(source, row.info.id, row.layer, ports=_ports(row, manifest))
            yield Moment(manifest, origin, None)
            return
        frozen = Frozen(directory, manifest.info.memory)
        try:
            await in_thread(check_files, manifest, frozen)
            origin = Origin(
                source,
                row.info.id,
                row.layer,
                logs=directory / LOGS,
                ports=_ports(row, manifest),
            )
            yield Moment(manifest, origin, frozen)
        finally:
            if self._users[row.info.id] == 1:
                await self._parts.engine.drop(frozen)

    @contextlib.asynccontextmanager
    async def _sealed(
        self, row: SnapshotRow, manifest: Manifest, key: Key | None, *, memory: bool
    ) -> AsyncIterator[Moment]:
        async with self._vault.opened(manifest, key, memory=memory) as contents:
            inner = contents.manifest
            if memory:
                await self._check(inner)
            origin = Origin(
                SandboxRow(inner.spec, inner.info, 0, generation=inner.generation),
                inner.snapshot.id,
                None,
                fill_disk=contents.fill_disk,
                put_logs=contents.put_logs if memory else None,
                ports=_ports(row, inner),
            )
            yield Moment(inner, origin, contents.frozen)

    async def _check(self, manifest: Manifest) -> None:
        """Refuse a memory that would not go on here. Raises snapshot_incompatible."""
        engine = self._parts.engine
        if manifest.needs is None:
            raise damaged(manifest.snapshot.name, "its manifest names nothing that it needs")
        recipe = await self._lives.booter.recipe(manifest.info)
        with host_errors():
            spec = machine_spec(
                recipe,
                vm_id="",
                directory=_NOWHERE,
                console_log=_NOWHERE,
                disk=_NOWHERE,
                uid=None,
            )
            spec = dataclasses.replace(spec, machine=MachineType(manifest.snapshot.machine))
            now = await in_thread(needs_of, engine, spec, recipe)
            why = await in_thread(misfit, engine, spec, manifest.needs.layout)
        check_needs(manifest, now, recipe, engine.name, why)

    @contextlib.contextmanager
    def _used(self, row: SnapshotRow) -> Iterator[None]:
        self._users[row.info.id] += 1
        try:
            yield
        finally:
            self._users[row.info.id] -= 1


def _ports(row: SnapshotRow, manifest: Manifest) -> list[PublishedPort]:
    """Return the ports that what is restored publishes: its source's, as far as they are free.

    What came from elsewhere has no say in where it is reached: any free port of the loopback.
    """
    if row.info.sandbox_id:
        return [dataclasses.replace(port, error=None) for port in manifest.info.ports]
    return [PublishedPort(port.guest_port) for port in manifest.info.ports]


def _from_elsewhere(moment: Moment) -> Moment:
    """Return an imported moment whose sandbox may reach no more than names of the internet."""
    source = moment.origin.source
    info = dataclasses.replace(source.info, network=without_holes(source.info.network))
    source = dataclasses.replace(source, info=info)
    return dataclasses.replace(moment, origin=dataclasses.replace(moment.origin, source=source))

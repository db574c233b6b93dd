"""A sandbox's memory on disk: written while its VM stands still, and taken up by a clone of it.

The directory of a parked sandbox is complete when its manifest is there, which comes last and goes
first. Its disk is not in it: the sandbox keeps that, and nothing writes it any more, as each
attempt to go on has a layer of its own over it. It must not know of states, nor of what wakes a
sandbox.
"""

import contextlib
import dataclasses
import functools
import json
import logging
import shutil
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from hutch.engine.base import (
    Accelerator,
    Frozen,
    Machine,
    MachineSpec,
    MachineType,
    Verdict,
)
from hutch.errors import HutchError, error
from hutch.guest.base import Guest
from hutch.models import CpuInfo, from_json, timestamp, to_json
from hutch.service.boot import Late, Stalled
from hutch.service.durable import write_json
from hutch.service.flatten import LAYERS_MAX
from hutch.service.hostcpu import lacking, missing_features, other_kind
from hutch.service.machine import Booter, BootRecord, identify_clone
from hutch.service.misfit import misfit
from hutch.service.parts import Parts, host_errors
from hutch.service.recipe import Recipe
from hutch.service.sandbox import Sandbox
from hutch.state.base import LayerRow, SandboxRow
from hutch.tasks import in_thread, settle_in_thread

log = logging.getLogger(__name__)

MANIFEST: Final = "parked.json"
FORMAT: Final = 2

_AT_FAULT: Final = "template"
"""The detail of an engine's error that says that a memory will never load."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """What is on record of a parked memory, beside it.

    `program` and `layout` are the engine's marks of what can load it, `cpu` is what its guest saw,
    `layer` is the uppermost one of the disk that goes with it, `joined` what its layers were joined
    into since; `generation` is that of the sandbox which was parked.
    """

    format: int
    program: str
    layout: str
    machine: MachineType
    accelerator: str
    tsc_khz: int | None
    cpu: CpuInfo
    memory: int
    layer: str | None
    generation: int
    parked_at: str
    joined: str | None = None


class Parking:
    """Keeps and takes up the memories of one host's parked sandboxes."""

    def __init__(self, parts: Parts, booter: Booter) -> None:
        self._parts = parts
        self._booter = booter

    # ---- to disk

    async def write(self, row: SandboxRow, sandbox: Sandbox) -> Frozen:
        """Bring a running sandbox to rest and write its memory; it stands still from then on.

        When it raises, the sandbox runs on and nothing is left: guest_timeout (its programs could
        not be frozen), disk_full, engine_*, sandbox_died.
        """
        frozen = Frozen(self._parts.places.parked(row.info.id), row.info.memory)
        await self.clear(row)
        try:
            await settle_in_thread(frozen.directory.mkdir, mode=0o700, parents=True)
            manifest = await self._describe(row, sandbox.machine)
            await sandbox.still()
            frozen = await self._parts.engine.capture(sandbox.machine, frozen.directory)
            await self._parts.engine.keep(frozen)
            await settle_in_thread(_write_manifest, frozen.directory, manifest)
        except BaseException:
            await self.give_back(row, sandbox)
            raise
        return frozen

    async def give_back(self, row: SandboxRow, sandbox: Sandbox) -> None:
        """Let a sandbox run on that was to be parked, and forget what was written."""
        try:
            await self.clear(row)
        finally:
            await sandbox.go_on()

    async def drop(self, frozen: Frozen) -> None:
        """Give the host's memory back that a capture holds; what is on disk stays."""
        await self._parts.engine.drop(frozen)

    async def _describe(self, row: SandboxRow, machine: Machine) -> Manifest:
        record = machine.record
        recipe = await self._booter.recipe(row.info)
        spec = self._spec(row, recipe, _disk_of(row), record.machine, record.accelerator, None)
        engine = self._parts.engine
        return Manifest(
            format=FORMAT,
            program=await in_thread(engine.identity),
            layout=await in_thread(engine.layout, spec),
            machine=record.machine,
            accelerator=record.accelerator.value,
            tsc_khz=spec.tsc_khz,
            cpu=await machine.cpu(),
            memory=row.info.memory,
            layer=row.layer,
            generation=row.generation,
            parked_at=timestamp(),
        )

    def _spec(
        self,
        row: SandboxRow,
        recipe: Recipe,
        layer: str,
        machine: MachineType,
        accelerator: Accelerator,
        tsc_khz: int | None,
    ) -> MachineSpec:
        """Return the VM that the sandbox has, or is to have again, with that uppermost layer."""
        spec = self._booter.machine_spec(row, recipe, layer)
        rate = spec.tsc_khz if tsc_khz is None else tsc_khz
        return dataclasses.replace(spec, machine=machine, accelerator=accelerator, tsc_khz=rate)

    # ---- from disk

    async def is_complete(self, row: SandboxRow) -> bool:
        """Tell whether there is a memory to take up."""
        return await in_thread((self._parts.places.parked(row.info.id) / MANIFEST).is_file)

    @contextlib.asynccontextmanager
    async def disk(self, row: SandboxRow, record: BootRecord) -> AsyncIterator[LayerRow]:
        """Make a layer for an attempt to go on, over the disk that goes with the memory.

        It goes with the block unless it is the sandbox's by then. Raises parked_unusable,
        no_capacity, disk_full, engine_failed.
        """
        manifest = await self._complete(row)
        directory, layers, info = (
            self._parts.places.parked(row.info.id),
            self._booter.layers,
            row.info,
        )
        base = await self._parts.base_disk(self._parts.settings.home, info.disk)

        async def record_joined(joined: LayerRow) -> None:
            # Before it is the sandbox's: a crash in between leaves one that goes by its old name.
            renamed = dataclasses.replace(manifest, joined=joined.id)
            with host_errors():
                await settle_in_thread(_write_manifest, directory, renamed)
            await record.layer(joined, info.template)

        # They would become more with each time; nobody has them open now.
        below = await layers.shorten(_disk_of(row), base, record_joined)
        if len(layers.chain(below)) >= LAYERS_MAX:
            raise error(
                "no_capacity",
                f"the disk of sandbox {info.name} has {LAYERS_MAX} layers, which cannot be joined",
                hint="free some space, and see `hutch doctor`",
            )
        async with layers.over(below, info.disk) as layer:
            yield layer

    async def _complete(self, row: SandboxRow) -> Manifest:
        """Return what is on record of the memory. Raises parked_unusable."""
        manifest = await in_thread(_read_manifest, self._parts.places.parked(row.info.id))
        if manifest is None or row.layer not in (manifest.layer, manifest.joined):
            raise _unusable(row, "its memory is not complete")
        return manifest

    async def take_up(
        self, row: SandboxRow, record: BootRecord, layer: LayerRow
    ) -> tuple[Machine, Guest]:
        """Start the VM that goes on from the memory, with its identity; its programs are frozen.

        It writes to `layer`. Raises parked_unusable, and when it may work another time engine_*,
        no_capacity and the like. No VM is left then, and the memory is as it was.
        """
        directory = self._parts.places.parked(row.info.id)
        manifest = await self._complete(row)
        recipe = await self._booter.recipe(row.info)
        _check_host(row, manifest, recipe.verdict)
        accelerator = Accelerator(manifest.accelerator)
        spec = self._spec(row, recipe, layer.id, manifest.machine, accelerator, manifest.tsc_khz)
        engine = self._parts.engine
        if manifest.program != await in_thread(engine.identity):
            raise _unusable(row, "another build of the engine has written its memory")
        if (why := await in_thread(misfit, engine, spec, manifest.layout)) is not None:
            raise _unusable(row, why)
        identify = functools.partial(identify_clone, row.info, row.generation)
        frozen = Frozen(directory, manifest.memory)
        try:
            return await self._booter.take_up(row, record, spec, frozen, identify)
        except (Stalled, Late) as cause:
            raise _unusable(row, str(cause) or "no time was left") from cause
        except HutchError as cause:
            if cause.code == "engine_failed" and cause.details.get(_AT_FAULT):
                raise _unusable(row, cause.message) from cause
            raise
        finally:
            await engine.drop(frozen)

    async def clear(self, row: SandboxRow) -> None:
        """Remove the memory, if there is one."""
        directory = self._parts.places.parked(row.info.id)
        await self._parts.engine.drop(Frozen(directory, row.info.memory))
        await settle_in_thread(_remove, directory)


def _disk_of(row: SandboxRow) -> str:
    if row.layer is None:
        raise error("engine_failed", f"sandbox {row.info.name} has no disk")
    return row.layer


def _check_host(row: SandboxRow, manifest: Manifest, verdict: Verdict) -> None:
    """Refuse a memory that this host's CPU cannot go on with. Raises parked_unusable."""
    now = verdict.accelerator.value
    if manifest.accelerator != now:
        raise _unusable(row, f"its VM ran with {manifest.accelerator}, this host has {now}")
    if others := other_kind(manifest.cpu, verdict.cpu):
        raise _unusable(row, f"other is {', '.join(others)}")
    if missing := missing_features(manifest.cpu, verdict.cpu):
        raise _unusable(row, f"{lacking(missing)}; a host that has them can take it up")


def _unusable(row: SandboxRow, why: str) -> HutchError:
    name = row.info.name
    return error(
        "parked_unusable",
        f"sandbox {name} cannot go on from its memory: {why}",
        hint=f"`hutch stop {name}` gives its memory up and keeps its disk",
    )


def _write_manifest(directory: Path, manifest: Manifest) -> None:
    """Complete a parked memory: from here on it exists, whatever happens."""
    write_json(directory / MANIFEST, to_json(manifest))


def _read_manifest(directory: Path) -> Manifest | None:
    try:
        body = json.loads((directory / MANIFEST).read_bytes())
        return from_json(Manifest, body) if body["format"] == FORMAT else None
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError):
        log.warning("the manifest in %s is not readable", directory)
        return None


def _remove(directory: Path) -> None:
    (directory / MANIFEST).unlink(missing_ok=True)
    shutil.rmtree(directory, ignore_errors=True)

"""Snapshots that are encrypted at rest: all of one in one sealed file, in the form it travels in.

What is in it is in the clear only in memory and in files that no path leads to, which are gone with
the process that has them open. Beside it lies a manifest without what a sandbox may keep secret. It
must not know of records, nor how a moment is captured or gone on from.
"""

import contextlib
import dataclasses
import os
import re
import secrets
import shutil
import tarfile
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from hutch.engine.base import Frozen
from hutch.engine.memories import create_memory
from hutch.errors import HutchError, error
from hutch.images.base import RootFs
from hutch.models import SnapshotKind, to_json
from hutch.service.belief import SIZE_MAX, SMALL_MAX, believed, disk_sizes
from hutch.service.capacity import copy_need
from hutch.service.diskimage import check_room, fill_layer, hidden_file, write_hidden
from hutch.service.layers import Layers
from hutch.service.manifest import Manifest, damaged, digest_of
from hutch.service.parts import Parts
from hutch.service.portable import Member, Reader, create_file, member_of, watched, write
from hutch.service.sealing import Key, seal, unseal
from hutch.tasks import settle, settle_in_thread, stop_in_thread

SEALED: Final = "sealed"
"""The file in a snapshot's directory with all that is encrypted of it."""

_DISK: Final = "disk"
_STATE: Final = "state"
_MEMORY: Final = "memory"
_LOGS: Final = "logs.tar"
_LOGS_MAX: Final = 4096
_PIECE: Final = 1 << 20
_LOG: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,119}\.log")


class Sealing:
    """A snapshot that is being encrypted: see `Vault.sealing`."""

    def __init__(self, parts: Parts, layers: Layers, directory: Path, key: Key) -> None:
        self._parts = parts
        self._layers = layers
        self._directory = directory
        self._key = key
        self._layer: str | None = None
        self._files = contextlib.ExitStack()
        self._logs: int | None = None

    def hold(self, layer: str) -> None:
        """Keep the uppermost layer of the disk until it is copied, whoever lets go of it."""
        self._files.enter_context(self._layers.pinned(layer))
        self._layer = layer

    def take_logs(self, source: Path) -> None:
        """Copy the logs in a directory, as far as they are written. Blocking. Raises OSError."""
        self._logs = self._own(hidden_file(self._directory))
        _pack(source, self._logs)

    async def finish(self, manifest: Manifest, frozen: Frozen | None) -> Manifest:
        """Write the sealed file; return the manifest that may lie beside it.

        `frozen` is what the engine holds of the machine, None for a disk alone. Raises
        engine_failed, tool_missing, disk_full, OSError.
        """
        assert self._layer is not None
        root = _root_of(self._parts, manifest)
        rows = self._layers.chain(self._layer)
        template, places = rows[-1].template, self._parts.places
        settings, layers = self._parts.settings, [self._layers.path(each.id) for each in rows]
        base = await self._parts.base_disk(settings.home, manifest.info.disk)
        # The layers, the whole disk, and that once more, sealed.
        await settle_in_thread(
            check_room, layers, self._directory, copies=3, reserve=settings.disk_reserve
        )
        disk = await write_hidden(
            layers,
            places.template_disk(template) if template is not None else None,
            base,
            self._directory,
        )
        sources = {_DISK: self._own(disk)}
        if frozen is not None:
            state, memory = self._parts.engine.lend(frozen)
            sources[_MEMORY] = self._own(memory)
            sources[_STATE] = self._own(os.memfd_create("hutch-state", os.MFD_CLOEXEC))
            await settle_in_thread(_fill, sources[_STATE], state)
            held = min(os.fstat(memory).st_blocks * 512, manifest.info.memory)
            snapshot = dataclasses.replace(manifest.snapshot, memory_bytes=held)
            manifest = dataclasses.replace(manifest, snapshot=snapshot)
        if self._logs is not None:
            sources[_LOGS] = self._logs
        await self._write(manifest, root, sources)
        return _without_secrets(manifest)

    async def _write(self, manifest: Manifest, root: RootFs, sources: dict[str, int]) -> None:
        with create_file(self._directory / SEALED) as file:
            packed = await settle_in_thread(_packed, manifest, root, sources)
            pieces = seal(packed, self._key)
            while (piece := await settle_in_thread(next, pieces, None)) is not None:
                await settle_in_thread(file.write, piece)
            await settle_in_thread(file.flush)
            await settle_in_thread(os.fsync, file.fileno())

    def _own(self, fd: int) -> int:
        self._files.callback(os.close, fd)
        return fd

    async def close(self) -> None:
        """Let go of what was in the clear, and of the layer."""
        self._files.close()
        await self._layers.release(self._layer)


@dataclass(frozen=True, slots=True)
class Contents:
    """What was in a sealed file: the manifest of then, and the machine, which the engine holds.

    `frozen` is None for a disk alone. `disk` and `logs` are descriptors of files without names.
    `room` raises when there is no more room on the host's disk.
    """

    manifest: Manifest
    disk: int
    logs: int | None
    frozen: Frozen | None
    room: Callable[[], None]

    async def fill_disk(self, layer: Path) -> None:
        """Write the disk into an empty layer. Raises disk_full, tool_missing, engine_failed."""
        await fill_layer(self.disk, layer)

    def put_logs(self, target: Path) -> None:
        """Write the logs into a directory, which is made. Blocking.

        Raises snapshot_damaged, disk_full, OSError.
        """
        target.mkdir(mode=0o700, parents=True, exist_ok=True)
        if self.logs is None or not os.fstat(self.logs).st_size:
            return
        try:
            _unpack(self.logs, target, self.room)
        except (tarfile.TarError, ValueError) as cause:
            raise damaged(self.manifest.snapshot.name, "its logs are not readable") from cause


class Vault:
    """Seals and opens the encrypted snapshots of one host."""

    def __init__(self, parts: Parts, layers: Layers) -> None:
        self._parts = parts
        self._layers = layers

    @contextlib.asynccontextmanager
    async def sealing(self, snapshot_id: str, key: Key | None) -> AsyncIterator[Sealing | None]:
        """Encrypt a snapshot that is made in the block; without a key there is nothing to do."""
        if key is None:
            yield None
            return
        work = Sealing(self._parts, self._layers, self._parts.places.snapshot(snapshot_id), key)
        try:
            yield work
        finally:
            await settle(work.close())

    @contextlib.asynccontextmanager
    async def opened(
        self, manifest: Manifest, key: Key | None, *, memory: bool
    ) -> AsyncIterator[Contents]:
        """Hand out what a snapshot has, all of it checked; without `memory` its disk alone.

        `manifest` is the one beside the sealed file. Raises wrong_key, snapshot_damaged,
        snapshot_incompatible, no_capacity, disk_full.
        """
        outer, parts, frozen = manifest.snapshot, self._parts, None
        token = secrets.token_hex(8)
        need = copy_need(
            f"{outer.id}/{token}", f"the memory of the snapshot {outer.name}", outer.memory_bytes
        )
        with contextlib.ExitStack() as files:
            directory = parts.places.snapshot(outer.id)
            fds = {name: hidden_file(directory) for name in (_DISK, _LOGS)}
            for fd in fds.values():
                files.callback(os.close, fd)
            if not memory:
                inner = await stop_in_thread(partial(self._read, manifest, key, fds))
                yield Contents(_joined(inner, manifest), fds[_DISK], None, None, self._room)
                return
            fds[_STATE] = os.memfd_create("hutch-state", os.MFD_CLOEXEC)
            files.callback(os.close, fds[_STATE])
            async with parts.capacity.admit(need):
                fds[_MEMORY] = create_memory(manifest.info.memory)
                with contextlib.ExitStack() as undo:
                    undo.callback(os.close, fds[_MEMORY])
                    inner = await stop_in_thread(partial(self._read, manifest, key, fds))
                    state = await settle_in_thread(_content, fds[_STATE])
                    undo.pop_all()
                frozen = Frozen(directory / token, manifest.info.memory)
                await parts.engine.hold(frozen, state, fds[_MEMORY])
            try:
                joined = _joined(inner, manifest)
                yield Contents(joined, fds[_DISK], fds[_LOGS], frozen, self._room)
            finally:
                await settle(parts.engine.drop(frozen))

    def _read(
        self,
        manifest: Manifest,
        key: Key | None,
        fds: dict[str, int],
        go_on: Callable[[], None],
    ) -> Manifest:
        name = manifest.snapshot.name
        path = self._parts.places.snapshot(manifest.snapshot.id) / SEALED
        try:
            sealed = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError as cause:
            raise damaged(name, f"{path} cannot be read: {cause.strerror}") from cause
        try:
            with open(sealed, "rb") as file:
                opened = unseal(watched(file, go_on), key, f"the snapshot {name}")
                reader = Reader(opened, authentic=True)
                inner = believed(reader.manifest["snapshot"])
                _check_same(inner, manifest)
                _check(reader.members, manifest)
                if reader.manifest["root"] != _about(_root_of(self._parts, manifest)):
                    raise damaged(name, "the root file system beside it is another one")
                for member in reader.members:
                    if member.name in fds:
                        most = inner.snapshot.memory_bytes if member.name == _MEMORY else None
                        reader.fill(member, fds[member.name], self._room, most=most)
                    else:
                        reader.skip(member)
                reader.finish()
                return inner
        except (ValueError, KeyError, TypeError, AttributeError, MemoryError) as cause:
            raise damaged(name, "what is in it is not readable") from cause
        except HutchError as cause:
            if cause.code == "snapshot_damaged":
                raise damaged(name, cause.message) from cause
            raise

    def _room(self) -> None:
        places = self._parts.places
        if shutil.disk_usage(places.snapshots).free <= self._parts.settings.disk_reserve:
            raise error("disk_full", f"{places.home}: there is no room for the disk")


def _packed(manifest: Manifest, root: RootFs, sources: dict[str, int]) -> Iterator[bytes]:
    members = [(member_of(name, fd), fd) for name, fd in sources.items()]
    return write({"snapshot": to_json(manifest), "root": _about(root)}, members)


def _root_of(parts: Parts, manifest: Manifest) -> RootFs:
    root = parts.images.rootfs_path(manifest.info.image_id)
    if root is None:
        image, name = manifest.snapshot.image, manifest.snapshot.name
        raise error(
            "image_not_found",
            f"the image {image} of the snapshot {name} is gone",
            hint=f"get it back with `hutch image pull {image}`",
        )
    return root


def _about(root: RootFs) -> dict[str, str]:
    """Return what is sealed of a root file system, which lies beside in the clear. Blocking."""
    return {"fstype": root.fstype, "digest": digest_of(root.path)}


def _check_same(inner: Manifest, outer: Manifest) -> None:
    """Refuse what is not of the manifest it lies by. Raises snapshot_damaged."""
    if _sizes(inner) != _sizes(outer):
        raise damaged(outer.snapshot.name, "what is in it is not what it says")


def _sizes(manifest: Manifest) -> tuple[object, ...]:
    info, snapshot = manifest.info, manifest.snapshot
    return (
        snapshot.kind,
        snapshot.memory_bytes,
        info.cpus,
        info.memory,
        info.disk,
        manifest.generation,
    )


def _check(members: list[Member], manifest: Manifest) -> None:
    """Refuse members, or sizes of them, that no such snapshot has. Raises snapshot_damaged."""
    sizes, memory = {member.name: member.size for member in members}, manifest.info.memory
    wanted = {_DISK: disk_sizes(manifest.info.disk)}
    if manifest.snapshot.kind is SnapshotKind.FULL:
        wanted |= {_STATE: range(1, SMALL_MAX), _MEMORY: range(memory, memory + 1)}
    limits = wanted | {_LOGS: range(SIZE_MAX)}
    if not wanted.keys() <= sizes.keys() <= limits.keys():
        raise damaged(manifest.snapshot.name, "what is in it is not what it says")
    for name, size in sizes.items():
        if size not in limits[name] or (name == _DISK and size % 512):
            raise damaged(manifest.snapshot.name, f"its {name} is of another size than it says")


def _without_secrets(manifest: Manifest) -> Manifest:
    """Return what may be known of a snapshot without the key."""
    spec = dataclasses.replace(manifest.spec, env={}, command=None, entrypoint=None)
    info = dataclasses.replace(manifest.info, env={}, command=[], error=None, exit=None)
    return dataclasses.replace(manifest, spec=spec, info=info)


def _joined(inner: Manifest, outer: Manifest) -> Manifest:
    """Return the sealed manifest with what is this host's own: names, and its files."""
    needs = inner.needs
    if needs is not None and outer.needs is not None:
        needs = dataclasses.replace(needs, files=outer.needs.files)
    own, image_id = outer.snapshot, outer.info.image_id
    snapshot = dataclasses.replace(inner.snapshot, id=own.id, name=own.name, image_id=image_id)
    info = dataclasses.replace(inner.info, image_id=image_id)
    return dataclasses.replace(inner, snapshot=snapshot, info=info, needs=needs)


def _pack(source: Path, target: int) -> None:
    with open(os.dup(target), "wb") as out, tarfile.open(fileobj=out, mode="w") as archive:
        for path in sorted(source.glob("*.log")) if source.is_dir() else []:
            with contextlib.suppress(FileNotFoundError), open(path, "rb") as file:
                entry = tarfile.TarInfo(path.name)
                entry.size = os.fstat(file.fileno()).st_size  # it may grow while it is copied
                archive.addfile(entry, file)


def _unpack(source: int, target: Path, room: Callable[[], None]) -> None:
    with open(os.dup(source), "rb") as file:
        file.seek(0)
        with tarfile.open(fileobj=file, mode="r:") as archive:
            for number, entry in enumerate(archive):
                if number >= _LOGS_MAX or not 0 <= entry.size < SMALL_MAX:
                    raise ValueError("more than there can be")
                # Plain files alone: a sparse one is larger than all that was decrypted.
                plain = entry.type == tarfile.REGTYPE and not entry.issparse()
                log = archive.extractfile(entry) if plain else None
                if log is not None and _LOG.fullmatch(entry.name):
                    with create_file(target / entry.name) as copy:
                        while piece := log.read(_PIECE):
                            room()
                            copy.write(piece)


def _fill(fd: int, data: bytes) -> None:
    with open(os.dup(fd), "wb") as file:
        file.write(data)


def _content(fd: int) -> bytes:
    with open(os.dup(fd), "rb") as file:
        file.seek(0)
        return file.read()

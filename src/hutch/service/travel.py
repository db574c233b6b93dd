"""Snapshots that leave a host as one file and come to another: what is in it, what is believed.

A disk travels whole, so that nothing of the host's own is below it; the root file system comes
along for where the image is not. It must not know of records: nothing here is entered anywhere.
"""

import dataclasses
import re
import shutil
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from hutch.engine.atrest import join
from hutch.engine.base import Frozen
from hutch.errors import HutchError, error
from hutch.images.base import RootFs
from hutch.models import SnapshotKind, to_json
from hutch.service.belief import SIZE_MAX, SMALL_MAX, believed, disk_sizes
from hutch.service.diskimage import check_room, write_image
from hutch.service.layers import Layers
from hutch.service.manifest import (
    Manifest,
    check_files,
    damaged,
    digest_of,
    digests_of,
    read_manifest,
)
from hutch.service.names import SNAPSHOT_PREFIX, new_id
from hutch.service.parts import Parts, host_errors
from hutch.service.portable import (
    Member,
    Reader,
    create_file,
    member_of,
    unreadable,
    watched,
    write,
)
from hutch.service.recipe import file_identity
from hutch.service.sealing import Key, check_useful, is_sealed, seal, unseal
from hutch.service.stats import disk_use
from hutch.service.vault import SEALED
from hutch.state.base import SnapshotRow
from hutch.tasks import in_thread, settle_in_thread, stop_in_thread

DISK: Final = "disk"
ROOT: Final = "root"
LOGS: Final = "logs"
"""The directory in a snapshot's with the logs of the programs that are in it."""

UPLOAD: Final = "upload"

_LOG = re.compile(r"logs/[A-Za-z0-9_][A-Za-z0-9_.-]{0,119}\.log")
_FSTYPES: Final = ("squashfs", "erofs")
_MEMBERS_MAX: Final = 4096


@dataclass(frozen=True, slots=True)
class Arrived:
    """What was in a file and is unpacked beside it now: the manifest as it came, disk and root.

    There is no disk where all but the root is encrypted, and stays so.
    """

    manifest: Manifest
    disk: Path | None
    root: Path
    root_digest: str
    fstype: str


class Travel:
    """Writes the files that snapshots travel in, and unpacks them."""

    def __init__(self, parts: Parts, layers: Layers) -> None:
        self._parts = parts
        self._layers = layers

    # ---- out

    async def export(self, row: SnapshotRow, key: Key | None = None) -> AsyncIterator[bytes]:
        """Yield the file of a snapshot that stays as it is meanwhile; with a key encrypted.

        What is encrypted at rest goes as it is, whatever the key.

        Raises snapshot_damaged, image_not_found, tool_missing, disk_full before the first piece.
        """
        places, name = self._parts.places, row.info.name
        # Without a row: what a crash leaves of it is removed at the next start.
        scratch = places.snapshots / new_id(SNAPSHOT_PREFIX)
        directory = places.snapshot(row.info.id)
        try:
            with host_errors():
                await settle_in_thread(scratch.mkdir, mode=0o700, parents=True)
                manifest = await in_thread(read_manifest, directory, name)
                root = await in_thread(self._parts.images.rootfs_path, manifest.info.image_id)
                if root is None:
                    raise error(
                        "image_not_found",
                        f"the image {row.info.image} of the snapshot {name} is gone",
                        hint=f"get it back with `hutch image pull {row.info.image}`",
                    )
                frozen = Frozen(directory, manifest.info.memory)
                if row.info.encrypted:
                    files = {SEALED: directory / SEALED, ROOT: root.path}
                else:
                    files = {DISK: scratch / DISK, ROOT: root.path}
                    await self._whole_disk(row, manifest, files[DISK])
                    if await in_thread(frozen.below):
                        manifest = await settle_in_thread(
                            self._whole_memory, manifest, frozen, scratch
                        )
                        frozen = dataclasses.replace(frozen, directory=scratch)
                members = await in_thread(_members, manifest, directory, frozen, files)
            head = {"snapshot": to_json(manifest), "fstype": root.fstype}
            pieces = write(head, members)
            if key is not None:
                pieces = seal(pieces, key)
            while (piece := await settle_in_thread(_next, pieces)) is not None:
                yield piece
        finally:
            await settle_in_thread(shutil.rmtree, scratch, ignore_errors=True)

    async def _whole_disk(self, row: SnapshotRow, manifest: Manifest, target: Path) -> None:
        if row.layer is None:
            raise damaged(row.info.name, "its disk is gone")
        rows = self._layers.chain(row.layer)
        template = rows[-1].template
        settings, layers = self._parts.settings, [self._layers.path(each.id) for each in rows]
        base = await self._parts.base_disk(settings.home, manifest.info.disk)
        # The layers, and the whole disk of them.
        await settle_in_thread(
            check_room, layers, target.parent, copies=2, reserve=settings.disk_reserve
        )
        await write_image(
            layers,
            self._parts.places.template_disk(template) if template is not None else None,
            base,
            target,
        )

    def _whole_memory(self, manifest: Manifest, frozen: Frozen, scratch: Path) -> Manifest:
        """Write a memory that is over others into one file; return the manifest of that."""
        name, files = manifest.snapshot.name, [frozen.image, *frozen.below()]
        check_room(files, scratch, copies=1, reserve=self._parts.settings.disk_reserve)
        check_files(manifest, frozen)
        whole = dataclasses.replace(frozen, directory=scratch)
        try:
            join(frozen, whole)
        except HutchError as cause:
            if cause.code != "engine_failed":
                raise
            raise damaged(name, cause.message) from cause
        held = min(disk_use(whole.image), whole.memory)
        snapshot = dataclasses.replace(manifest.snapshot, memory_bytes=held)
        return dataclasses.replace(manifest, snapshot=snapshot, digests=digests_of(whole))

    # ---- in

    async def receive(self, pieces: AsyncIterator[bytes], directory: Path) -> Path:
        """Write a file that comes in pieces into a directory. Raises disk_full."""
        path = directory / UPLOAD
        with host_errors():
            with create_file(path) as file:
                async for piece in pieces:
                    await settle_in_thread(self._room)
                    await settle_in_thread(file.write, piece)
        return path

    async def unpack(self, path: Path, directory: Path, key: Key | None = None) -> Arrived:
        """Check a file and unpack it into its snapshot's directory.

        Raises wrong_key, snapshot_damaged, snapshot_incompatible, disk_full.
        """
        return await stop_in_thread(partial(self._unpack, path, directory, key))

    def _unpack(
        self, path: Path, directory: Path, key: Key | None, go_on: Callable[[], None]
    ) -> Arrived:
        with host_errors(), open(path, "rb") as opened:
            file = watched(opened, go_on)
            if not is_sealed(file):
                arrived = _unpack(Reader(file), directory, self._room)
                if not arrived.manifest.snapshot.encrypted:
                    check_useful(key, "the file")
                return arrived
            # Decrypted as it is read: nothing of it lies anywhere but what is unpacked.
            reader = Reader(unseal(file, key, "the file"), authentic=True)
            return _unpack(reader, directory, self._room)

    def settle_root(self, arrived: Arrived) -> tuple[str, RootFs]:
        """Return the image that its root is of here, and that root. Blocking. Raises OSError.

        The image of that id if its root says the same; else what came along, by an id of its own:
        a file from elsewhere never passes for an image.
        """
        images, image_id = self._parts.images, arrived.manifest.info.image_id
        found = images.rootfs_path(image_id)
        if found is not None and _same_root(found, arrived):
            return image_id, found
        image_id = images.adopt_rootfs(arrived.root, arrived.fstype, arrived.root_digest)
        found = images.rootfs_path(image_id)
        if found is None:
            raise error("image_not_found", "the root file system that came along was removed")
        return image_id, found

    def _room(self) -> None:
        places = self._parts.places
        if shutil.disk_usage(places.snapshots).free <= self._parts.settings.disk_reserve:
            raise error(
                "disk_full",
                f"{places.home}: there is no room for the snapshot",
                hint="free some space, for example with `hutch snapshot rm`",
            )


def at_home(manifest: Manifest, image_id: str, root: RootFs, base: Path) -> Manifest:
    """Return a manifest of another host as one of this host, by whose files it is restored.

    Blocking. Raises OSError.
    """
    needs = manifest.needs
    if needs is not None:
        # Their contents are the same: the root was compared, and of the base nothing shows.
        files = {"root": file_identity(root.path), "base": file_identity(base)}
        needs = dataclasses.replace(needs, files=files)
    return dataclasses.replace(
        manifest,
        snapshot=dataclasses.replace(manifest.snapshot, image_id=image_id, parent=None),
        info=dataclasses.replace(manifest.info, image_id=image_id),
        needs=needs,
    )


def _same_root(found: RootFs, arrived: Arrived) -> bool:
    return found.fstype == arrived.fstype and digest_of(found.path) == arrived.root_digest


def _members(
    manifest: Manifest, directory: Path, frozen: Frozen, files: Mapping[str, Path]
) -> Sequence[tuple[Member, Path]]:
    members = [(member_of(name, path), path) for name, path in files.items()]
    if SEALED in files:
        return members
    if manifest.snapshot.kind is SnapshotKind.FULL:
        check_files(manifest, frozen)
        for path in (frozen.state, frozen.image):
            size, digest = path.stat().st_size, manifest.digests[path.name]
            members.append((Member(path.name, size, digest), path))
    for path in sorted((directory / LOGS).glob("*.log")):
        if _LOG.fullmatch(name := f"{LOGS}/{path.name}"):
            members.append((member_of(name, path), path))
    return members


def _next(pieces: Iterator[bytes]) -> bytes | None:
    return next(pieces, None)


def _unpack(reader: Reader, directory: Path, room: Callable[[], None]) -> Arrived:
    manifest = believed(reader.manifest.get("snapshot"))
    fstype = reader.manifest.get("fstype")
    if fstype not in _FSTYPES:
        raise unreadable("its root file system is of no known kind")
    limits = _limits(manifest, directory)
    _check_members(reader.members, manifest, limits)
    digests: dict[str, str] = {}
    for member in reader.members:
        target = directory / (f"{member.name}.part" if member.name in (DISK, ROOT) else member.name)
        target.parent.mkdir(mode=0o700, exist_ok=True)
        reader.extract(member, target, room)
        digests[member.name] = member.digest
    reader.finish()
    disk = directory / f"{DISK}.part" if DISK in digests else None
    return Arrived(manifest, disk, directory / f"{ROOT}.part", digests[ROOT], fstype)


def _limits(manifest: Manifest, directory: Path) -> Mapping[str, range]:
    """Return the sizes that each member that must be there may have."""
    if manifest.snapshot.encrypted:
        return {SEALED: range(1, SIZE_MAX), ROOT: range(1, SIZE_MAX)}
    disk = manifest.info.disk
    limits = {DISK: disk_sizes(disk), ROOT: range(1, SIZE_MAX)}
    if manifest.snapshot.kind is SnapshotKind.FULL:
        frozen = Frozen(directory, memory := manifest.info.memory)
        limits |= {
            frozen.state.name: range(1, SMALL_MAX),
            frozen.image.name: range(memory, memory + 1),
        }
    return limits


def _check_members(
    members: Sequence[Member], manifest: Manifest, limits: Mapping[str, range]
) -> None:
    """Refuse names, sizes and digests that are not those of a snapshot. Raises snapshot_damaged."""
    if len(members) > _MEMBERS_MAX or limits.keys() - {member.name for member in members}:
        raise unreadable("its members are not those of a snapshot")
    for member in members:
        if member.name in limits:
            allowed = limits[member.name]
        elif SEALED not in limits and _LOG.fullmatch(member.name):
            allowed = range(SMALL_MAX)
        else:
            raise unreadable("it has a member that no snapshot has")
        if member.size not in allowed:
            raise unreadable(f"{member.name} has a size that cannot be")
        if member.name == DISK and member.size % 512:
            raise unreadable("its disk has a size that cannot be")
    others = limits.keys() - {DISK, ROOT, SEALED}
    given = {m.name: m.digest for m in members if m.name in others}
    if given != manifest.digests:
        raise unreadable("its manifest has other digests")

"""Images from a registry, by the OCI distribution API: from a reference to blobs in the layout.

It chooses the platform, checks every digest and size, and asks mirrors first. `transport` speaks
HTTP for it, `download` fetches the blobs; it does not touch the index.
"""

import asyncio
import hashlib
from collections.abc import Sequence
from pathlib import Path

from hutch.errors import HutchError, error
from hutch.images import config
from hutch.images.auth import read_bounded
from hutch.images.base import Report
from hutch.images.config import Descriptor
from hutch.images.download import Download
from hutch.images.flight import Flights, together
from hutch.images.layout import Layout, Pins
from hutch.images.progress import Meter
from hutch.images.reference import Reference
from hutch.images.transport import Retry, Transport, endpoints, make_client
from hutch.models import Progress
from hutch.settings import Settings
from hutch.tasks import in_thread, settle_in_thread

_ACCEPT = ", ".join((*config.MANIFEST_TYPES, *config.INDEX_TYPES))
_INDEX_DEPTH = 3
_BACKOFF = 0.5


class Registry:
    """Pulls images into a layout. `backoff` is the wait after a first failure, in seconds."""

    def __init__(
        self, settings: Settings, layout: Layout, partial: Path, *, backoff: float = _BACKOFF
    ) -> None:
        self._settings = settings
        self._layout = layout
        self._partial = partial
        self._backoff = backoff
        self._flights = Flights()

    async def pull(self, wanted: Reference, pins: Pins, report: Report) -> Descriptor:
        """Fetch an image for this machine and return its manifest's descriptor; the blobs are in
        the layout then.

        Raises image_not_found, registry_denied, registry_failed, digest_mismatch, no_platform,
        bad_image, disk_full.
        """
        report(Progress("pull", str(wanted), message="asking the registry"))
        async with make_client(self._settings) as client:
            transports = [
                Transport(endpoint, client, self._backoff)
                for endpoint in endpoints(wanted.registry, self._settings)
            ]
            descriptor, body = await self._manifest(wanted, transports)
            manifest = config.parse_manifest(body, str(wanted))
            await settle_in_thread(self._layout.add_body, body, descriptor, pins)
            slots = asyncio.Semaphore(max(1, self._settings.pull_parallel))
            blobs = {blob.digest: blob for blob in (manifest.config, *manifest.layers)}
            if manifest.config.size > config.CONFIG_LIMIT:
                raise config.bad_image(f"the config of {wanted} is too large")
            async with together() as group:
                for blob in blobs.values():
                    group.create_task(self._blob(wanted, blob, transports, pins, slots, report))
        return descriptor

    async def _manifest(
        self, wanted: Reference, transports: Sequence[Transport]
    ) -> tuple[Descriptor, bytes]:
        """Return the manifest of this machine's variant, through the index if there is one."""
        digest, size = wanted.digest, None
        for _ in range(_INDEX_DEPTH):
            kind, body = await self._fetch_manifest(wanted, digest or wanted.tag or "", transports)
            algorithm = digest.partition(":")[0] if digest else "sha256"
            found = f"{algorithm}:{hashlib.new(algorithm, body).hexdigest()}"
            if digest is not None and (found != digest or size not in (None, len(body))):
                raise error(
                    "digest_mismatch", f"the manifest of {wanted} is {found} instead of {digest}"
                )
            if kind not in config.INDEX_TYPES:
                return Descriptor(kind, found, len(body)), body
            chosen = config.choose_platform(body, str(wanted), config.host_architecture())
            digest, size = chosen.digest, chosen.size
        raise config.bad_image(f"{wanted} is an index of indexes of indexes")

    async def _fetch_manifest(
        self, wanted: Reference, name: str, transports: Sequence[Transport]
    ) -> tuple[str, bytes]:
        failure: HutchError | None = None
        for transport in transports:
            try:
                return await self._ask(transport, wanted, name)
            except HutchError as cause:
                failure = cause
        assert failure is not None
        if failure.code == "image_not_found":
            raise error(
                "image_not_found",
                f"no image {wanted}: neither here nor in its registry",
                hint="check the name and the tag",
            ) from failure
        raise failure

    async def _ask(self, transport: Transport, wanted: Reference, name: str) -> tuple[str, bytes]:
        path = f"{wanted.repository}/manifests/{name}"
        attempt = 0
        while True:
            try:
                async with transport.get(path, _scope(wanted), {"Accept": _ACCEPT}) as response:
                    try:
                        body = await read_bounded(response, config.MANIFEST_LIMIT)
                    except ValueError as cause:
                        raise config.bad_image(f"the manifest of {wanted} is too large") from cause
                kind = _kind(response.headers.get("content-type", ""), body, wanted)
                return kind, body
            except Retry as cause:
                await transport.pause(attempt, cause)
                attempt += 1

    async def _blob(
        self,
        wanted: Reference,
        blob: Descriptor,
        transports: Sequence[Transport],
        pins: Pins,
        slots: asyncio.Semaphore,
        report: Report,
    ) -> None:
        pins.add(blob.digest)
        async with self._flights.over(blob.digest):
            meter = Meter(report, "pull", blob.digest, blob.size)
            if await in_thread(self._layout.has, blob):
                meter.advance(blob.size)
                meter.finish("present")
                return
            download = Download(self._partial, blob, slots, meter)
            path = f"{wanted.repository}/blobs/{blob.digest}"
            await download.run(transports, path, _scope(wanted))
            await settle_in_thread(self._layout.adopt, download.path, blob)
            download.finish()
            meter.finish()


def _scope(wanted: Reference) -> str:
    return f"repository:{wanted.repository}:pull"


def _kind(content_type: str, body: bytes, wanted: Reference) -> str:
    """Return a manifest's media type: from the answer, else (some servers are lax) from the
    manifest itself.
    """
    value = config.parse_object(body, f"the manifest of {wanted}")
    known = (*config.MANIFEST_TYPES, *config.INDEX_TYPES)
    for kind in (value.get("mediaType"), content_type.partition(";")[0].strip()):
        if kind in known:
            return str(kind)
    if value.get("schemaVersion") == 1:
        raise config.bad_image(
            f"{wanted} has a manifest of schema version 1, which registries have given up"
        )
    return config.OCI_INDEX if "manifests" in value else config.OCI_MANIFEST

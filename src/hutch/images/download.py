"""One blob from a registry: in parallel ranges, resumable after a cut, a cancellation or a kill,
verified at the end.

In `partial/` lies the unfinished file beside a record of the ranges that are done. What the record
claims is only trusted as far as the digest of the whole confirms it.
"""

import asyncio
import contextlib
import json
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from hutch.errors import HutchError
from hutch.images.config import Descriptor
from hutch.images.flight import together
from hutch.images.layout import check_digest, file_digest, write_atomic
from hutch.images.progress import Meter, in_metered_thread
from hutch.images.rootfs import disk_full
from hutch.images.transport import Retry, Transport
from hutch.tasks import settle_in_thread

RANGE = 8 << 20
_CHUNK = 512 << 10
_PROGRESS = 64 << 10  # bytes that make an attempt count as a success on the way
_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)")


@dataclass(slots=True)
class Ranges:
    """The finished parts of a blob: sorted, disjoint half-open intervals."""

    size: int
    done: list[tuple[int, int]] = field(default_factory=list)

    def add(self, start: int, end: int) -> None:
        """Count an interval as finished."""
        merged: list[tuple[int, int]] = []
        for low, high in sorted([*self.done, (start, end)]):
            if merged and low <= merged[-1][1]:
                merged[-1] = (merged[-1][0], max(high, merged[-1][1]))
            elif low < high:
                merged.append((low, high))
        self.done = merged

    def missing(self, step: int) -> list[tuple[int, int]]:
        """Return what is not finished, in pieces of at most `step` bytes."""
        pieces: list[tuple[int, int]] = []
        at = 0
        for low, high in [*self.done, (self.size, self.size)]:
            pieces += [(start, min(start + step, low)) for start in range(at, low, step)]
            at = high
        return pieces

    @property
    def total(self) -> int:
        """The finished bytes."""
        return sum(high - low for low, high in self.done)


class _NoRanges(Exception):
    """The server sends the whole blob where a part was asked for."""


class Download:
    """The download of one blob. `slots` bounds the requests of all downloads together."""

    def __init__(
        self, directory: Path, descriptor: Descriptor, slots: asyncio.Semaphore, meter: Meter
    ) -> None:
        stem = descriptor.digest.replace(":", "-")
        self.path = directory / f"{stem}.part"
        self._record = directory / f"{stem}.json"
        self._descriptor = descriptor
        self._slots = slots
        self._meter = meter
        self._ranges = Ranges(descriptor.size)
        self._file = -1

    async def run(self, transports: Sequence[Transport], path: str, scope: str) -> None:
        """Fetch the blob and verify it; `path` is what the registry calls it, `transports` are
        asked in order.

        Afterwards `self.path` holds it. Raises ImageError (registry_*, digest_mismatch), NotFound,
        NoCapacity (disk_full). What was fetched stays for the next time, unless its digest is
        wrong.
        """
        for again in (True, False):
            try:
                await settle_in_thread(self._open)
                await self._fetch_from_any(transports, path, scope)
            finally:
                self._close()
            try:
                await in_metered_thread(Meter.quiet(self._meter), self._verify)
                return
            except HutchError:
                # A record that a crash has left ahead of its data looks like this too: once more,
                # from nothing.
                self.discard()
                if not again:
                    raise

    def discard(self) -> None:
        """Remove the unfinished download."""
        self.path.unlink(missing_ok=True)
        self._record.unlink(missing_ok=True)

    def finish(self) -> None:
        """Forget the record, once the file has been moved to its place."""
        self._record.unlink(missing_ok=True)

    async def _fetch_from_any(self, transports: Sequence[Transport], path: str, scope: str) -> None:
        for index, transport in enumerate(transports):
            try:
                await self._fetch(transport, path, scope)
                return
            except HutchError:
                if index + 1 == len(transports):
                    raise

    async def _fetch(self, transport: Transport, path: str, scope: str) -> None:
        pieces = self._ranges.missing(RANGE)
        try:
            # The first piece goes alone: it finds out about credentials and whether the server
            # knows ranges.
            for start, end in pieces[:1]:
                await self._piece(transport, path, scope, start, end)
            async with together() as group:
                for start, end in pieces[1:]:
                    group.create_task(self._piece(transport, path, scope, start, end))
        except _NoRanges:
            self._meter.advance(-self._ranges.total)
            self._ranges.done.clear()
            await self._piece(transport, path, scope, 0, self._descriptor.size, whole=True)

    async def _piece(
        self,
        transport: Transport,
        path: str,
        scope: str,
        start: int,
        end: int,
        *,
        whole: bool = False,
    ) -> None:
        attempt = 0
        at = start
        while at < end:
            if whole:
                at = start
            before = at
            try:
                async with self._slots:
                    headers = {} if whole else {"Range": f"bytes={at}-{end - 1}"}
                    async with transport.get(path, scope, headers) as response:
                        if not whole:
                            self._check_range(response.status_code, response.headers, at, end)
                        async for chunk in response.aiter_raw(_CHUNK):
                            if at + len(chunk) > end:
                                raise Retry("it sends more bytes than the image says")
                            await settle_in_thread(_write, self._file, chunk, at)
                            self._ranges.add(at, at + len(chunk))
                            at += len(chunk)
                            self._meter.advance(len(chunk))
                if at < end:
                    raise Retry("it ends the answer too early")
            except Retry as cause:
                if whole:
                    self._meter.advance(before - at)
                    self._ranges.done.clear()
                elif at - before >= _PROGRESS:
                    attempt = 0
                self._save()
                await transport.pause(attempt, cause)
                attempt += 1
        if not whole:
            self._save()

    def _check_range(self, status: int, headers: Mapping[str, str], start: int, end: int) -> None:
        if status == 200 and (start, end) == (0, self._descriptor.size):
            return
        if status == 200:
            raise _NoRanges
        text = headers.get("content-range", "")
        match = _CONTENT_RANGE.fullmatch(text)
        if not match or (int(match[1]), int(match[2])) != (start, end - 1):
            raise Retry(f"it answers with the range {text!r} instead of {start}-{end - 1}")

    def _open(self) -> None:
        """Open the unfinished file and read its record; begin anew when they do not fit."""
        self._ranges = Ranges(self._descriptor.size)
        if self.path.is_file() and self.path.stat().st_size == self._descriptor.size:
            with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
                record = json.loads(self._record.read_bytes())
                for low, high in record["done"]:
                    if 0 <= low < high <= self._descriptor.size:
                        self._ranges.add(int(low), int(high))
        needed = self._descriptor.size - self._ranges.total
        if needed > shutil.disk_usage(self.path.parent).free:
            raise disk_full(self.path.parent)
        self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        os.ftruncate(self._file, self._descriptor.size)
        self._meter.advance(self._ranges.total - self._meter.done)

    def _close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
            self._save()

    def _save(self) -> None:
        with contextlib.suppress(OSError):  # without its record, a range is fetched again
            write_atomic(self._record, json.dumps({"done": self._ranges.done}).encode())

    def _verify(self, meter: Meter) -> None:
        found = file_digest(self.path, self._descriptor.digest, meter.advance)
        check_digest(self._descriptor.digest, found)


def _write(file: int, chunk: bytes, at: int) -> None:
    while chunk:
        count = os.pwrite(file, chunk, at)
        chunk, at = chunk[count:], at + count

"""What the network has decided for each sandbox, on disk: lines of JSON, in files that are rotated.

Lines are written in the background, many at once, and what comes faster than that is dropped: a
guest may have anything decided as often as it likes. Denials become events, a few of them. It must
not know what is decided, nor how.
"""

import asyncio
import contextlib
import dataclasses
import json
import logging
import os
import time
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Final

from hutch.errors import HutchError
from hutch.models import from_json, to_json
from hutch.network.base import Network
from hutch.networking import NetworkRecord
from hutch.service.parts import Parts
from hutch.service.registry import Entry, Registry
from hutch.tasks import Scope, in_thread, settle_in_thread

log = logging.getLogger(__name__)

PENDING_MAX: Final = 1024
"""Records of one sandbox that wait to be written; what comes beyond that is counted and dropped."""

EVENT_SECONDS: Final = 1.0
"""At most one `network.denied` of a sandbox in that many seconds."""

_LINE_MAX: Final = 64 << 10
_BLOCK: Final = 1 << 18


class NetworkLogs:
    """The network logs of one host's sandboxes."""

    def __init__(
        self, parts: Parts, registry: Registry, owner: Callable[[str], str | None]
    ) -> None:
        """`owner` returns the sandbox that a record's id stands for, while it has a VM."""
        self._parts = parts
        self._registry = registry
        self._owner = owner
        self._feeds: dict[str, _Feed] = {}
        self._scope = Scope("network logs")
        self._arrived = asyncio.Event()

    def open(self, network: Network) -> None:
        """Write what is decided from now on."""
        self._scope.start("records", self._listen(network))
        self._scope.start("writer", self._write())

    async def close(self) -> None:
        """End it, when what waits is written; whoever follows a log is at its end."""
        await self._scope.close()
        await self._flush()
        for feed in self._feeds.values():
            feed.end()

    async def forget(self, sandbox_id: str) -> None:
        """Let go of a sandbox that was removed."""
        if (feed := self._feeds.pop(sandbox_id, None)) is not None:
            feed.end()

    async def read(
        self, entry: Entry, *, since: int | None, tail: int | None, follow: bool
    ) -> AsyncIterator[NetworkRecord]:
        """Yield what is kept of a sandbox's log, oldest first, then with `follow` what comes.

        Only from the number `since` on, and the last `tail` of what is there.
        """
        feed = self._feed(entry.info.id)
        await self._flush()
        reader = _Reader(feed.path, self._parts.settings.log_files)
        try:
            bell = feed.bell
            kept = await in_thread(reader.read)
            for record in kept if tail is None else kept[max(0, len(kept) - tail) :]:
                if since is None or record.number >= since:
                    yield record
            while follow and not feed.ended:
                await bell.wait()
                bell = feed.bell
                for record in await in_thread(reader.read):
                    if since is None or record.number >= since:
                        yield record
        finally:
            reader.close()

    # ---- writing

    async def _listen(self, network: Network) -> None:
        async for record in network.records():
            sandbox_id = self._owner(record.sandbox_id) or record.sandbox_id
            entry = self._registry.by_id(sandbox_id)
            if entry is not None:
                feed = self._feed(sandbox_id)
                feed.take(record)
                self._tell(entry, feed, record)
                self._arrived.set()

    def _feed(self, sandbox_id: str) -> "_Feed":
        feed = self._feeds.get(sandbox_id)
        if feed is None:
            path = self._parts.places.network_log(sandbox_id)
            feed = self._feeds[sandbox_id] = _Feed(sandbox_id, path)
        return feed

    def _tell(self, entry: Entry, feed: "_Feed", record: NetworkRecord) -> None:
        if record.allowed:
            return
        feed.denied += 1
        now = time.monotonic()
        if feed.told_at is not None and now - feed.told_at < EVENT_SECONDS:
            return
        count, feed.denied, feed.told_at = feed.denied, 0, now
        told = to_json(record)
        keys = ("layer", "reason", "name", "address", "port", "rule", "text")
        fields = {key: told[key] for key in keys if told[key] is not None}
        # `subject` and `name` are the sandbox's.
        fields["target"] = fields.pop("name", None)
        self._parts.events.emit(
            "network.denied", entry.info.id, entry.info.name, count=count, **fields
        )

    async def _write(self) -> None:
        while True:
            await self._arrived.wait()
            self._arrived.clear()
            await self._flush()

    async def _flush(self) -> None:
        settings = self._parts.settings
        for feed in list(self._feeds.values()):
            if feed.pending:
                async with feed.lock:
                    pending, feed.pending = feed.pending, []
                    with contextlib.suppress(HutchError):
                        await settle_in_thread(
                            feed.write, pending, size=settings.log_size, files=settings.log_files
                        )
                feed.ring()


class _Feed:
    """The log of one sandbox: what waits to be written, and a bell for those who follow it."""

    def __init__(self, sandbox_id: str, path: Path) -> None:
        self.path = path
        self.pending: list[NetworkRecord] = []
        self.lock = asyncio.Lock()
        self.bell = asyncio.Event()
        self.ended = False
        self.denied = 0
        self.told_at: float | None = None
        self._sandbox_id = sandbox_id
        self._last: NetworkRecord | None = None
        self._looked = False

    def take(self, record: NetworkRecord) -> None:
        if len(self.pending) < PENDING_MAX:
            self.pending.append(record)

    def ring(self) -> None:
        self.bell.set()
        self.bell = asyncio.Event()

    def end(self) -> None:
        self.ended = True
        self.ring()

    def write(self, records: Sequence[NetworkRecord], *, size: int, files: int) -> None:
        """Append records, numbered on from the last one. Blocking; what fails is a hole.

        The first after a start of the daemon may have been told to the one before.
        """
        if not self._looked:
            self._looked, self._last = True, last_record(self.path)
            if (last := self._last) is not None:
                records = [each for each in records if each.at > last.at]
        number, lines = 0 if self._last is None else self._last.number, []
        for record in records:
            number += 1
            record = dataclasses.replace(record, number=number, sandbox_id=self._sandbox_id)
            lines.append(json.dumps(to_json(record), separators=(",", ":")).encode() + b"\n")
            self._last = record
        try:
            if lines:
                _append(self.path, b"".join(lines), size=size, files=files)
        except FileNotFoundError:
            return  # the sandbox was just removed
        except OSError as failure:
            log.warning("the network log %s has a hole: %s", self.path, failure)


def _append(path: Path, data: bytes, *, size: int, files: int) -> None:
    flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    fd = os.open(path, flags, 0o600)
    try:
        end = os.fstat(fd).st_size
        if end and end + len(data) > size:
            for number in range(files - 1, 0, -1):
                with contextlib.suppress(FileNotFoundError):
                    os.replace(_rotated(path, number), _rotated(path, number + 1))
            os.replace(path, _rotated(path, 1))
            os.close(fd)
            fd, end = os.open(path, flags, 0o600), 0
        if end and os.pread(fd, 1, end - 1) != b"\n":
            data = b"\n" + data  # a crash has cut the last line off
        os.write(fd, data)
    finally:
        os.close(fd)


def _rotated(path: Path, number: int) -> Path:
    return path.with_name(f"{path.name}.{number}")


def last_record(path: Path) -> NetworkRecord | None:
    """Return the last record of a log, if there is one. Blocking."""
    for each in (path, _rotated(path, 1)):
        with contextlib.suppress(OSError), open(each, "rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _LINE_MAX))
            if records := _parsed(file.read()):
                return records[-1]
    return None


class _Reader:
    """A place in a log; it goes on where it was, also when the files were rotated since."""

    def __init__(self, path: Path, files: int) -> None:
        self._path = path
        self._old = [_rotated(path, number) for number in range(files, 0, -1)]
        self._fd = -1
        self._rest = b""

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def read(self) -> list[NetworkRecord]:
        """Return what was written since. Blocking."""
        found: list[NetworkRecord] = []
        for path in self._old:
            with contextlib.suppress(FileNotFoundError):
                found += _parsed(path.read_bytes())
        self._old = []
        while self._fd >= 0 or self._open():
            while block := os.read(self._fd, _BLOCK):
                whole, newline, rest = (self._rest + block).rpartition(b"\n")
                self._rest = rest if newline else self._rest + block
                found += _parsed(whole + newline)
            if self._is_newest():
                break
            self.close()
            self._rest = b""
        return found

    def _open(self) -> bool:
        try:
            self._fd = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            return False
        return True

    def _is_newest(self) -> bool:
        try:
            return os.stat(self._path).st_ino == os.fstat(self._fd).st_ino
        except FileNotFoundError:
            return True


def _parsed(data: bytes) -> list[NetworkRecord]:
    """Return the records of whole lines; others, of a crash or an older Hutch, are left out."""
    found = []
    for line in data.split(b"\n"):
        with contextlib.suppress(ValueError, TypeError, KeyError):
            found.append(from_json(NetworkRecord, json.loads(line)))
    return found

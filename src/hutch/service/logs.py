"""The logs of one sandbox: those being written, and reading any of them, live or not.

The files are `logfile.py`'s; this wakes their readers. Console logs belong to the engine and are
only read here.
"""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Mapping
from pathlib import Path
from typing import cast

from hutch.engine.base import Machine
from hutch.errors import error
from hutch.service import logfile
from hutch.service.logfile import LogReader, LogWriter
from hutch.service.values import LogQuery, LogRecord
from hutch.tasks import in_thread

CONSOLE_CHANNEL = 3


class Log:
    """A log being written: its writer, and a bell for those who follow it."""

    def __init__(self, directory: Path, name: str, *, size: int, files: int) -> None:
        self.directory = directory
        self.name = name
        self._writer = LogWriter(directory, name, size=size, files=files)
        self._rung = asyncio.Event()
        self.closed = False

    @property
    def ends(self) -> dict[int, int]:
        """For each channel the offset after the last byte that is on record."""
        return dict(self._writer.ends)

    async def open(self, begin: Mapping[int, int] | None = None, *, fresh: bool = False) -> None:
        """Open the newest file; `fresh` notes a new run of the program."""
        await in_thread(self._writer.open, begin)
        if fresh:
            await in_thread(self._writer.begin_run)

    async def append(self, channel: int, offset: int, data: bytes, time_ns: int) -> None:
        """Write bytes and wake the followers."""
        await in_thread(self._writer.append, channel, offset, data, time_ns)
        self._ring()

    def _ring(self) -> None:
        self._rung.set()
        self._rung = asyncio.Event()

    @property
    def bell(self) -> asyncio.Event:
        """An event that is set by the next append or by the end: take it before you read."""
        return self._rung

    async def close(self) -> None:
        """End the log: followers read to its end and stop."""
        self.closed = True
        self._ring()
        await in_thread(self._writer.close)


async def read_log(
    directory: Path, query: LogQuery, live: Log | None
) -> AsyncGenerator[LogRecord, None]:
    """Yield the records that `query` asks for. Raises exec_not_found when there is no such log."""
    if not await in_thread(logfile.log_files, directory, query.exec_id) and live is None:
        if query.exec_id == "main":
            return
        raise error(
            "exec_not_found",
            f"there is no log of exec {query.exec_id}",
            hint="only the main process and detached execs have one",
        )
    reader = LogReader(directory, query.exec_id)
    try:
        if query.tail is not None:
            await in_thread(reader.seek_tail, query.tail)
        while True:
            bell, ended = (live.bell, live.closed) if live is not None else (None, True)
            batch = await in_thread(reader.batch)
            for record, _ in batch:
                if query.until_ns is not None and record.time_ns > query.until_ns:
                    return
                if query.since_ns is None or record.time_ns >= query.since_ns:
                    yield record
            if not batch:
                if not query.follow or ended or bell is None:
                    return
                await bell.wait()
    finally:
        reader.close()


async def read_console(
    path: Path, files: int, query: LogQuery, machine: Machine | None
) -> AsyncGenerator[LogRecord, None]:
    """Yield the console's text, and with `follow` what a running machine adds to it."""
    sent = 0
    first = True
    async with contextlib.aclosing(_signs(machine if query.follow else None)) as signs:
        async for _ in signs:
            parts = await in_thread(logfile.read_console, path, files)
            size = sum(len(data) for _, data in parts)
            if first and query.tail is not None:
                text = logfile.tail_lines(b"".join(data for _, data in parts), query.tail)
                sent = size - len(text)
            elif size < sent:
                sent = 0  # rotated: what is here now is new
            first = False
            place = 0
            for time_ns, data in parts:
                fresh = data[max(sent - place, 0) :]
                place += len(data)
                if fresh and (query.since_ns is None or time_ns >= query.since_ns):
                    yield LogRecord(CONSOLE_CHANNEL, time_ns, fresh)
            sent = size


async def _signs(machine: Machine | None) -> AsyncGenerator[int, None]:
    """Yield once, and then whenever the machine's console has grown."""
    yield 0
    if machine is not None:
        source = cast(AsyncGenerator[int, None], machine.console_progress())
        async with contextlib.aclosing(source) as progress:
            async for total in progress:
                yield total

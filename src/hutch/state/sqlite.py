"""The `Store` in one SQLite file: WAL, one writer, numbered migrations.

All statements run in worker threads under one lock, so the connection is never used by two at once.
It must not know what the states mean; the counterpart is `base.py`.
"""

import contextlib
import dataclasses
import json
import shutil
import sqlite3
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

from hutch.errors import HutchError, error
from hutch.models import SandboxInfo, SandboxSpec, SandboxState, from_json, to_json
from hutch.state.base import LayerRow, SandboxRow
from hutch.state.disks import DiskRecords, insert_layer
from hutch.state.pools import PoolRecords
from hutch.tasks import in_thread, settle_in_thread

T = TypeVar("T")

BUSY_SECONDS = 5.0
"""How long to wait for another process (a backup, a curious user) that holds the file."""

_LEAST_ROOM = 256 << 10
"""Bytes that the write-ahead log and its index take at least."""

_COLUMNS = "id, name, slot, state, generation, spec, info, machine, template, layer, pool"


def migrations() -> list[tuple[int, str]]:
    """Return the numbered schema changes that this version carries, in order."""
    folder = resources.files("hutch.state") / "migrations"
    scripts = [item for item in folder.iterdir() if item.name.endswith(".sql")]
    return sorted((int(item.name.partition("_")[0]), item.read_text("utf-8")) for item in scripts)


class SqliteStore(DiskRecords, PoolRecords):
    """The records of one daemon, in the file `path`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._connection: sqlite3.Connection | None = None

    async def open(self) -> None:
        """Open the file, making it when it is not there, and migrate it to the newest schema.

        Raises daemon_version when a newer Hutch has written it, disk_full.
        """
        await in_thread(self._open)

    async def close(self) -> None:
        """Close the file, after the call under way."""
        await in_thread(self._close)

    async def add_sandbox(
        self,
        spec: SandboxSpec,
        info: SandboxInfo,
        *,
        slots: int,
        layer: LayerRow | None = None,
        generation: int = 0,
    ) -> SandboxRow:
        """Record a new sandbox with the lowest free slot. Raises name_taken, no_capacity."""

        def work(db: sqlite3.Connection) -> SandboxRow:
            _check_name(db, info.name)
            row = SandboxRow(
                spec,
                info,
                _free_slot(db, slots),
                generation=generation,
                layer=None if layer is None else layer.id,
            )
            if layer is not None:
                insert_layer(db, layer)
            _insert(db, row)
            return row

        return await self._call(work)

    async def sandboxes(self) -> Sequence[SandboxRow]:
        """Return all rows, oldest first."""

        def work(db: sqlite3.Connection) -> list[SandboxRow]:
            found = db.execute(
                f"SELECT {_COLUMNS} FROM sandboxes WHERE pool IS NULL ORDER BY number"
            )
            return [_row(values) for values in found]

        return await self._call(work)

    async def add_member(self, info: SandboxInfo, pool_id: str, *, slots: int) -> SandboxRow:
        """Record a new member of a pool with the lowest free slot. Raises no_capacity."""

        def work(db: sqlite3.Connection) -> SandboxRow:
            row = SandboxRow(SandboxSpec(info.image), info, _free_slot(db, slots), pool=pool_id)
            _insert(db, row)
            return row

        return await self._call(work)

    async def members(self) -> Sequence[SandboxRow]:
        """Return the members of all pools, oldest first."""

        def work(db: sqlite3.Connection) -> list[SandboxRow]:
            found = db.execute(
                f"SELECT {_COLUMNS} FROM sandboxes WHERE pool IS NOT NULL ORDER BY number"
            )
            return [_row(values) for values in found]

        return await self._call(work)

    async def claim_member(
        self, spec: SandboxSpec, info: SandboxInfo, machine: Mapping[str, Any]
    ) -> SandboxRow:
        """Make a member the sandbox `info`. Raises name_taken, sandbox_not_found."""

        def work(db: sqlite3.Connection) -> SandboxRow:
            member = _find(db, info.id)
            if member.pool is None:
                raise error("sandbox_not_found", f"{info.id} is no member of a pool")
            _check_name(db, info.name)
            # Anew rather than changed: rows are in the order in which sandboxes were asked for.
            db.execute("DELETE FROM sandboxes WHERE id = ?", (info.id,))
            row = dataclasses.replace(
                member,
                spec=spec,
                info=dataclasses.replace(info, template=member.info.template),
                machine=machine,
                pool=None,
            )
            _insert(db, row)
            return row

        return await self._call(work)

    async def move(
        self,
        sandbox_id: str,
        expected: Sequence[SandboxState],
        state: SandboxState,
        *,
        vm: Mapping[str, Any] | None = None,
        **changes: Any,
    ) -> SandboxRow:
        """Change state and `info` in one step. Raises wrong_state, sandbox_not_found."""
        return await self._change(sandbox_id, lambda row: _moved(row, expected, state, changes, vm))

    async def amend(self, sandbox_id: str, **changes: Any) -> SandboxRow:
        """Change fields of `info`. Raises sandbox_not_found."""

        def change(row: SandboxRow) -> SandboxRow:
            return dataclasses.replace(row, info=dataclasses.replace(row.info, **changes))

        return await self._change(sandbox_id, change)

    async def begin_start(
        self, sandbox_id: str, expected: Sequence[SandboxState], **changes: Any
    ) -> SandboxRow:
        """Move to STARTING and count up the generation. Raises as `move`."""

        def change(row: SandboxRow) -> SandboxRow:
            row = _moved(row, expected, SandboxState.STARTING, changes)
            return dataclasses.replace(row, generation=row.generation + 1)

        return await self._change(sandbox_id, change)

    async def set_machine(self, sandbox_id: str, machine: Mapping[str, Any] | None) -> SandboxRow:
        """Record how to find the VM again, or None once it is gone."""
        return await self._change(sandbox_id, lambda row: dataclasses.replace(row, machine=machine))

    async def put_layer(
        self, sandbox_id: str, layer: LayerRow, *, template: str | None
    ) -> SandboxRow:
        """Record a new layer as the uppermost one of a sandbox. Raises sandbox_not_found."""

        def work(db: sqlite3.Connection) -> SandboxRow:
            row = _find(db, sandbox_id)
            info = dataclasses.replace(row.info, template=template)
            row = dataclasses.replace(row, info=info, layer=layer.id)
            insert_layer(db, layer)
            _update(db, row)
            return row

        return await self._call(work)

    async def set_layer(self, sandbox_id: str, layer_id: str | None) -> SandboxRow:
        """Record which layer is the uppermost one of a sandbox. Raises sandbox_not_found."""
        return await self._change(sandbox_id, lambda row: dataclasses.replace(row, layer=layer_id))

    async def put_back(
        self,
        sandbox_id: str,
        expected: Sequence[SandboxState],
        state: SandboxState,
        *,
        machine: Mapping[str, Any] | None,
        layer: str | None,
        vm: Mapping[str, Any] | None = None,
        **changes: Any,
    ) -> SandboxRow:
        """Change VM, disk, state and `info` in one step. Raises wrong_state, sandbox_not_found."""

        def change(row: SandboxRow) -> SandboxRow:
            row = _moved(row, expected, state, changes, vm)
            return dataclasses.replace(row, machine=machine, layer=layer)

        return await self._change(sandbox_id, change)

    async def next_generation(self, sandbox_id: str) -> SandboxRow:
        """Count up the generation."""
        return await self._change(
            sandbox_id, lambda row: dataclasses.replace(row, generation=row.generation + 1)
        )

    async def rename(self, sandbox_id: str, name: str) -> SandboxRow:
        """Give a sandbox another name. Raises name_taken, sandbox_not_found."""

        def work(db: sqlite3.Connection) -> SandboxRow:
            row = _find(db, sandbox_id)
            if row.info.name != name:
                _check_name(db, name)
            row = dataclasses.replace(row, info=dataclasses.replace(row.info, name=name))
            _update(db, row)
            return row

        return await self._call(work)

    async def remove_sandbox(self, sandbox_id: str) -> None:
        """Forget a sandbox, if it is on record."""

        def work(db: sqlite3.Connection) -> None:
            db.execute("DELETE FROM sandboxes WHERE id = ?", (sandbox_id,))

        await self._call(work)

    # ---- the connection

    async def _change(
        self, sandbox_id: str, change: Callable[[SandboxRow], SandboxRow]
    ) -> SandboxRow:
        def work(db: sqlite3.Connection) -> SandboxRow:
            row = change(_find(db, sandbox_id))
            _update(db, row)
            return row

        return await self._call(work)

    async def _call(self, work: Callable[[sqlite3.Connection], T]) -> T:
        return await settle_in_thread(self._transact, work)

    def _transact(self, work: Callable[[sqlite3.Connection], T]) -> T:
        with self._lock, _translated(self._path):
            if self._connection is None:
                raise error("internal", f"the records in {self._path} are not open")
            with self._connection as db:
                db.execute("BEGIN IMMEDIATE")
                return work(db)

    def _open(self) -> None:
        with self._lock, _translated(self._path):
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            db = sqlite3.connect(
                self._path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False
            )
            try:
                db.execute("PRAGMA journal_mode = WAL")
                # NORMAL may lose the last rows in a power cut, which ends every VM as well.
                db.execute("PRAGMA synchronous = NORMAL")
                self._migrate(db)
            except BaseException:
                db.close()
                raise
            self._path.chmod(0o600)
            self._connection = db

    def _migrate(self, db: sqlite3.Connection) -> None:
        (version,) = db.execute("PRAGMA user_version").fetchone()
        steps = migrations()
        if version > steps[-1][0]:
            raise error(
                "daemon_version",
                f"{self._path} was written by a newer Hutch (schema {version})",
                hint="run the Hutch version that wrote it, or a newer one",
            )
        for number, script in steps:
            if number > version:
                db.executescript(f"BEGIN;\n{script}\nPRAGMA user_version = {number};\nCOMMIT;")

    def _close(self) -> None:
        with self._lock:
            if self._connection is not None:
                self._connection.close()
                self._connection = None


@contextlib.contextmanager
def _translated(path: Path) -> Iterator[None]:
    """Turn SQLite's errors into ours."""
    try:
        yield
    except sqlite3.Error as cause:
        raise _translate(path, cause) from cause


def _translate(path: Path, cause: sqlite3.Error) -> HutchError:
    primary = getattr(cause, "sqlite_errorcode", 0) & 0xFF
    # Without room for its shared memory or its log, SQLite speaks of an I/O error.
    no_room = primary == sqlite3.SQLITE_IOERR and shutil.disk_usage(path.parent).free < _LEAST_ROOM
    if primary == sqlite3.SQLITE_FULL or no_room:
        return error(
            "disk_full",
            f"the file system of {path} is full",
            hint="free some space, for example with `hutch image prune` or `hutch rm`",
        )
    if primary in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return error(
            "internal",
            f"{path} has been locked by another program for {BUSY_SECONDS:g} s",
            hint="end the program that holds it open",
        )
    return error("internal", f"{path}: {cause}")


def _check_name(db: sqlite3.Connection, name: str) -> None:
    if db.execute("SELECT 1 FROM sandboxes WHERE name = ?", (name,)).fetchone():
        raise error(
            "name_taken",
            f"there is already a sandbox named {name}",
            hint=f"choose another name, or remove it with `hutch rm {name}`",
        )


def _moved(
    row: SandboxRow,
    expected: Sequence[SandboxState],
    state: SandboxState,
    changes: Mapping[str, Any],
    vm: Mapping[str, Any] | None = None,
) -> SandboxRow:
    other = vm is not None and row.machine != json.loads(json.dumps(vm))
    if other or row.info.state not in expected:
        raise error(
            "wrong_state",
            f"sandbox {row.info.name} is {row.info.state}" + (" in another VM" if other else ""),
            details={"state": row.info.state.value},
        )
    return dataclasses.replace(row, info=dataclasses.replace(row.info, state=state, **changes))


def _free_slot(db: sqlite3.Connection, slots: int) -> int:
    taken = {slot for (slot,) in db.execute("SELECT slot FROM sandboxes")}
    slot = next((number for number in range(slots) if number not in taken), None)
    if slot is None:
        raise error(
            "no_capacity",
            f"all {slots} places for sandboxes on this host are taken",
            hint="remove sandboxes with `hutch rm`, or raise the setting uid_count",
        )
    return slot


def _insert(db: sqlite3.Connection, row: SandboxRow) -> None:
    values = _values(row)
    marks = ", ".join("?" * len(values))
    db.execute(f"INSERT INTO sandboxes ({_COLUMNS}) VALUES ({marks})", values)


def _find(db: sqlite3.Connection, sandbox_id: str) -> SandboxRow:
    found = db.execute(f"SELECT {_COLUMNS} FROM sandboxes WHERE id = ?", (sandbox_id,)).fetchone()
    if found is None:
        raise error("sandbox_not_found", f"there is no sandbox {sandbox_id}")
    return _row(found)


def _update(db: sqlite3.Connection, row: SandboxRow) -> None:
    db.execute(
        "UPDATE sandboxes SET id = ?, name = ?, slot = ?, state = ?, generation = ?, spec = ?,"
        " info = ?, machine = ?, template = ?, layer = ?, pool = ? WHERE id = ?",
        (*_values(row), row.info.id),
    )


def _values(row: SandboxRow) -> tuple[Any, ...]:
    return (
        row.info.id,
        row.info.name,
        row.slot,
        row.info.state.value,
        row.generation,
        json.dumps(to_json(row.spec)),
        json.dumps(to_json(row.info)),
        None if row.machine is None else json.dumps(dict(row.machine)),
        row.info.template,
        row.layer,
        row.pool,
    )


def _row(values: tuple[Any, ...]) -> SandboxRow:
    _, name, slot, state, generation, spec, info, machine, template, layer, pool = values
    kept = from_json(SandboxInfo, json.loads(info))
    return SandboxRow(
        from_json(SandboxSpec, json.loads(spec)),
        dataclasses.replace(kept, name=name, state=SandboxState(state), template=template),
        slot,
        None if machine is None else json.loads(machine),
        generation,
        layer,
        pool,
    )

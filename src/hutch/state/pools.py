"""The records of pools: a part of `SqliteStore`, in the same file.

Their members are rows of sandboxes that nobody has asked for yet; what is done with those is with
the sandboxes' other calls. It must not know what a pool is for.
"""

import sqlite3
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import TypeVar

from hutch.state.base import PoolRow

T = TypeVar("T")


class PoolRecords(ABC):
    """The calls of `Store` for pools themselves."""

    @abstractmethod
    async def _call(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Do the work in a transaction of its own."""

    async def pools(self) -> Sequence[PoolRow]:
        """Return all rows, oldest first."""

        def work(db: sqlite3.Connection) -> list[PoolRow]:
            found = db.execute(
                "SELECT id, image, cpus, memory, size, created_at FROM pools ORDER BY number"
            )
            return [PoolRow(*values) for values in found]

        return await self._call(work)

    async def put_pool(self, pool: PoolRow) -> None:
        """Record a pool, or another size of one that is on record."""

        def work(db: sqlite3.Connection) -> None:
            db.execute(
                "INSERT INTO pools (id, image, cpus, memory, size, created_at)"
                " VALUES (?, ?, ?, ?, ?, ?)"
                " ON CONFLICT (id) DO UPDATE SET size = excluded.size",
                (pool.id, pool.image, pool.cpus, pool.memory, pool.size, pool.created_at),
            )

        await self._call(work)

    async def remove_pool(self, pool_id: str) -> None:
        """Forget a pool, if it is on record."""

        def work(db: sqlite3.Connection) -> None:
            db.execute("DELETE FROM pools WHERE id = ?", (pool_id,))

        await self._call(work)

"""Answers that are remembered by their TTL, bounded in number and in memory.

A zone's owner decides how large its answers are, and a guest how many of them it asks for: what is
large is not remembered at all. It knows nothing of sockets, guests or policies.
"""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

from hutch.network.dns.message import Code, Field, Message, Question, Record

FINAL: Final = (Code.NOERROR, Code.NXDOMAIN)
"""Codes of answers that are the same whoever is asked."""

_OVERHEAD: Final = 100  # bytes of a record or a field, beside what it says


@dataclass(frozen=True, slots=True)
class CacheLimits:
    """How much is remembered, and how long."""

    answers: int = 512
    records: int = 64  # of one answer
    answer_bytes: int = 16 << 10  # in memory, more or less
    all_bytes: int = 1 << 20
    longest: float = 3600.0  # seconds
    longest_negative: float = 60.0


@dataclass(frozen=True, slots=True)
class _Kept:
    """An answer that is remembered."""

    message: Message
    size: int
    since: float
    until: float


class Cache:
    """What was asked, and answered."""

    def __init__(self, limits: CacheLimits, clock: Callable[[], float]) -> None:
        self._limits = limits
        self._clock = clock
        self._kept: OrderedDict[Question, _Kept] = OrderedDict()
        self._size = 0

    @property
    def size(self) -> int:
        """Bytes in memory, more or less."""
        return self._size

    def get(self, question: Question) -> Message | None:
        """Return an answer that still holds, its TTLs what is left of them."""
        if (kept := self._kept.get(question)) is None:
            return None
        now = self._clock()
        if now >= kept.until:
            self._drop(question)
            return None
        self._kept.move_to_end(question)
        age = int(now - kept.since)
        message = kept.message
        return replace(
            message,
            answers=tuple(replace(one, ttl=max(0, one.ttl - age)) for one in message.answers),
            authority=tuple(replace(one, ttl=max(0, one.ttl - age)) for one in message.authority),
        )

    def put(self, question: Question, message: Message, least: float = 0.0) -> None:
        """Remember an answer, if its TTLs and its size let it be remembered: for `least` seconds
        if the TTLs are less, or nobody says how long it holds.
        """
        records = (*message.answers, *message.authority)
        if message.code not in FINAL or len(records) > self._limits.records:
            return
        size = _OVERHEAD + sum(map(_weight, records))
        if size > self._limits.answer_bytes:
            return
        found = any(one.type == question.type for one in message.answers)
        longest = self._limits.longest if found else self._limits.longest_negative
        dated = found or message.authority
        lasts = min(longest, *(one.ttl for one in records)) if dated else 0.0
        if (lasts := max(lasts, least)) <= 0:
            return
        now = self._clock()
        self._drop(question)
        self._kept[question] = _Kept(message, size, now, now + lasts)
        self._size += size
        while len(self._kept) > self._limits.answers or self._size > self._limits.all_bytes:
            self._drop(next(iter(self._kept)))

    def _drop(self, question: Question) -> None:
        if (kept := self._kept.pop(question, None)) is not None:
            self._size -= kept.size


def _weight(record: Record) -> int:
    return 2 * _OVERHEAD + len(record.name) + sum(map(_field_weight, record.data))


def _field_weight(field: Field) -> int:
    return _OVERHEAD + (len(field) if isinstance(field, str | bytes) else 0)

"""What was decided for one sandbox: a bounded ring of numbered records, and who hears of them.

Guests choose names, paths and how often they ask: what they say is cut and made printable here, and
a flood of decisions is counted, not written.
"""

import time
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterator
from operator import itemgetter
from typing import Final

from hutch.models import timestamp
from hutch.networking import Decision, NetworkLayer, NetworkRecord, Reason

KEPT: Final = 1024
"""Records of a sandbox that are held for a daemon that is away."""
RATE: Final = 100.0
"""Records per second that a sandbox may cause for long."""
BURST: Final = 1000.0
"""Records that it may cause at once."""
TEXT_LIMIT: Final = 300
"""Characters of a field that a guest has a say in."""


def printable(text: str) -> str:
    """Return `text` without what a terminal or a log would obey, and no longer than TEXT_LIMIT."""
    cut = text if len(text) <= TEXT_LIMIT else text[: TEXT_LIMIT - 1] + "…"
    if cut.isprintable():
        return cut
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in cut)


class Records:
    """The newest records of one sandbox.

    `publish` is called with each and its place in `sequence`, which all sandboxes share; it must
    not block. Numbers count up from `number`, the last one that an earlier life of the gateway gave
    out.
    """

    def __init__(
        self,
        sandbox_id: str,
        publish: Callable[[int, NetworkRecord], None],
        *,
        sequence: Iterator[int],
        number: int = 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._sandbox_id = sandbox_id
        self._publish = publish
        self.number = number
        self._sequence = sequence
        self._ring: deque[tuple[int, NetworkRecord]] = deque(maxlen=KEPT)
        self._clock = clock
        self._room = BURST
        self._filled = clock()
        self._left_out = 0
        self.denied = 0

    def add(
        self,
        layer: NetworkLayer,
        decision: Decision,
        *,
        name: str | None = None,
        address: str | None = None,
        port: int | None = None,
        detail: str = "",
    ) -> None:
        """Record a decision, unless there are too many of them; it is counted in any case."""
        if not decision.allowed:
            self.denied += 1
        now = self._clock()
        self._room = min(BURST, self._room + (now - self._filled) * RATE)
        self._filled = now
        if self._room < 1:
            self._left_out += 1
            return
        if self._left_out:
            text = f"{self._left_out} decisions were made too fast to be recorded"
            self._left_out = 0
            self._put(layer, Decision(False, Reason.LIMIT, text=text))
        self._put(layer, decision, name=name, address=address, port=port, detail=detail)

    def _put(
        self,
        layer: NetworkLayer,
        decision: Decision,
        *,
        name: str | None = None,
        address: str | None = None,
        port: int | None = None,
        detail: str = "",
    ) -> None:
        self._room -= 1
        self.number += 1
        record = NetworkRecord(
            number=self.number,
            at=timestamp(),
            sandbox_id=self._sandbox_id,
            layer=layer,
            allowed=decision.allowed,
            reason=decision.reason,
            name=None if name is None else printable(name),
            address=address,
            port=port,
            rule=decision.rule,
            text=printable(decision.text),
            detail=printable(detail),
        )
        place = next(self._sequence)
        self._ring.append((place, record))
        self._publish(place, record)

    def since(self, place: int) -> Iterator[tuple[int, NetworkRecord]]:
        """Yield what is still held of the records after a place in the sequence, in order.

        Costs as much as is taken of it. Nothing may be added in between.
        """
        ring = self._ring
        for index in range(bisect_right(ring, place, key=itemgetter(0)), len(ring)):
            yield ring[index]

"""What names may carry that no rule names: those below `*.`, which anybody may have made up.

Each question about one of them tells something to whoever answers for the zone, and each answer
something back. So new names, questions and answers are so many a minute. It asks nobody anything.
"""

from collections import OrderedDict
from collections.abc import Callable
from typing import Final

from hutch.network.names import normal
from hutch.networking import Decision, Reason

REMEMBERED: Final = 1024  # names that are not new
LEAST: Final = 30.0
"""Seconds for which an answer about such a name is remembered, whatever its zone says."""


class Bucket:
    """What flows in at a rate, and may be taken as long as it lasts."""

    def __init__(self, rate: float, size: float, clock: Callable[[], float]) -> None:
        self._rate, self._size, self._clock = rate, size, clock
        self._level, self._at = size, clock()

    def take(self, amount: float) -> bool:
        """Take an amount; False if that much is not there."""
        now = self._clock()
        self._level = min(self._size, self._level + (now - self._at) * self._rate)
        self._at = now
        if amount > self._level:
            return False
        self._level -= amount
        return True


class Quota:
    """One sandbox's: each amount is for a minute, and as much may be taken at once."""

    def __init__(
        self,
        *,
        label_bytes: int,
        new_names: float,
        questions: float,
        answer_bytes: float,
        clock: Callable[[], float],
    ) -> None:
        self._label_bytes = label_bytes
        self._new_names = Bucket(new_names / 60, new_names, clock)
        self._questions = Bucket(questions / 60, questions, clock)
        self._answer_bytes = Bucket(answer_bytes / 60, answer_bytes, clock)
        self._known: OrderedDict[str, None] = OrderedDict()

    def __len__(self) -> int:
        """Return how many names are not new."""
        return len(self._known)

    def beyond(self, rule: str | None, name: str) -> Decision | None:
        """Return why a name that `rule` allows is not asked for: it could be data.

        That it has an address says nothing: those that are denied have one, too.
        """
        wide = left_open(rule, name)
        if wide is None:
            return None
        if wide > self._label_bytes:
            text = f"the labels of {name} that no rule names are too long"
        elif name in self._known or self._new_names.take(1):
            self._known[name] = None
            self._known.move_to_end(name)
            if len(self._known) > REMEMBERED:
                self._known.popitem(last=False)
            return None
        else:
            text = "too many new names in a minute that no rule names"
        hint = "allow the name itself, if it is to be reached"
        return Decision(False, Reason.LIMIT, text=text, hint=hint)

    def ask(self, rule: str | None, name: str) -> float | None:
        """Take one question to the host's resolvers; return for how many seconds its answer is
        remembered at least, or None if it may not be asked now.
        """
        if left_open(rule, name) is None:
            return 0.0
        if self.beyond(rule, name) is not None or not self._questions.take(1):
            return None
        return LEAST

    def answered(self, rule: str | None, name: str, size: int) -> Decision | None:
        """Take bytes of an answer; return why the guest may not have them."""
        if left_open(rule, name) is None or self._answer_bytes.take(size):
            return None
        text = f"names below {rule} have answered more than they may in a minute"
        return Decision(False, Reason.LIMIT, rule, text)


def left_open(rule: str | None, name: str) -> int | None:
    """Return how many bytes of a name's labels the rule that allows it leaves open; None for a name
    that the rule names, or that the mode allows.
    """
    if rule is None:
        return None
    base = rule.strip().rpartition("/")[0] or rule.strip()
    base = base.rpartition(":")[0] or base
    try:
        base = normal(base.removeprefix("*."))
    except ValueError:
        return None  # a rule of addresses: it opens no name
    if name == base:
        return None
    return len(name) - len(base) - 1 if name.endswith("." + base) else len(name)

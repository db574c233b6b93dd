"""Samples, and what is demanded of them: pure values, with their form in JSON.

A `Check` is one line of the issue: a measured figure against its limit. Figures are ratios of
medians taken in one run, or absolute where the limit is. It must not know how anything is measured.
"""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Series:
    """The raw samples of one thing, in the order in which they were taken, and their unit."""

    name: str
    unit: str
    samples: Sequence[float]

    @property
    def median(self) -> float:
        """The median."""
        return statistics.median(self.samples)

    def to_json(self) -> dict[str, Any]:
        """Return the raw samples with their summary."""
        return {
            "name": self.name,
            "unit": self.unit,
            "samples": [round(sample, 6) for sample in self.samples],
            "min": round(min(self.samples), 6),
            "median": round(self.median, 6),
            "max": round(max(self.samples), 6),
        }


@dataclass(frozen=True, slots=True)
class Check:
    """A figure and its limit: `at_most`, or at least."""

    what: str
    figure: float
    limit: float
    unit: str
    at_most: bool = True

    @property
    def passed(self) -> bool:
        """Whether the figure keeps to the limit."""
        return self.figure <= self.limit if self.at_most else self.figure >= self.limit

    def to_json(self) -> dict[str, Any]:
        """Return it with its verdict."""
        return {
            "what": self.what,
            "figure": round(self.figure, 6),
            "limit": self.limit,
            "unit": self.unit,
            "at_most": self.at_most,
            "passed": self.passed,
        }


@dataclass(frozen=True, slots=True)
class Measured:
    """What one part of the benchmark found; `notes` say what a reader of the figures must know."""

    title: str
    series: Sequence[Series]
    checks: Sequence[Check]
    notes: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return it with everything in it."""
        return {
            "title": self.title,
            "notes": self.notes,
            "series": [series.to_json() for series in self.series],
            "checks": [check.to_json() for check in self.checks],
        }


def ratio(what: str, figure: Series, base: Series, limit: float, *, at_most: bool = True) -> Check:
    """Return the check of one median as a multiple of another."""
    return Check(what, figure.median / base.median, limit, "x", at_most)


def part_of(what: str, figure: Series, whole: Series, part: int) -> Check:
    """Return the check that one median is at most a `part`-th of another."""
    return ratio(what, figure, whole, 1 / part)


def alternate(
    takers: Mapping[str, Callable[[], float]], rounds: int, *, warm: int = 0
) -> dict[str, list[float]]:
    """Take a sample of each in turn, `rounds` times; every second round goes backwards.

    So that neither a drift of the machine nor the one always coming second decides. The first
    `warm` rounds do not count.
    """
    found: dict[str, list[float]] = {name: [] for name in takers}
    names = list(takers)
    for number in range(warm + rounds):
        for name in names if number % 2 == 0 else reversed(names):
            sample = takers[name]()
            if number >= warm:
                found[name].append(sample)
    return found

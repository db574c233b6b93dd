"""What is told of use and of health goes through JSON and comes back the same."""

import pytest

from hutch.models import SandboxState, from_json, to_json
from hutch.reports import HostUsage, SandboxStats, SandboxUsage


def test_usage_with_its_sandboxes() -> None:
    taken = [SandboxUsage("sb_1", "one", SandboxState.PARKED, 0, 5)]
    usage = HostUsage(8, 4, 1, 0, 2, 32, 3, 9, 1, taken)
    body = to_json(usage)
    assert body["sandboxes"][0]["state"] == "parked"
    assert from_json(HostUsage, body) == usage


@pytest.mark.parametrize("known", [None, 7])
def test_stats_of_a_guest_that_may_not_be_asked(known: int | None) -> None:
    stats = SandboxStats("sb_1", "one", SandboxState.PAUSED, 0.0, 2, memory_used=known)
    assert from_json(SandboxStats, to_json(stats)) == stats

"""What tests of pausing, parking and idleness look at: a program that counts, and states."""

from typing import Any

from tests.harness.hutch import Hutch
from tests.waiting import wait_until

COUNTER = "echo $$ >/run/pid; i=0; while :; do i=$((i+1)); echo $i >/run/count; sleep 0.02; done"


def look(hutch: Hutch, name: str) -> dict[str, Any]:
    """Return a sandbox as `inspect` shows it, which does not wake it."""
    [found] = hutch.json("inspect", name)
    return dict(found)


def count(hutch: Hutch, name: str) -> tuple[int, int]:
    """Return the counting program's pid and how far it is; wakes the sandbox."""
    # It may be read in the moment when it is about to be written.
    script = 'until n=$(cat /run/count) && [ -n "$n" ]; do :; done; echo $(cat /run/pid) $n'
    pid, number = hutch.run("exec", name, "sh", "-c", script).text.split()
    return int(pid), int(number)


def goes_on(hutch: Hutch, name: str, pid: int, beyond: int) -> int:
    """Wait until the counting program, the same as before, is further; return how far."""

    def further() -> int:
        again, number = count(hutch, name)
        assert again == pid
        return number if number > beyond else 0

    return wait_until(further, what=f"{name} counts on")

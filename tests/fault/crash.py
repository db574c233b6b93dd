"""Killing a daemon at each of its outward acts, one after the other.

`rehearse` runs a command under a watched daemon (site/sitecustomize.py) and returns its acts;
`crash_at` runs it again and has the daemon killed right before one of them.
"""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.harness.hutch import Hutch, Result
from tests.waiting import wait_until

SITE = Path(__file__).with_name("site")
_NEVER = "never"
_QUIET = 0.5
"""Seconds without an act after which a new daemon has come to rest."""
_MISSED_MAX = 2
_SETTLING = 30.0
"""Seconds that what goes on in the background may take to its end."""
_UNRELATED = (
    "hutch.db",
    "daemon.",
    "config.toml",
    "accelerator",
    ".lock",
    "network/",
)
"""What a home may have after an operation that it need not have had before."""


class Crasher:
    """Runs commands of one `Hutch` against daemons that die when told to."""

    def __init__(self, hutch: Hutch, ready: Callable[[], object] = lambda: None) -> None:
        """`ready` waits for what a new daemon shall have done before it is watched."""
        self.hutch = hutch
        self._ready = ready
        self._file = hutch.runtime / "crash"
        self._acts = hutch.runtime / "crash.acts"
        self.reached = False
        """Whether the last act that a daemon should be killed at came about."""
        self._missed: list[str] = []
        path = os.pathsep.join(filter(None, (str(SITE), hutch.env.get("PYTHONPATH"))))
        self._watched = {"PYTHONPATH": path, "CRASH_FILE": str(self._file)}

    def begin(self) -> None:
        """Have a watched daemon, in place of any other."""
        if self.hutch.daemon is not None:
            self.hutch.kill_daemon()
        self.hutch.run("ps", env=self._watched)
        self._ready()

    def rehearse(self, *args: str, expect: int | None = 0) -> Sequence[str]:
        """Run a command that nothing disturbs, and return the daemon's acts in their order."""
        self.begin()
        self._let_it_settle()
        self._file.write_text(_NEVER)
        try:
            self.hutch.run(*args, expect=expect)
            return self._acts.read_text().splitlines()
        finally:
            self._end()

    def crash_at(self, act: str, *args: str) -> Result:
        """Run a command; the daemon is killed before that act. Returns how the command ended, once
        the daemon is gone.

        What a daemon does of its own accord may have been among the acts of a rehearsal, and need
        not come again: a few that are not `reached` are let pass.
        """
        self.begin()
        daemon = self.hutch.daemon
        assert daemon is not None
        self._file.write_text(act)
        try:
            result = self.hutch.run(*args, expect=None)
            # A command may have its answer before the last acts.
            with contextlib.suppress(AssertionError):
                wait_until(lambda: not daemon.alive(), timeout=_SETTLING)
            self.reached = not daemon.alive()
            if not self.reached:
                self._missed.append(act)
            assert len(self._missed) <= _MISSED_MAX, self._missed
            return result
        finally:
            self._end()

    @contextmanager
    def held_at(self, act: str, *args: str) -> "Iterator[subprocess.Popen[bytes]]":
        """Start a command, and for the length of the block hold the daemon right before an act."""
        self.begin()
        daemon = self.hutch.daemon
        assert daemon is not None
        self._file.write_text(f"stop {act}")
        try:
            started = self.hutch.start(*args)
            wait_until(lambda: _is_stopped(daemon.pid), what=f"it reaches {act}")
            yield started
        finally:
            self._end()
            daemon.kill(signal.SIGCONT)

    def _let_it_settle(self) -> None:
        """Wait until a new daemon has done what is not the command's."""
        self._file.write_text(_NEVER)
        seen, since = -1, time.monotonic()

        def quiet() -> bool:
            nonlocal seen, since
            size = self._acts.stat().st_size if self._acts.exists() else 0
            if size != seen:
                seen, since = size, time.monotonic()
            return time.monotonic() - since > _QUIET

        wait_until(quiet, what="the daemon has come to rest")
        self._end()

    def _end(self) -> None:
        self._file.unlink(missing_ok=True)
        self._acts.unlink(missing_ok=True)


def _is_stopped(pid: int) -> bool:
    state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    return state == "T"


def chosen(acts: Sequence[str], most: int) -> list[str]:
    """Return at most `most` of the acts, evenly spread: each commit, of the others but for commands
    to an engine the first of its kind.
    """
    points = [
        act for act in acts if " sql " in act or (act.startswith("1 ") and " qmp " not in act)
    ]
    step = max(1.0, (len(points) - 1) / (most - 1))
    return [points[round(i * step)] for i in range(most) if round(i * step) < len(points)]


def named(acts: Sequence[str], *kinds: str) -> list[str]:
    """Return the acts meant by `COUNT WORDS`: the first (1), second … or last (-1) of those with
    the words; a count beyond the last means the last.
    """
    found = []
    for kind in kinds:
        number, _, words = kind.partition(" ")
        matching = [act for act in acts if words in act]
        assert matching, (kind, acts)
        found.append(matching[min(int(number), len(matching)) - (int(number) > 0)])
    return found


def content(hutch: Hutch) -> set[str]:
    """Return the files of a home that are not a daemon's own."""
    found = set()
    for directory, _, names in os.walk(hutch.home):
        for name in names:
            path = str(Path(directory, name).relative_to(hutch.home))
            if not any(word in path for word in _UNRELATED):
                found.add(path)
    return found


def same_content(hutch: Hutch, *wanted: set[str], when: str) -> None:
    """Assert that a home has one of some contents, at the latest when what goes on has ended."""
    with contextlib.suppress(AssertionError):
        wait_until(lambda: content(hutch) in wanted, timeout=_SETTLING)
    found = content(hutch)
    assert found in wanted, (when, [sorted(found ^ each) for each in wanted])


def consistent(hutch: Hutch) -> None:
    """Assert that rows, directories, sockets and processes tell the same story.

    They cannot be looked at in one moment, and a sandbox may be about to end or to go: it is what
    they come to that counts.
    """
    found: list[object] = []

    def agree() -> bool:
        found[:] = _contradictions(hutch)
        return not found

    with contextlib.suppress(AssertionError):
        wait_until(agree, timeout=_SETTLING)
    assert not found, found


def _contradictions(hutch: Hutch) -> Iterator[object]:
    rows = hutch.json("ps", "-a")
    ids = {row["id"] for row in rows}
    running = {row["id"]: row["pid"] for row in rows if row["state"] in ("running", "paused")}
    resting = ("created", "parked", "stopped", "failed")
    at_rest = {row["id"] for row in rows if row["state"] in resting}
    if running.keys() | at_rest != ids:
        yield "states", rows
    directories = {path.name for path in hutch.home.joinpath("sandboxes").glob("*")}
    # A start makes the directory of a sandbox that has none yet.
    if not directories <= ids:
        yield "directories", directories, rows
    machines = {path.name for path in hutch.runtime.glob("*/sb_*")}
    if machines != running.keys():
        yield "machines", machines, rows
    qemus = {who.pid for who, what in hutch.processes().items() if "qemu-system" in what}
    if qemus != set(running.values()):
        yield "processes", qemus, rows

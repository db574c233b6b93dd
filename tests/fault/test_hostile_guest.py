"""Guests that are no agents: the start fails with a reason, and nothing else suffers."""

import subprocess

import pytest

from tests.fault.guests import SCRIPTS, take_over
from tests.harness.fixtures import NewHutch
from tests.harness.hutch import Hutch
from tests.vm.streams import memory

MIB = 1 << 20
MUCH = 48 * MIB
"""More than the daemon keeps of anything."""
LOG_SIZE = 64 << 10
LOG_FILES = 2
BUILT = ("says nothing after the greeting",)
"""Guests that a template is made of, too: it is the same boot, with nobody who asked for it."""


class Home:
    """A home with a good sandbox `other`, in which hostile guests are booted one after another."""

    def __init__(self, hutch: Hutch) -> None:
        self.hutch = hutch
        self.answers = 0
        """How often the good one has answered while a hostile one booted, not only after that."""
        hutch.run("run", "-d", "--idle", "--name", "other", "busybox")
        # The patience that hostile guests get is too little for a good one on a busy host.
        hutch.kill_daemon()
        hutch.env["HUTCH_BOOT_TIMEOUT"] = "6s"
        hutch.run("ps")
        assert hutch.daemon is not None
        self._daemon = hutch.daemon
        self._before = memory(self._daemon.pid)

    def begin(self, what: str, script: str) -> "subprocess.Popen[bytes]":
        """Begin to boot a hostile guest."""
        take_over(self.hutch, script)
        cold = () if what in BUILT else ("--no-template",)
        self.hutch.run("create", *cold, "--name", "bad", "busybox")
        return self.hutch.start("--json", "start", "bad")

    def look_at_others(self, started: "subprocess.Popen[bytes]", what: str) -> None:
        """Use the good sandbox while a hostile guest boots."""
        done = self.hutch.run("exec", "other", "echo", "well", timeout=60)
        assert done.text == "well", what
        self.answers += started.poll() is None

    def check_end(self, started: "subprocess.Popen[bytes]", what: str) -> None:
        """Check how a boot has failed, and what is left of it."""
        out, err = started.communicate()
        assert started.returncode == 125, (what, out, err)
        assert b'"boot_failed"' in out, (what, out)
        # What the guest wrote to its console is quoted, but not at length, nor for terminals to
        # obey.
        assert len(out) < 16 << 10, what
        assert b"\\u00" not in out, what
        [row] = self.hutch.json("ps", "-a", "-f", "name=bad")
        assert (row["state"], row["error"]["code"]) == ("failed", "boot_failed"), what
        consoles = list(self.hutch.home.glob(f"sandboxes/{row['id']}/console*"))
        assert sum(path.stat().st_size for path in consoles) <= LOG_SIZE * (LOG_FILES + 1), what
        assert not list(self.hutch.runtime.glob(f"*/{row['id']}/*")), what
        self.hutch.run("rm", "bad")
        assert memory(self._daemon.pid) - self._before < MUCH, what
        assert self.hutch.daemon == self._daemon, what


@pytest.mark.timeout(600)
def test_guests_that_do_not_serve(new_hutch: NewHutch) -> None:
    # Two at once, for each of them is mostly waited for.
    limits = {"log_size": str(LOG_SIZE), "log_files": str(LOG_FILES)}
    homes = [Home(new_hutch(templates=True, **limits)) for _ in range(2)]
    guests = list(SCRIPTS.items())
    for at in range(0, len(guests), len(homes)):
        boots = [
            (home, home.begin(what, script), what)
            for home, (what, script) in zip(homes, guests[at:], strict=False)
        ]
        while any(started.poll() is None for _, started, _ in boots):
            for home, started, what in boots:
                home.look_at_others(started, what)
        for home, started, what in boots:
            home.check_end(started, what)
    assert all(home.answers for home in homes)

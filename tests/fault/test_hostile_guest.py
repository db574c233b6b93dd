"""Guests that are no agents: the start fails with a reason, and nothing else suffers."""

import time

import pytest

from tests.fault.guests import SCRIPTS, take_over
from tests.harness.fixtures import NewHutch
from tests.harness.hutch import Hutch
from tests.vm.streams import memory

MIB = 1 << 20
LOG_SIZE = 64 << 10
LOG_FILES = 2
BOOT_TIMEOUT = 6


def _settings() -> dict[str, str]:
    return {
        "boot_timeout": f"{BOOT_TIMEOUT}s",
        "log_size": str(LOG_SIZE),
        "log_files": str(LOG_FILES),
    }


@pytest.mark.timeout(600)
def test_guests_that_do_not_serve(new_hutch: NewHutch) -> None:
    hutch = new_hutch(**_settings())
    hutch.run("run", "-d", "--idle", "--name", "other", "busybox")
    daemon = hutch.daemon
    assert daemon is not None
    before = memory(daemon.pid)
    for what, script in SCRIPTS.items():
        _boot_fails(hutch, what, script)
        assert memory(daemon.pid) - before < 24 * MIB, what
    assert hutch.daemon == daemon


def _boot_fails(hutch: Hutch, what: str, script: str) -> None:
    take_over(hutch, script)
    hutch.run("create", "--name", "bad", "busybox")
    began = time.monotonic()
    started = hutch.start("--json", "start", "bad")
    while started.poll() is None:
        # The other sandbox and the daemon answer all the while.
        asked = time.monotonic()
        assert hutch.run("exec", "other", "echo", "well").text == "well"
        assert time.monotonic() - asked < 5, what
    out, err = started.communicate()
    assert time.monotonic() - began < BOOT_TIMEOUT + 10, what
    assert started.returncode == 125, (what, out, err)
    assert b'"boot_failed"' in out, (what, out)
    # What the guest wrote to its console is quoted, but not at length, nor for terminals to obey.
    assert len(out) < 16 << 10, what
    assert b"\\u00" not in out, what
    [row] = hutch.json("ps", "-a", "-f", "name=bad")
    assert (row["state"], row["error"]["code"]) == ("failed", "boot_failed"), what
    consoles = list(hutch.home.glob(f"sandboxes/{row['id']}/console*"))
    assert sum(path.stat().st_size for path in consoles) <= LOG_SIZE * (LOG_FILES + 1), what
    assert not list(hutch.runtime.glob(f"*/{row['id']}/*")), what
    hutch.run("rm", "bad")

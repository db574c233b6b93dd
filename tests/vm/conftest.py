"""Sandboxes that tests share: a boot takes seconds, so each module of tests has one.

`box` is a running, idle busybox sandbox of the module's own `Hutch`, `shared`. Tests that end or
break a sandbox make their own in `shared`; those that end the daemon take `hutch`. Either begins
with a template of busybox: tests of how that is made take `new_hutch`.
"""

import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.harness.fixtures import FAILED, NewHutch
from tests.harness.hutch import Hutch, Result
from tests.harness.stores import SharedStore

BOX = "box"


@dataclass(frozen=True, slots=True)
class Box:
    """A running sandbox and the `Hutch` that it belongs to."""

    hutch: Hutch
    name: str

    def run(self, *args: str, options: tuple[str, ...] = (), **how: Any) -> Result:
        """Run a program in it to its end: `hutch exec OPTIONS NAME ARGS`."""
        return self.hutch.run("exec", *options, self.name, *args, **how)

    def sh(self, script: str, **how: Any) -> Result:
        """Run a shell script in it."""
        return self.run("sh", "-c", script, **how)

    def start(self, *args: str, options: tuple[str, ...] = (), **how: Any) -> Any:
        """Start a program in it, with pipes."""
        return self.hutch.start("exec", *options, self.name, *args, **how)


@pytest.fixture
def hutch(new_hutch: NewHutch) -> Hutch:
    """The `hutch` command with a home of its own, which has a template of busybox."""
    return new_hutch(templates=True)


@pytest.fixture(scope="module")
def _module_hutch(shared_store: SharedStore) -> Iterator[Hutch]:
    runtime = Path(tempfile.mkdtemp(prefix="h-", dir="/tmp"))
    made = Hutch(shared_store.new_home(templates=True), runtime, {"exec_orphan_grace": "3s"})
    try:
        yield made
    finally:
        made.close()
        shutil.rmtree(runtime, ignore_errors=True)


@pytest.fixture(scope="module")
def _module_box(_module_hutch: Hutch) -> Box:
    _module_hutch.run("run", "-d", "--idle", "--name", BOX, "busybox")
    return Box(_module_hutch, BOX)


@pytest.fixture
def shared(request: pytest.FixtureRequest, _module_hutch: Hutch) -> Iterator[Hutch]:
    """The `hutch` command with a home that the tests of a module share."""
    yield _module_hutch
    _module_hutch.end_started()
    if request.node.stash.get(FAILED, False):
        print(_module_hutch.logs())
        # What a failed test leaves must not fail the next.
        names = [info["name"] for info in _module_hutch.json("ps", "-a")]
        _module_hutch.run("rm", "-f", "none", *(name for name in names if name != BOX))


@pytest.fixture
def box(shared: Hutch, _module_box: Box) -> Box:
    """A running busybox sandbox that the tests of a module share."""
    return _module_box

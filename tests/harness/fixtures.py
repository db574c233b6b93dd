"""Fixtures for tests with real VMs (tests/vm, tests/fault, tests/bench).

`hutch` is the real command with a home of its own; `new_hutch` makes more of them. `kernel` and
`busybox` are for tests of a single part, below the daemon.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.harness.hutch import Hutch

if TYPE_CHECKING:
    from hutch.images.base import Image, Kernel
    from tests.harness.stores import SharedStore

NewHutch = Callable[..., Hutch]
FAILED = pytest.StashKey[bool]()
_WITH_MACHINES = {"vm", "fault"}
_TIMEOUT = 300.0
"""Seconds for one test: emulated machines are slow, and the host may be busy."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that boot machines, and give them more time."""
    for item in items:
        if item.path.parent.name in _WITH_MACHINES:
            item.add_marker(pytest.mark.vm)
            if item.get_closest_marker("timeout") is None:
                item.add_marker(pytest.mark.timeout(_TIMEOUT))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    """Remember whether the test itself failed, for the fixtures' teardown."""
    report: pytest.TestReport = yield  # type: ignore[assignment]
    if report.failed:
        item.stash[FAILED] = True
    return report  # type: ignore[return-value]


@pytest.fixture(scope="session")
def shared_store() -> "Iterator[SharedStore]":
    """The image and kernel store that all tests of a run begin with."""
    # Imported here, so that unit tests run without the image code.
    from tests.harness.stores import SharedStore

    store = SharedStore()
    yield store
    store.close()


@pytest.fixture(scope="session")
def kernel(shared_store: "SharedStore") -> "Kernel":
    """A kernel with its initramfs."""
    return shared_store.kernel


@pytest.fixture(scope="session")
def busybox(shared_store: "SharedStore") -> "Image":
    """The built-in busybox image with its root file system."""
    return shared_store.busybox


@pytest.fixture
def new_hutch(
    request: pytest.FixtureRequest, shared_store: "SharedStore", short_tmp: Path
) -> Iterator[NewHutch]:
    """Make a `Hutch` with a home of its own: `new_hutch(empty=…, templates=…, **settings)`.

    An `empty` home has neither a kernel nor an image; with `templates` there are those of busybox.
    Its commands, and so its daemon, run `inside` the namespace that such a prefix leads to.
    All are closed, and checked to have left nothing, in the end; when the test has failed, their
    logs are printed before.
    """
    with ExitStack() as stack:
        count = 0

        def make(
            *,
            empty: bool = False,
            templates: bool = False,
            inside: Sequence[str] = (),
            **settings: str,
        ) -> Hutch:
            nonlocal count
            count += 1
            runtime = short_tmp / f"r{count}"
            runtime.mkdir(mode=0o700)
            home = shared_store.new_home(empty=empty, templates=templates)
            made = Hutch(home, runtime, settings, inside)
            stack.callback(made.close)
            stack.callback(_print_logs, request, made)
            return made

        yield make


@pytest.fixture
def hutch(new_hutch: NewHutch) -> Hutch:
    """The `hutch` command with a home of its own, a kernel and the busybox image."""
    return new_hutch()


def _print_logs(request: pytest.FixtureRequest, made: Hutch) -> None:
    if request.node.stash.get(FAILED, False):
        print(made.logs())

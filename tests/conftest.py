"""What every test gets: no settings of the machine, directories of its own, and short paths."""

import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

pytest_plugins = ["tests.harness.fixtures"]

# A shell starts what goes into the background with these ignored, which the programs under test
# would inherit, and never be interrupted.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGQUIT, signal.SIG_DFL)

# A busy machine makes slow examples, not wrong ones.
hypothesis.settings.register_profile("hutch", deadline=None)
hypothesis.settings.load_profile("hutch")


@pytest.fixture
def short_tmp() -> Iterator[Path]:
    """A temporary directory with a path short enough for unix sockets, which end at 107 bytes."""
    path = Path(tempfile.mkdtemp(prefix="h-", dir="/tmp"))
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture(autouse=True)
def isolated(short_tmp: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Point Hutch at fresh directories and at no configuration file; keep nobody's umask."""
    for name in os.environ:
        if name.startswith("HUTCH_") and not name.startswith("HUTCH_TEST_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HUTCH_HOME", str(short_tmp / "home"))
    monkeypatch.setenv("HUTCH_RUNTIME_DIR", str(short_tmp / "run"))
    monkeypatch.setenv("HUTCH_CONFIG", str(short_tmp / "config.toml"))
    mask = os.umask(0o022)
    yield
    os.umask(mask)

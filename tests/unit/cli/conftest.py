"""The real `hutch` as a subprocess, before a daemon of tests.unit.cli.local_host."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from hutch.sdk.start import find_daemon, stop_daemon
from hutch.settings import load_settings

REPO = Path(__file__).parents[3]
SITE = Path(__file__).parent / "site"
HUTCH = [sys.executable, "-c", "from hutch.cli.main import main; main()"]


class Child(subprocess.Popen[bytes]):
    """A process that a failed test does not wait for."""

    def __exit__(self, kind: Any, cause: Any, trace: Any) -> None:
        if kind is not None:
            self.kill()
        super().__exit__(kind, cause, trace)


class Cli:
    """Runs command lines."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.home = base / "home"
        self.guest = self.home / "guest"
        kept = {key: value for key, value in os.environ.items() if not key.startswith("HUTCH_")}
        self.env = kept | {
            "PYTHONPATH": f"{SITE}:{REPO}:{REPO / 'src'}",
            "TERM": "xterm",
            "HUTCH_HOME": str(self.home),
            "HUTCH_RUNTIME_DIR": str(base / "run"),
            "HUTCH_CONFIG": str(base / "config.toml"),
        }

    def start(self, *args: str, **options: Any) -> Child:
        options = {"stdin": subprocess.DEVNULL, "env": self.env, **options}
        for name in ("stdout", "stderr"):
            options.setdefault(name, subprocess.PIPE)
        return Child([*HUTCH, *args], **options)

    def __call__(
        self, *args: str, stdin: bytes | None = None, code: int | None = 0, **options: Any
    ) -> "subprocess.CompletedProcess[bytes]":
        """Run to the end. `code` is the exit code that is asserted; None: any."""
        if stdin is not None:
            options["stdin"] = subprocess.PIPE
        with self.start(*args, **options) as child:
            try:
                out, err = child.communicate(stdin, timeout=60)
            except BaseException:
                child.kill()
                raise
        done = subprocess.CompletedProcess(args, child.returncode, out or b"", err or b"")
        assert code is None or done.returncode == code, (done.returncode, done.stdout, done.stderr)
        return done


@contextmanager
def installed(base: Path) -> Iterator[Cli]:
    """A command with a home of its own, whose daemon ends with the block."""
    # Ignored signals are inherited, and whoever runs the tests may ignore this one.
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    cli = Cli(base)
    try:
        yield cli
    finally:
        signal.signal(signal.SIGHUP, before)
        settings = load_settings(env=cli.env)
        if find_daemon(settings):
            stop_daemon(settings, timeout=60)


@pytest.fixture(scope="session")
def shared_hutch() -> Iterator[Cli]:
    base = Path(tempfile.mkdtemp(prefix="h-", dir="/tmp"))
    with installed(base) as cli:
        cli("ps")  # starts the daemon
        yield cli
    shutil.rmtree(base, ignore_errors=True)


@pytest.fixture
def hutch(shared_hutch: Cli) -> Cli:
    """The command, before a daemon that all tests share; `box` runs there."""
    return shared_hutch


@pytest.fixture
def own_hutch(short_tmp: Path) -> Iterator[Cli]:
    """The command with a home of its own, for tests that hurt the daemon or count sandboxes."""
    with installed(short_tmp) as cli:
        yield cli

"""The entry point: exit codes, closed pipes, and the installed script."""

import os
import subprocess
import sys

import pytest

from hutch.cli import tree
from hutch.cli.main import execute
from tests.unit.cli.conftest import Cli


@pytest.mark.parametrize(
    ("failure", "code"),
    [
        (KeyboardInterrupt(), 130),
        (BrokenPipeError(), 141),
        (PermissionError(13, "Permission denied", "/x"), 125),
    ],
)
def test_failures_become_exit_codes(
    failure: BaseException, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object) -> int:
        raise failure

    monkeypatch.setattr(tree, "run_tree", fail)
    monkeypatch.setattr("hutch.cli.main._abandon_stdout", lambda: None)
    assert execute(["ps"]) == code


def test_a_closed_pipe_ends_a_table_quietly(hutch: Cli) -> None:
    read, write = os.pipe()
    os.close(read)
    with hutch.start("--help", stdout=write) as child:
        os.close(write)
        assert child.wait(60) == 141
        assert child.stderr is not None
        assert child.stderr.read() == b""


def test_version_without_metadata_of_packages(hutch: Cli) -> None:
    code = "import sys; from hutch.cli.main import execute; execute(['version']);"
    code += "print('importlib.metadata' in sys.modules, file=sys.stderr)"
    done = subprocess.run(
        [sys.executable, "-c", code], env=hutch.env, capture_output=True, check=True
    )
    assert done.stderr == b"False\n"

import os
import subprocess
import sys
from pathlib import Path

import pytest

from hutch.api.daemon import Options, _parse, main

# How it starts, ends and races is tested from its starter's side: tests/unit/sdk/test_start.py.


def test_the_command_line() -> None:
    assert _parse([]) == Options()
    assert _parse(["--detach", "--ready-fd", "7"]) == Options(detach=True, ready_fd=7)
    for wrong in (["--ready-fd"], ["--ready-fd", "x"], ["extra"]):
        assert _parse(wrong) is None


def test_a_wrong_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--nonsense"]) == 2
    assert capsys.readouterr().err.startswith("usage:")


def test_why_it_cannot_start_is_told(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], short_tmp: Path
) -> None:
    monkeypatch.setenv("HUTCH_RUNTIME_DIR", str(short_tmp / ("d" * 100)))
    read, write = os.pipe()
    assert main(["--ready-fd", str(write)]) == 125
    os.close(write)
    with os.fdopen(read) as pipe:
        assert '"bad_path"' in pipe.read()
    assert "too long" in capfd.readouterr().err


def test_nothing_heavy_is_imported_before_the_lock() -> None:
    code = (
        "import sys, hutch.api.daemon\n"
        "print([name for name in ('fastapi', 'uvicorn', 'pydantic') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == "[]"

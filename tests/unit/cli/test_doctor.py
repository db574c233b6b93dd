"""`hutch doctor`: its words and its exit code."""

import pytest

from hutch.cli import doctor
from hutch.cli.main import execute
from hutch.reports import Check
from hutch.service import doctor as service

OK = Check("python", "ok", "3.11")
WARN = Check("buildah", "warn", "not installed", "apt-get install buildah")
FAIL = Check("qemu", "fail", "not\x1b installed", "apt-get install qemu-system-x86")


def run(checks: list[Check], monkeypatch: pytest.MonkeyPatch, *args: str) -> int:
    monkeypatch.setattr(service, "run_checks", lambda settings: checks)
    return execute(["doctor", *args])


def test_a_failure_is_exit_code_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([OK, WARN, FAIL], monkeypatch) == 1
    assert capsys.readouterr().out == (
        "ok    python: 3.11\n"
        "warn  buildah: not installed\n"
        "      fix: apt-get install buildah\n"
        "FAIL  qemu: not\\x1b installed\n"
        "      fix: apt-get install qemu-system-x86\n"
    )


def test_a_warning_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    assert run([OK, WARN], monkeypatch) == 0
    assert doctor.doctor.name == "doctor"


def test_json(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([FAIL], monkeypatch, "--json") == 1
    assert '"status": "fail"' in capsys.readouterr().out

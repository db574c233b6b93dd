"""`hutch template` as a process, and --no-template."""

import json

from tests.unit.cli.conftest import Cli


def test_verbs(hutch: Cli) -> None:
    lines = hutch("template", "ls").stdout.splitlines()
    assert lines[0].split()[:3] == [b"ID", b"IMAGE", b"POINT"]
    assert lines[1].split()[:3] == [b"0123456789ab-cdef01", b"busybox", b"fresh"]
    assert json.loads(hutch("templates", "--json").stdout)[0]["running"] == 1
    assert hutch("template", "build", "-m", "1g", "debian").stdout == b"0123456789ab-cdef01\n"
    built = json.loads(hutch("template", "build", "--json", "--cpus", "2", "debian").stdout)
    assert (built["image"], built["cpus"]) == ("debian", 2)
    assert b"(bad_size)" in hutch("template", "build", "-m", "3", "debian", code=125).stderr
    assert hutch("template", "rm", "0123").stdout == b"0123\n"
    assert b"(template_not_found)" in hutch("template", "rm", "nosuch", code=125).stderr
    assert hutch("template", "prune").stdout.splitlines()[0] == b"0123456789ab-cdef01"


def test_no_template(hutch: Cli) -> None:
    hutch("create", "--name", "fresh", "busybox")
    hutch("start", "--no-template", "fresh")
    assert json.loads(hutch("inspect", "fresh").stdout)[0]["template"] is None
    hutch("start", "fresh")
    assert json.loads(hutch("inspect", "fresh").stdout)[0]["template"] is not None

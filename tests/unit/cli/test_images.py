"""`hutch image` as a process."""

import json
from pathlib import Path

from tests.unit.cli.conftest import Cli


def test_pull_list_inspect_remove(own_hutch: Cli) -> None:
    assert own_hutch("image", "pull", "debian:12").stdout == b"debian:12\n"
    listed = own_hutch("images").stdout
    assert b"debian:12" in listed
    assert b"REFERENCE" in listed
    assert own_hutch("image", "ls", "-q").stdout.splitlines()[0] == b"sha256:1"
    assert json.loads(own_hutch("image", "inspect", "debian:12").stdout)[0]["id"] == "sha256:1"
    assert own_hutch("rmi", "debian:12").stdout == b"debian:12\n"
    assert b"(image_not_found)" in own_hutch("image", "rm", "debian:12", code=125).stderr


def test_several_pulls_go_on_after_a_failure(hutch: Cli) -> None:
    done = hutch("image", "pull", "nosuch", "other", code=125)
    assert done.stdout == b"other\n"
    assert done.stderr == b"hutch: no image nosuch (image_not_found)\nhint: check its name\n"


def test_a_bug_of_the_daemon_is_told_as_one(hutch: Cli) -> None:
    assert b"(internal)" in hutch("image", "pull", "bug", code=125).stderr


def test_import_and_build(hutch: Cli, tmp_path: Path) -> None:
    (tmp_path / "app.tar").touch()
    assert hutch("image", "import", "-t", "app:1", str(tmp_path / "app.tar")).stdout == b"app:1\n"
    assert b"(bad_path)" in hutch("image", "import", str(tmp_path / "no"), code=125).stderr
    done = hutch("build", "-t", "built", "--build-arg", "A=1", ".", cwd=tmp_path)
    assert done.stdout == b"built\n"
    assert b"not K=V" in hutch("build", "-t", "x", "--build-arg", "A", ".", code=125).stderr
    assert b"'-t'" in hutch("image", "build", ".", code=125).stderr


def test_prune(hutch: Cli) -> None:
    assert hutch("image", "prune").stdout == b"freed 0 B\n"
    assert json.loads(hutch("image", "prune", "--json").stdout) == {"removed": [], "bytes": 0}

"""`hutch kernel` as a process."""

import json
from pathlib import Path

from tests.unit.cli.conftest import Cli


def test_verbs(hutch: Cli, tmp_path: Path) -> None:
    (tmp_path / "vmlinuz").touch()
    assert hutch("kernel", "ls").stdout.splitlines()[1].startswith(b"*  6.1")
    assert json.loads(hutch("kernels", "--json").stdout)[0]["active"] is True
    assert hutch("kernel", "pull").stdout == b"6.1\n"
    assert (
        hutch("kernel", "import", "--name", "mine", str(tmp_path / "vmlinuz")).stdout == b"mine\n"
    )
    assert b"(bad_path)" in hutch("kernel", "import", "/nosuch", code=125).stderr
    assert hutch("kernel", "use", "6.1").stdout == b"6.1\n"
    assert b"(kernel_not_found)" in hutch("kernel", "rm", "7", code=125).stderr

"""Where a sandbox's files lie."""

import errno
import os
from pathlib import Path

import pytest

from hutch.errors import HutchError
from hutch.service.parts import Places, host_errors


def test_all_that_lasts_of_a_sandbox_but_its_disk_is_in_one_directory() -> None:
    places = Places(Path("/home"), Path("/run/hutch"))
    sandbox = places.sandbox("sb_1")
    assert sandbox.parent == places.sandboxes
    for path in (places.old_disk("sb_1"), places.console("sb_1"), places.logs("sb_1")):
        assert path.parent == sandbox
    assert places.layer("ly_1") == places.layers / "ly_1.qcow2"
    assert places.snapshot("sn_1").parent == places.snapshots
    assert places.machine("sb_1") == Path("/run/hutch/sb_1")


@pytest.mark.parametrize(
    ("number", "code"),
    [(errno.ENOSPC, "disk_full"), (errno.EDQUOT, "disk_full"), (errno.EACCES, "internal")],
)
def test_a_file_system_that_refuses(number: int, code: str) -> None:
    with pytest.raises(HutchError, match="/some/path") as caught, host_errors():
        raise OSError(number, os.strerror(number), "/some/path")
    assert caught.value.code == code
    assert caught.value.hint

import errno

import pytest

from hutch.engine.failures import os_failure, template_failure


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (errno.ENOSPC, "disk_full"),
        (errno.EDQUOT, "disk_full"),
        (errno.EACCES, "engine_failed"),
    ],
)
def test_a_full_disk_is_told_from_other_refusals(number: int, code: str) -> None:
    failure = os_failure("the disk x cannot be made", OSError(number, "because"))
    assert failure.code == code
    assert failure.message == "the disk x cannot be made: because"


def test_what_never_loads_says_so_to_programs() -> None:
    failure = template_failure("the state is damaged")
    assert failure.code == "engine_failed"
    assert failure.details == {"template": True}

import hutch.sdk
from hutch.models import ExecOutcome
from hutch.sdk.values import CommandResult


def test_a_result_reads_as_text() -> None:
    result = CommandResult(ExecOutcome(124, timed_out=True), b"a\xff", "é".encode())
    assert (result.stdout, result.stderr) == ("a\ufffd", "é")
    assert (result.exit_code, result.timed_out) == (124, True)


def test_the_public_surface_is_sorted_and_there() -> None:
    assert sorted(hutch.sdk.__all__) == hutch.sdk.__all__
    assert all(getattr(hutch.sdk, name).__name__ == name for name in hutch.sdk.__all__)
    assert set(hutch.sdk._HOMES) == set(hutch.sdk.__all__)

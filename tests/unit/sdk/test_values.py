from hutch.models import ExecOutcome
from hutch.sdk.values import CommandResult


def test_a_result_reads_as_text() -> None:
    result = CommandResult(ExecOutcome(124, timed_out=True), b"a\xff", "é".encode())
    assert (result.stdout, result.stderr) == ("a\ufffd", "é")
    assert (result.exit_code, result.timed_out) == (124, True)

import pytest

from hutch.guest.base import ExecResult, Guest, GuestExec, Output
from hutch.guest.fake_exec import Ring


@pytest.mark.parametrize(
    ("argv", "output", "code"),
    [
        (["echo", "-n", "a", "b"], "a b", 0),
        (["seq", "1", "3"], "1\n2\n3\n", 0),
        (["env"], "A=1\n", 0),
        (["pwd"], "/tmp\n", 0),
        (["hostname"], "fake\n", 0),
        (["cat", "/etc/hostname"], "fake\n", 0),
        (["cat", "/none"], "cat: can't open '/none': No such file\n", 1),
        (["/bin/sh", "-c", "false; echo x; exit"], "x\n", 0),
        (["sh", "-c", "nothing"], "sh: nothing: not found\n", 127),
    ],
)
async def test_commands(guest: Guest, argv: list[str], output: str, code: int) -> None:
    stream = await guest.start_exec(GuestExec("c", argv, env=["A=1"], cwd="/tmp"))
    events = [event async for event in stream]
    assert b"".join(e.data for e in events if isinstance(e, Output)).decode() == output
    assert isinstance(events[-1], ExecResult)
    assert events[-1].code == code


def test_a_ring_forgets_what_was_consumed() -> None:
    ring = Ring()
    ring.kept += b"0123456789"
    assert ring.take() == b"0123456789"
    ring.credit(4)
    assert (ring.first, ring.last, bytes(ring.kept), ring.in_flight) == (4, 10, b"456789", 6)


def test_a_ring_goes_back_for_a_new_attachment() -> None:
    ring = Ring()
    ring.kept += b"0123456789"
    ring.take()
    ring.trim(3)
    ring.rewind(5)
    assert (ring.take(), ring.first) == (b"56789", 3)

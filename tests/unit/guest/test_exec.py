import asyncio

import pytest

from hutch.errors import HutchError
from hutch.guest.base import (
    Channel,
    ExecResult,
    Guest,
    GuestExec,
    Output,
    OutputEnd,
    OutputGap,
    TerminalSize,
)
from hutch.guest.exec import encode_exec, parse_result
from hutch.guest.fake import FakeAgent
from hutch.guest.frames import FrameType, encode_frame, encode_gap
from hutch.guest.messages import GuestProtocolError
from tests.unit.guest.scripted import ScriptedGuest, message


def test_seconds_become_milliseconds_and_never_none() -> None:
    sent = encode_exec(GuestExec("a", ["x"], timeout=0.0001, kill_after=2.5), attach=True)
    assert (sent["timeout_ms"], sent["kill_after_ms"]) == (1, 2500)
    assert encode_exec(GuestExec("a", ["x"]), attach=True)["timeout_ms"] == 0


def test_words_travel_as_bytes() -> None:
    request = GuestExec("a", ["\udcff"], env=["A=é"], cwd="/é", tty=TerminalSize(2, 3))
    sent = encode_exec(request, attach=False)
    assert (sent["argv"], sent["env"], sent["cwd"]) == ([b"\xff"], ["A=é".encode()], "/é".encode())
    assert sent["tty"] == {"rows": 2, "cols": 3}


@pytest.mark.parametrize(
    ("request_", "code"),
    [
        (GuestExec("a", ["x\0"]), "bad_request"),
        (GuestExec("a", ["x"], cwd="relative"), "bad_path"),
    ],
)
def test_what_cannot_be_sent(request_: GuestExec, code: str) -> None:
    with pytest.raises(HutchError) as caught:
        encode_exec(request_, attach=True)
    assert caught.value.code == code


@pytest.mark.parametrize(
    "result", [{}, {"code": 256}, {"code": -1}, {"code": 0, "signal": 9}, {"signal": 128}]
)
def test_results_that_cannot_be(result: dict[str, int]) -> None:
    with pytest.raises(GuestProtocolError):
        parse_result(result)


async def test_attaching_reports_offsets_gaps_and_ends(scripted: ScriptedGuest) -> None:
    guest = await scripted.connect()
    async with asyncio.TaskGroup() as group:
        attaching = group.create_task(guest.attach_exec("a", {1: 10, 2: 0}))
        request = await scripted.request("exec.attach")
        assert request.message()["from"] == {"1": 10, "2": 0}
        offsets = {"pid": 5, "running": True, "tty": True, "offsets": {"1": 10, "2": 0}}
        scripted.send(message(FrameType.REPLY, request.stream, offsets))
    stream = attaching.result()
    assert (stream.id, stream.pid, stream.tty) == ("a", 5, True)
    number = request.stream
    scripted.send(
        encode_gap(number, 1, 90)
        + encode_frame(FrameType.DATA, number, b"xy", 1)
        + encode_frame(FrameType.END, number, b"", 1)
        + message(FrameType.RESULT, number, {"code": 3, "signal": None})
    )
    assert [event async for event in stream] == [
        OutputGap(Channel.STDOUT, 10, 90),
        Output(Channel.STDOUT, 100, b"xy"),
        OutputEnd(Channel.STDOUT, 102),
        ExecResult(3, None),
    ]


async def test_controls_reach_the_session(agent: FakeAgent, guest: Guest) -> None:
    request = GuestExec("c", ["cat"], stdin=True, tty=TerminalSize(1, 2))
    stream = await guest.start_exec(request)
    await stream.resize(TerminalSize(50, 132))
    await stream.set_overflow("drop")
    await stream.close_stdin()
    async for _ in stream:
        pass
    session = agent.sessions["c"]
    assert (session.size, session.overflow) == ({"rows": 50, "cols": 132}, "drop")


async def test_a_listing_is_parsed(agent: FakeAgent, guest: Guest) -> None:
    await guest.spawn_exec(GuestExec("d", ["sleep", "9"], user="www", detached=True))
    (state,) = await guest.list_execs()
    assert (state.argv, state.user, state.detached, state.result) == (
        ["sleep", "9"],
        "www",
        True,
        None,
    )
    assert state.offsets == {1: (0, 0), 2: (0, 0)}


async def test_a_start_that_is_given_up_detaches(scripted: ScriptedGuest) -> None:
    guest = await scripted.connect()
    starting = asyncio.get_running_loop().create_task(guest.start_exec(GuestExec("a", ["x"])))
    request = await scripted.request("exec.start")
    starting.cancel()
    frame = await scripted.frame()
    assert (frame.type, frame.stream) == (FrameType.CLOSE, request.stream)


@pytest.mark.parametrize("reply", [{}, {"pid": "1"}, {"pid": -1}])
async def test_a_malformed_reply_closes_the_connection(
    scripted: ScriptedGuest, reply: dict[str, object]
) -> None:
    guest = await scripted.connect()
    async with asyncio.TaskGroup() as group:
        spawning = group.create_task(code_of(guest.spawn_exec(GuestExec("a", ["x"]))))
        request = await scripted.request("exec.start")
        scripted.send(message(FrameType.REPLY, request.stream, reply))
    assert spawning.result() == "guest_protocol"
    assert guest.closed


async def code_of(awaitable: object) -> str:
    with pytest.raises(HutchError) as caught:
        await awaitable  # type: ignore[misc]
    return caught.value.code

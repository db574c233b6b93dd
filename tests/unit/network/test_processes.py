"""A process that is found, started, watched and started again; here it is the fake gateway."""

import asyncio
import contextlib
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

import hutch
from hutch.errors import HutchError, error
from hutch.network import processes
from hutch.network.channel import Channel, Reply, Values
from hutch.network.processes import Companion, Launch, dismiss, recall, remember
from hutch.process import ProcessId
from tests.unit.descriptors import descriptors
from tests.waiting import until

GATEWAY = str(Path(__file__).with_name("fake_gateway.py"))


class Home:
    """Where a companion lives, and what has been met there."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.met: list[int] = []
        self.refuse: HutchError | None = None
        self.argv = [sys.executable, GATEWAY]
        self.companions: list[Companion] = []

    def companion(self) -> Companion:
        made = Companion(
            "the gateway",
            self.directory / "gateway.sock",
            self.directory / "gateway.id",
            self.directory / "logs/gateway.log",
            launch=self._launch,
            met=self._meet,
        )
        self.companions.append(made)
        return made

    def _launch(self, listening: int) -> Launch:
        return Launch([*self.argv, "--control", str(listening)])

    async def _meet(self, near: Channel, answer: Values, fds: list[int]) -> None:
        assert fds == []
        self.met.append(answer["pid"])
        if self.refuse is not None:
            raise self.refuse

    def identity(self) -> ProcessId | None:
        return recall(self.directory / "gateway.id")


@pytest.fixture
async def home(tmp_path: Path) -> AsyncIterator[Home]:
    made = Home(tmp_path)
    yield made
    for companion in made.companions:
        await companion.close()
    last = made.companions[-1]
    await last.end()
    assert made.identity() is None
    assert not (tmp_path / "gateway.sock").exists()


async def test_it_outlives_who_started_it_and_is_found_again(home: Home) -> None:
    before = descriptors()
    first = home.companion()
    first.open()
    near = await first.channel()
    identity = home.identity()
    assert identity is not None
    assert home.met == [identity.pid]
    assert os.getsid(identity.pid) == identity.pid
    await first.close()
    assert not near.open
    assert identity.alive()
    assert descriptors() == before
    second = home.companion()
    second.open()
    values, _ = await (await second.channel()).call("hello")
    assert values["pid"] == identity.pid
    assert (first.starts, second.starts) == (1, 0)
    await second.end()
    assert not identity.alive()


async def test_a_dead_one_is_started_again_and_met_again(home: Home) -> None:
    companion = home.companion()
    companion.open()
    near = await companion.channel()
    for _ in range(2):
        identity = home.identity()
        assert identity is not None
        identity.kill()
        await near.ended()
        near = await companion.channel()
        values, _ = await near.call("hello")
        assert values["pid"] != identity.pid
    assert companion.starts == 3
    assert len(set(home.met)) == 3


async def test_one_that_does_not_answer_is_killed_and_replaced(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "FOUND_TIME", 0.2)
    monkeypatch.setattr(processes, "END_TIME", 0.2)
    first = home.companion()
    first.open()
    await first.channel()
    identity = home.identity()
    assert identity is not None
    identity.kill(signal.SIGSTOP)
    await first.close()
    second = home.companion()
    second.open()
    values, _ = await (await second.channel()).call("hello")
    assert values["pid"] != identity.pid
    assert not identity.alive()


async def test_one_that_hangs_while_it_is_asked_is_replaced_and_its_successor_asked(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    companion = home.companion()
    companion.open()
    near = await companion.channel()
    identity = home.identity()
    assert identity is not None
    identity.kill(signal.SIGSTOP)
    with monkeypatch.context() as patched:
        patched.setattr(processes, "SLOW_TIME", 0.0)
        patched.setattr(processes, "FOUND_TIME", 0.2)
        values, _ = await companion.call("hello")
    assert values["pid"] != identity.pid
    assert not near.open
    assert not identity.alive()


async def test_one_that_is_slow_but_answers_otherwise_goes_on(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "SLOW_TIME", 0.0)
    answered = asyncio.Event()

    async def hello(values: Values, fds: list[int]) -> Reply:
        answered.set()
        return Reply()

    async def slow(values: Values, fds: list[int]) -> Reply:
        await answered.wait()
        return Reply({"done": True})

    one, other = socket.socketpair()
    near, far = Channel(one), Channel(other, {"hello": hello, "slow": slow})
    companion = home.companion()
    companion._channel = near
    values, _ = await companion.call("slow")
    assert values == {"done": True}
    assert near.open
    await far.close()


async def _up(companion: Companion) -> Channel:
    """A channel, although the first starts failed."""
    while True:
        with contextlib.suppress(HutchError):
            return await companion.channel()
        await asyncio.sleep(0)


async def test_one_of_another_version_is_replaced(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = home.companion()
    first.open()
    await first.channel()
    identity = home.identity()
    await first.close()
    monkeypatch.setattr(hutch, "__version__", "another")
    second = home.companion()
    second.open()
    # The new one is of the version that is on the disk, and is taken all the same: there is none
    # that would fit better.
    await second.channel()
    assert identity is not None
    assert not identity.alive()


async def test_one_that_cannot_be_started_is_told_and_tried_again(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "_PAUSES", (0.0,))
    home.argv = [sys.executable, "-c", "import sys; sys.exit('it is broken')"]
    companion = home.companion()
    companion.open()
    with pytest.raises(HutchError, match="the gateway cannot be started") as told:
        await companion.channel()
    assert "gateway.log" in (told.value.hint or "")
    assert "it is broken" in (home.directory / "logs/gateway.log").read_text()
    home.argv = ["/nowhere/at/all"]
    await until(lambda: _failure(companion, "not installed"))
    home.argv = [sys.executable, GATEWAY]
    assert await _up(companion)


async def _failure(companion: Companion, words: str) -> bool:
    try:
        await companion.channel()
    except HutchError as cause:
        return words in cause.message
    return False


async def test_what_meeting_it_raises_is_told_to_those_who_wait(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "_PAUSES", (0.0,))
    home.refuse = error("network_missing", "no TAPs", hint="root")
    companion = home.companion()
    companion.open()
    with pytest.raises(HutchError, match="no TAPs"):
        await companion.channel()
    home.refuse = None
    assert await _up(companion)


async def test_a_long_log_is_emptied_and_kept_once(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "LOG_LIMIT", 100)
    monkeypatch.setattr(processes, "LOG_INTERVAL", 0.01)
    logs = home.directory / "logs"
    logs.mkdir()
    companion = home.companion()
    companion.open()
    await companion.channel()
    with (logs / "gateway.log").open("a") as log:
        log.write("x" * 200)
        log.flush()
        await until(lambda: (logs / "gateway.log").stat().st_size == 0)
    assert (logs / "gateway.1.log").read_text() == "x" * 200


async def test_one_that_was_never_there_can_be_ended(home: Home) -> None:
    await home.companion().end()


@pytest.mark.parametrize("text", ["", "[1", "[1]", "{}", '["x", 1]', "[4194305, 1]"])
def test_what_is_no_identity_is_nobody(tmp_path: Path, text: str) -> None:
    (tmp_path / "id").write_text(text)
    assert recall(tmp_path / "id") is None
    dismiss(tmp_path / "socket", tmp_path / "id")
    assert not (tmp_path / "id").exists()


def test_an_identity_is_that_of_one_process_for_good(tmp_path: Path) -> None:
    own = ProcessId.of(os.getpid())
    assert own is not None
    remember(tmp_path / "id", own)
    assert recall(tmp_path / "id") == own
    remember(tmp_path / "id", ProcessId(own.pid, own.start_time + 1))
    assert recall(tmp_path / "id") is None

"""The benchmark's own arithmetic and its raw protocol: a figure that lies is worse than none."""

import asyncio
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pytest

from hutch.guest.fake import FakeAgent
from tests.bench import results
from tests.bench.agent import AgentClient, AgentError
from tests.bench.bare import shape
from tests.bench.samples import Check, Measured, Series, alternate, part_of, ratio

T = TypeVar("T")


def test_a_check_fails_on_the_wrong_side_of_its_limit() -> None:
    assert Check("a", 2.0, 2.0, "x").passed
    assert not Check("a", 2.1, 2.0, "x").passed
    assert Check("a", 0.7, 0.7, "x", at_most=False).passed
    assert not Check("a", 0.6, 0.7, "x", at_most=False).passed


def test_a_ratio_is_one_of_medians() -> None:
    base = Series("base", "s", [1.0, 2.0, 99.0])
    assert ratio("r", Series("own", "s", [50.0, 3.0, 3.0]), base, 2.0).figure == 1.5


def test_a_part_is_one_of_medians_too() -> None:
    whole = Series("whole", "s", [8.0, 2.0, 8.0])
    assert part_of("p", Series("own", "s", [1.0, 1.0]), whole, 8).passed
    assert not part_of("p", Series("own", "s", [1.1, 1.1]), whole, 8).passed


def test_samples_alternate_in_turning_order_and_warm_ones_do_not_count() -> None:
    order: list[str] = []

    def taker(name: str) -> Callable[[], float]:
        def take() -> float:
            order.append(name)
            return float(len(order))

        return take

    found = alternate({"a": taker("a"), "b": taker("b")}, 2, warm=1)
    assert order == ["a", "b", "b", "a", "a", "b"]
    assert found == {"a": [4.0, 5.0], "b": [3.0, 6.0]}


def test_the_shape_of_a_command_line_forgets_descriptors_and_names_only() -> None:
    def argv(name: str, fd: int, memory: str) -> list[str]:
        return [
            "-name", f"guest={name},debug-threads=on", "-m", memory,
            "-kernel", f"/proc/self/fd/{fd}", "-add-fd", f"fd={fd},set=1",
        ]  # fmt: skip

    assert shape(argv("a", 5, "512M")) == shape(argv("b", 17, "512M"))
    assert shape(argv("a", 5, "512M")) != shape(argv("a", 5, "256M"))


def test_the_page_shows_every_check_and_a_missed_one_as_missed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(results, "RESULTS", tmp_path)
    monkeypatch.setattr(results, "ROOT", tmp_path.parent)
    measured = Measured(
        "Part",
        [Series("thing", "s", [0.001, 0.002])],
        [Check("kept", 1.0, 2.0, "x"), Check("not kept", 3.0, 2.0, "x")],
    )
    around = results.surroundings(["--quick"], True) | {"accelerator": "tcg"}
    written = results.write(around, [measured])
    page = results.page(json.loads(written.read_text()))
    assert "| kept | 1 x | ≤ 2 x | pass |" in page
    assert "| not kept | 3 x | ≤ 2 x | **missed** |" in page
    assert "| thing | 2 | 1 | 1.5 | 2 | ms |" in page


async def in_step(path: Path, work: Callable[[AgentClient], T]) -> T:
    """Run the blocking client on a thread, with the agent on this loop."""

    def run() -> T:
        client = AgentClient(path, timeout=60)
        try:
            return work(client)
        finally:
            client.close()

    return await asyncio.to_thread(run)


async def test_the_raw_client_runs_programs(short_tmp: Path) -> None:
    async with FakeAgent(short_tmp / "agent", ready=True) as agent:

        def work(client: AgentClient) -> None:
            assert client.hello["stage"] == "ready"
            assert client.run("echo", "a word") == (0, b"a word\n")
            client.release()
            assert client.run("false") == (1, b"")
            with pytest.raises(AgentError, match="not_found"):
                client.run("no-such-program")

        await in_step(Path(agent.path), work)
        assert len(agent.sessions) == 1  # that of `false`: the other was released


async def test_the_raw_client_carries_more_than_a_window_both_ways(short_tmp: Path) -> None:
    blocks = [os.urandom(64 << 10) for _ in range(40)]
    async with FakeAgent(short_tmp / "agent", ready=True) as agent:

        def work(client: AgentClient) -> bytes:
            client.write("/tmp/file", blocks)
            return b"".join(client.read("/tmp/file"))

        assert await in_step(Path(agent.path), work) == b"".join(blocks)


async def test_the_raw_client_gives_up_on_a_silent_agent(short_tmp: Path) -> None:
    async with FakeAgent(short_tmp / "agent") as agent:
        agent.silent = True
        with pytest.raises(TimeoutError):
            await asyncio.to_thread(AgentClient, Path(agent.path), timeout=0.2)

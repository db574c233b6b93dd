import asyncio
import threading
import time
from collections.abc import Callable

import pytest

from hutch.tasks import (
    Scope,
    Stopped,
    both,
    give_way,
    in_thread,
    settle,
    settle_in_thread,
    stop_in_thread,
)


async def forever(begun: asyncio.Event) -> None:
    begun.set()
    await asyncio.Event().wait()


async def test_tasks_run_under_their_name() -> None:
    async def name() -> str:
        task = asyncio.current_task()
        assert task is not None
        return task.get_name()

    async with Scope("sb_1") as scope:
        assert await scope.start("watch", name()) == "sb_1/watch"


async def test_tasks_die_with_their_scope() -> None:
    begun = asyncio.Event()
    async with Scope("daemon") as scope:
        task = scope.start("serve", forever(begun))
        await begun.wait()
    assert task.cancelled()


async def test_a_task_that_never_began_dies_too() -> None:
    async with Scope("daemon") as scope:
        task = scope.start("serve", forever(asyncio.Event()))
    assert task.cancelled()


async def test_both_are_done_at_once() -> None:
    met = asyncio.Event(), asyncio.Event()

    async def meet(mine: int) -> int:
        met[mine].set()
        await met[1 - mine].wait()
        return mine

    assert await both(meet(0), meet(1)) == (0, 1)


async def test_of_both_the_first_failure_counts_and_ends_the_other() -> None:
    begun, ended = asyncio.Event(), asyncio.Event()

    async def other() -> None:
        try:
            await forever(begun)
        finally:
            ended.set()

    async def fail() -> None:
        await begun.wait()
        raise ValueError("told to")

    for pair in ((other, fail), (fail, other)):
        begun.clear()
        ended.clear()
        with pytest.raises(ValueError, match="told to"):
            await both(pair[0](), pair[1]())
        assert ended.is_set()


async def test_the_grace_lets_work_finish() -> None:
    released = asyncio.Event()

    async def finish() -> str:
        await released.wait()
        return "done"

    scope = Scope("daemon", grace=30)
    finishing = scope.start("finish", finish())
    async with asyncio.TaskGroup() as group:
        closing = group.create_task(scope.close())
        await asyncio.sleep(0)
        assert not closing.done()
        released.set()
    assert finishing.result() == "done"


async def test_after_the_grace_the_rest_is_cancelled() -> None:
    begun = asyncio.Event()
    scope = Scope("daemon", grace=0.01)
    task = scope.start("serve", forever(begun))
    await begun.wait()
    async with asyncio.timeout(60):
        await scope.close()
    assert task.cancelled()


async def test_a_failure_is_logged_at_once_and_never_raised(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def fail() -> None:
        raise ValueError("broken pump")

    async with Scope("sb_1") as scope:
        task = scope.start("pump", fail())
        await asyncio.wait([task])
        await asyncio.sleep(0)
        assert "task sb_1/pump failed" in caplog.text
        assert "broken pump" in caplog.text


async def test_a_failure_leaves_the_others_alone() -> None:
    async def fail() -> None:
        raise ValueError("broken pump")

    begun = asyncio.Event()
    async with Scope("sb_1") as scope:
        failing = scope.start("pump", fail())
        other = scope.start("serve", forever(begun))
        await asyncio.wait([failing])
        await begun.wait()
        assert not other.done()


async def test_a_failure_during_cancellation_does_not_escape(
    caplog: pytest.LogCaptureFixture,
) -> None:
    begun = asyncio.Event()

    async def stubborn() -> None:
        try:
            await forever(begun)
        finally:
            raise ValueError("while closing")

    async with Scope("sb_1") as scope:
        scope.start("stubborn", stubborn())
        await begun.wait()
    await asyncio.sleep(0)
    assert "while closing" in caplog.text


async def test_close_ends_although_a_task_ignores_it(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hutch.tasks.CANCEL_TIME", 0.05)
    begun, released = asyncio.Event(), asyncio.Event()

    async def deaf() -> None:
        while not released.is_set():
            try:
                begun.set()
                await released.wait()
            except asyncio.CancelledError:
                continue

    scope = Scope("sb_1")
    task = scope.start("deaf", deaf())
    await begun.wait()
    async with asyncio.timeout(60):
        await scope.close()
    assert "task sb_1/deaf ignores its cancellation" in caplog.text
    released.set()
    await task


async def test_closing_twice_is_fine() -> None:
    scope = Scope("daemon")
    scope.start("serve", forever(asyncio.Event()))
    await scope.close()
    await scope.close()


async def test_in_thread_is_another_thread() -> None:
    def work(text: str, *, times: int) -> tuple[str, int]:
        return text * times, threading.get_ident()

    text, thread = await in_thread(work, "ab", times=2)
    assert text == "abab"
    assert thread != threading.get_ident()


async def test_in_thread_raises_what_the_work_raises() -> None:
    with pytest.raises(FileNotFoundError):
        await in_thread(open, "/nonexistent")


async def test_a_settled_call_ends_before_its_cancellation_shows() -> None:
    release, ended = threading.Event(), threading.Event()

    def work() -> None:
        release.wait(60)
        ended.set()

    async with Scope("test") as scope:
        call = scope.start("call", settle_in_thread(work))
        await asyncio.sleep(0)
        call.cancel()
        asyncio.get_running_loop().call_later(0.02, release.set)
        with pytest.raises(asyncio.CancelledError):
            await call
        assert ended.is_set()


async def test_a_settled_call_is_waited_for_even_when_cancelled_twice() -> None:
    began, go = asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()
    ended: list[bool] = []

    def work() -> None:
        loop.call_soon_threadsafe(began.set)
        go.wait(60)
        ended.append(True)

    async with asyncio.TaskGroup() as group:
        task = group.create_task(settle_in_thread(work))
        await began.wait()
        for _ in range(2):
            task.cancel()
            await asyncio.sleep(0)
        assert not task.done()
        go.set()
    assert task.cancelled()
    assert ended == [True]


async def test_a_long_call_ends_when_it_is_cancelled() -> None:
    began, ended = asyncio.Event(), list[str]()
    loop = asyncio.get_running_loop()

    def work(go_on: Callable[[], None]) -> None:
        go_on()
        loop.call_soon_threadsafe(began.set)
        try:
            while True:
                go_on()
                time.sleep(0.001)
        except Stopped:
            ended.append("stopped")
            raise

    async with asyncio.TaskGroup() as group:
        task = group.create_task(stop_in_thread(work))
        await began.wait()
        task.cancel()
    assert task.cancelled()
    assert ended == ["stopped"]
    assert await stop_in_thread(lambda _: 7) == 7


async def test_settled_work_is_done_to_its_end_and_then_cancelled() -> None:
    began, go = asyncio.Event(), asyncio.Event()
    ended: list[bool] = []

    async def work() -> int:
        began.set()
        await go.wait()
        ended.append(True)
        return 7

    async with asyncio.TaskGroup() as group:
        task = group.create_task(settle(work()))
        await began.wait()
        for _ in range(2):
            task.cancel()
            await asyncio.sleep(0)
        assert not task.done()
        go.set()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert ended == [True]
    assert await settle(work()) == 7


async def test_settled_work_fails_as_it_would_by_itself() -> None:
    async def work() -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        await settle(work())


async def test_work_gives_way_to_what_was_just_begun() -> None:
    done: list[str] = []

    async def send() -> None:
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        done.append("sent")

    async with asyncio.TaskGroup() as group:
        group.create_task(send())
        await give_way()
        done.append("worked")
    assert done == ["sent", "worked"]

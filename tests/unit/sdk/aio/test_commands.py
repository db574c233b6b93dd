import asyncio

import pytest

from hutch.errors import GuestError, HutchError
from hutch.sdk import AsyncClient, AsyncSandbox
from tests.unit.api.fake_operations import FakeOperations
from tests.unit.api.fake_programs import pattern
from tests.waiting import until


@pytest.fixture
async def box(api: str) -> AsyncSandbox:
    return await AsyncSandbox.connect("box", client=AsyncClient(socket=api))


async def test_results(box: AsyncSandbox) -> None:
    result = await box.commands.run(["err", "a"])
    assert (result.stdout, result.stderr, result.exit_code) == ("", "a\n", 3)
    result = await box.commands.run(["env"], env={"K": "V"}, cwd="/x", user="u")
    assert result.stdout == "K=V\ncwd=/x user=u\n"
    await box.client.close()


async def test_text_goes_to_the_shell(box: AsyncSandbox, fake: FakeOperations) -> None:
    with pytest.raises(GuestError) as caught:
        await box.commands.run("echo hi | wc -c")
    assert str(caught.value) == "/bin/sh does not exist"
    await box.client.close()


async def test_much_output_and_much_input(box: AsyncSandbox) -> None:
    data = pattern(16 << 20)
    assert (await box.commands.run(["cat"], stdin=data)).stdout_bytes == data
    assert (await box.commands.run(["bytes", str(32 << 20)])).stdout_bytes == pattern(32 << 20)
    assert (await box.commands.run(["count"], stdin=b"")).stdout.startswith("0 ")


async def test_callbacks_get_text_across_borders(box: AsyncSandbox) -> None:
    seen: list[str] = []
    text = "é" * 100_000
    await box.commands.run(["cat"], stdin="x" + text, on_stdout=seen.append)
    assert "".join(seen) == "x" + text


async def test_a_handle(box: AsyncSandbox) -> None:
    async with await box.commands.run(["cat"], stdin=True, background=True) as handle:
        await handle.send_stdin("one")
        async for chunk in handle:
            assert (chunk.channel, chunk.data) == ("stdout", b"one")
            break
        await handle.send_stdin("two")
        await handle.close_stdin()
        result = await handle.wait()
    assert (result.stdout, result.exit_code, handle.outcome) == ("two", 0, result.outcome)


async def test_one_task_sends_while_another_reads(box: AsyncSandbox) -> None:
    data = pattern(8 << 20)
    async with await box.commands.run(["cat"], stdin=True, background=True) as handle:
        async with asyncio.TaskGroup() as group:
            reading = group.create_task(handle.wait())
            await handle.send_stdin(data)
            await handle.close_stdin()
    assert reading.result().stdout_bytes == data


async def test_signals_and_kills(box: AsyncSandbox) -> None:
    async with await box.commands.run(["hang"], background=True) as handle:
        await handle.signal("TERM")
        assert (await handle.wait()).exit_code == 143
    async with await box.commands.run(["hang"], background=True) as handle:
        await handle.kill()
        assert (await handle.wait()).exit_code == 137


async def test_cancelling_the_caller_kills(box: AsyncSandbox, fake: FakeOperations) -> None:
    async with asyncio.TaskGroup() as group:
        task = group.create_task(box.commands.run(["hang"]))
        await until(lambda: fake.execs.all)
        task.cancel()
    running = fake.execs.all["ex_0"]
    await until(lambda: running.cancelled and running.closes == [False])


async def test_detached_and_attached_again(box: AsyncSandbox, fake: FakeOperations) -> None:
    handle = await box.commands.run(["hang"], background=True)
    await handle.detach()
    running = fake.execs.all[handle.id]
    assert running.closes == [True]
    await handle.detach()  # once is enough
    assert [info.running for info in await box.commands.list()] == [True]
    async with await box.commands.connect(handle.id) as again:
        await box.commands.kill(handle.id, "INT")
        assert (await again.wait()).exit_code == 130
    await box.client.close()


async def test_a_terminal(box: AsyncSandbox) -> None:
    async with await box.pty.create(["size"], rows=10, cols=20) as handle:
        seen = b""
        async for chunk in handle:
            seen += chunk.data
            if seen == b"10x20\n":
                await handle.resize(30, 40)
            if seen.endswith(b"30x40\n"):
                break
    assert seen == b"10x20\n30x40\n"


async def test_errors_of_a_start(box: AsyncSandbox) -> None:
    with pytest.raises(HutchError) as caught:
        await box.commands.run(["nosuch"])
    assert (caught.value.code, caught.value.exit_code) == ("command_not_found", 127)

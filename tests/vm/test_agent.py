"""What the agent does in a real machine that no command shows yet: tunnels, freezing."""

import asyncio
import json
import time
from contextlib import closing

from hutch.guest.session import connect_guest
from hutch.sdk.websocket import BINARY
from hutch.sdk.wire import Connection, WebSocket
from tests.harness.hutch import Hutch
from tests.vm.conftest import Box
from tests.waiting import until, wait_until


def tunnel(hutch: Hutch, name: str, port: int) -> WebSocket:
    """Open the API's stream to a port of a sandbox."""
    path = json.loads((hutch.home / "daemon.lock").read_text())["socket"]
    return Connection.connect(path).websocket(f"/v1/sandboxes/{name}/tunnel", {"port": port})


def test_a_tunnel_carries_both_ways_to_a_port_of_the_guest(box: Box) -> None:
    box.run("nc", "-l", "-p", "4321", "-e", "cat", options=("-d",))
    listening = "grep -c ':10E1 .* 0A ' /proc/net/tcp /proc/net/tcp6 | grep -qv ':0$'"
    wait_until(lambda: box.sh(listening, expect=None).code == 0, what="it listens")
    sent, back = bytes(range(256)) * 256, b""
    with closing(tunnel(box.hutch, box.name, 4321)) as ws:
        first = ws.receive()
        assert first is not None
        assert first.json() == {"connected": True}
        ws.send_binary(sent)
        ws.send_json({"eof": True})
        while (message := ws.receive()) is not None:
            if message.kind == BINARY:
                back += message.data
    assert back == sent


def test_a_port_where_nobody_listens(box: Box) -> None:
    with closing(tunnel(box.hutch, box.name, 4322)) as ws:
        message = ws.receive()
    assert message is not None
    assert message.json()["error"]["code"] == "guest_refused"


async def test_workloads_are_frozen_and_thawed_as_one(hutch: Hutch) -> None:
    hutch.run("run", "-d", "--idle", "--name", "cold", "busybox")
    script = "(while :; do echo x >>/root/inner; done) & while :; do echo x >>/root/outer; done"
    hutch.run("exec", "-d", "cold", "sh", "-c", script)
    hutch.run("daemon", "stop")  # an agent has one host at a time
    (path,) = hutch.runtime.rglob("agent.sock")
    guest = await connect_guest(path, timeout=60)

    async def sizes() -> list[int]:
        return [(await guest.files.stat(f"/root/{name}")).size for name in ("inner", "outer")]

    async def both_grow_from(before: list[int]) -> bool:
        return all(new > old for new, old in zip(await sizes(), before, strict=True))

    try:
        await until(lambda: both_grow_from([0, 0]), what="both write")
        await guest.freeze(timeout=30)
        frozen = await sizes()
        later = time.monotonic() + 0.5
        await until(lambda: time.monotonic() > later)
        assert await sizes() == frozen
        await guest.thaw()
        await until(lambda: both_grow_from(frozen), what="both go on")
    finally:
        await guest.close()
    # In a thread: the loop is still to let go of the agent's socket.
    served = await asyncio.to_thread(hutch.run, "exec", "cold", "echo", "served")
    assert served.text == "served"

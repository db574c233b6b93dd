"""The state of a machine's devices and CPUs, out of one QEMU process and into another.

Knows QMP alone. The guest's memory is not part of it (`x-ignore-shared`): the two processes share
that as a file. The bytes go through a socket pair, the only way that QEMU's jail leaves open and
every version of it knows.
"""

import asyncio
import socket
from collections.abc import Iterator
from contextlib import contextmanager

from hutch.engine.failures import template_failure
from hutch.engine.qmp import Qmp
from hutch.errors import EngineError, error

STATE_LIMIT = 64 << 20
"""Bytes of a state. The largest seen is 0.2 MB; what a QEMU process sends is its guest's to say."""
TIMEOUT = 30.0
_POLL = 0.001
_CHUNK = 256 << 10
_NAME = "state"


async def save(qmp: Qmp) -> bytes:
    """Stop a machine and return its state; it cannot go on afterwards.

    Raises EngineError: engine_failed when QEMU refuses or takes too long, sandbox_died.
    """
    await qmp.execute("stop")
    await _leave_memory_out(qmp)
    try:
        async with asyncio.timeout(TIMEOUT):
            with _pair() as (ours, theirs):
                await qmp.send_fd(_NAME, theirs.fileno())
                theirs.close()
                await qmp.execute("migrate", {"uri": f"fd:{_NAME}"})
                state = await _receive(ours)
            # QEMU hangs up once it is done, and says so at once.
            while (info := await qmp.execute("query-migrate"))["status"] != "completed":
                if info["status"] in ("failed", "cancelled", "cancelling"):
                    why = str(info.get("error-desc", info["status"]))[:300]
                    raise error("engine_failed", f"QEMU cannot save the VM's state: {why}")
                await asyncio.sleep(_POLL)
    except TimeoutError:
        raise error(
            "engine_failed", f"QEMU did not save the VM's state within {TIMEOUT:g} s"
        ) from None
    return state


async def load(qmp: Qmp, state: bytes) -> None:
    """Give a state to a QEMU process that was started to receive one; it is stopped afterwards.

    Raises EngineError with the detail `template`: what does not load now never will.
    """
    try:
        async with asyncio.timeout(TIMEOUT):
            await _leave_memory_out(qmp)
            with _pair() as (ours, theirs):
                await qmp.send_fd(_NAME, theirs.fileno())
                theirs.close()
                await qmp.execute("migrate-incoming", {"uri": f"fd:{_NAME}"})
                await asyncio.get_running_loop().sock_sendall(ours, state)
                ours.shutdown(socket.SHUT_WR)
                status = await _loaded(qmp)
    except TimeoutError:
        raise template_failure(f"the state did not load within {TIMEOUT:g} s") from None
    except OSError as cause:
        raise _gone(f"QEMU does not take the state: {cause.strerror}") from cause
    except EngineError as cause:
        raise (_gone if cause.code == "sandbox_died" else template_failure)(
            cause.message
        ) from cause
    if status != "paused":
        raise template_failure(f"the VM is {status!r} after its state was loaded")


def _gone(message: str) -> EngineError:
    # QEMU ends when a state does not load, and its last words say why.
    return EngineError("sandbox_died", message, details={"template": True})


async def _leave_memory_out(qmp: Qmp) -> None:
    wanted = [{"capability": "x-ignore-shared", "state": True}]
    await qmp.execute("migrate-set-capabilities", {"capabilities": wanted})


async def _loaded(qmp: Qmp) -> str:
    """Return the run state once it is no longer that of a process which receives."""
    while True:
        status = str((await qmp.execute("query-status"))["status"])
        if status != "inmigrate":
            return status
        # QEMU answers nothing while it loads, so this asks again once or twice.
        await asyncio.sleep(_POLL)


@contextmanager
def _pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        yield ours, theirs


async def _receive(sock: socket.socket) -> bytes:
    loop = asyncio.get_running_loop()
    parts, size = [], 0
    while data := await loop.sock_recv(sock, _CHUNK):
        parts.append(data)
        size += len(data)
        if size > STATE_LIMIT:
            raise error("engine_failed", f"the VM's state is larger than {STATE_LIMIT} bytes")
    return b"".join(parts)

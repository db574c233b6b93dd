"""One control connection to a QEMU process: commands with deadlines, and why the machine went down.

A thin wrapper over the `qemu.qmp` library that turns its errors into ours. Knows the wire, not the
machine.
"""

import asyncio
import contextlib
import logging
import socket
from collections.abc import Mapping
from typing import Any, TypeVar

from qemu.qmp import ExecuteError, Message, QMPClient, QMPError, Runstate

from hutch.engine.argv import PASSING
from hutch.errors import EngineError, error

T = TypeVar("T")

# The library reports a peer that goes away, which is how every machine ends, as an error of its
# own.
logging.getLogger("qemu.qmp").setLevel(logging.CRITICAL + 1)

COMMAND_TIMEOUT = 10.0
LINE_LIMIT = 1 << 20
"""Bytes of one message: a hundred times what QEMU sends. The peer may be its guest's by now."""
_TEXT_LIMIT = 300


class Qmp:
    """A session in command mode. Invariant: after `close` no task or socket of it is left."""

    def __init__(self, client: QMPClient) -> None:
        """Take over a client that is not connected yet: no event is lost."""
        self._client = client
        self._reason: str | None = None
        self._handing = asyncio.Lock()
        self._taken_back: set[int] = set()
        # The library keeps every event that passes for ever, and a guest can cause as many as it
        # likes.
        client.events.event_filter = self._note

    def _note(self, event: Message) -> bool:
        data = event.get("data")
        if event.get("event") == "SHUTDOWN" and isinstance(data, Mapping):
            self._reason = str(data.get("reason", ""))[:_TEXT_LIMIT]
        return False

    @classmethod
    async def open(cls, sock: socket.socket, *, timeout: float) -> "Qmp":
        """Negotiate over a connected socket, which is closed when that fails.

        Raises EngineError: engine_failed when QEMU says nothing for `timeout` seconds, sandbox_died
        when it hangs up or talks nonsense.
        """
        client = QMPClient(readbuflen=LINE_LIMIT)
        session = cls(client)
        try:
            sock.setblocking(False)
            async with asyncio.timeout(timeout):
                await client.connect(sock)
        except TimeoutError:
            sock.close()
            raise error(
                "engine_failed", f"QEMU did not answer on its control socket within {timeout:g} s"
            ) from None
        except (QMPError, AssertionError) as cause:
            # The library asserts that a session just made still stands; its peer knows better.
            await _disconnect(client)
            sock.close()
            raise error("sandbox_died", "QEMU hung up before it answered") from cause
        except BaseException:
            sock.close()
            raise
        return session

    async def execute(
        self,
        command: str,
        arguments: Mapping[str, Any] | None = None,
        *,
        timeout: float = COMMAND_TIMEOUT,
    ) -> Any:
        """Run a command and return its result.

        Raises EngineError: sandbox_died when the connection ends first, engine_failed when QEMU
        refuses or is silent.
        """
        try:
            async with asyncio.timeout(timeout):
                return await self._client.execute(command, dict(arguments) if arguments else None)
        except TimeoutError:
            raise error(
                "engine_failed", f"QEMU did not answer {command} within {timeout:g} s"
            ) from None
        except ExecuteError as cause:
            words = str(cause)[:_TEXT_LIMIT]
            raise error("engine_failed", f"QEMU refused {command}: {words}") from cause
        except QMPError as cause:
            raise error("sandbox_died", f"the VM ended during {command}") from cause

    async def ask(
        self, command: str, key: str, kind: type[T], arguments: Mapping[str, Any] | None = None
    ) -> T:
        """Run a command and return one field of its answer.

        Raises as `execute` does, and engine_failed when it is not there, or of another kind.
        """
        answer = await self.execute(command, arguments)
        value = answer.get(key) if isinstance(answer, Mapping) else None
        if not isinstance(value, kind):
            raise error("engine_failed", f"QEMU answered {command} with nonsense")
        return value

    async def send_fd(self, name: str, fd: int) -> None:
        """Hand an open file to QEMU, where `fd:NAME` names it; ours may be closed afterwards.

        Raises EngineError as `execute` does.
        """
        async with self._handing:
            self._attach(fd)
            await self.execute("getfd", {"fdname": name})

    async def add_fd(self, fd: int, *, beside: int | None = None) -> int:
        """Hand an open file to QEMU, where /dev/fdset/N names it, and return N: see `remove_fd`.

        It can only be opened there as it is open here: for reading, for writing or for both; one
        that is given `beside` another, whose N that is, is for the other way, and stays. Raises
        EngineError as `execute` does.
        """
        arguments = {"opaque": PASSING} if beside is None else {"fdset-id": beside}
        async with self._handing:
            self._attach(fd)
            return await self.ask("add-fd", "fdset-id", int, arguments)

    async def remove_fd(self, number: int) -> None:
        """Take back what `add_fd` handed over; where it is in use it stays open. Never raises."""
        self._taken_back.add(number)
        with contextlib.suppress(EngineError):
            await self.execute("remove-fd", {"fdset-id": number})

    async def sweep(self) -> None:
        """Take back all that was handed over to be opened once. Never raises.

        QEMU closes it only while the machine runs: what was taken back before is closed now.
        """
        with contextlib.suppress(EngineError, KeyError, TypeError, AttributeError):
            for found in await self.execute("query-fdsets"):
                for file in found["fds"]:
                    if file.get("opaque") == PASSING or found["fdset-id"] in self._taken_back:
                        which = {"fdset-id": found["fdset-id"], "fd": file["fd"]}
                        await self.execute("remove-fd", which)
            self._taken_back.clear()

    def _attach(self, fd: int) -> None:
        # QEMU keeps it for the next command that asks for one.
        try:
            self._client.send_fd_scm(fd)
        except BlockingIOError as cause:
            raise error("engine_failed", "QEMU does not read its control socket") from cause
        except (QMPError, OSError) as cause:
            raise error("sandbox_died", "the VM ended before it was handed a file") from cause

    async def shutdown_reason(self, *, timeout: float) -> str | None:
        """Return the last SHUTDOWN event's reason, when the peer hangs up or `timeout` s pass."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                while self._client.runstate is Runstate.RUNNING:
                    await self._client.runstate_changed()
        return self._reason

    async def close(self) -> None:
        """Hang up. Idempotent; never raises what the connection died of."""
        await _disconnect(self._client)


async def _disconnect(client: QMPClient) -> None:
    if client.runstate is Runstate.IDLE:
        return
    # EOFError, OSError: the peer was first. The others: it said something wrong, which the library
    # has parsed with Python's own means (too long a number, too deep a nesting); it is over anyway.
    with contextlib.suppress(QMPError, EOFError, OSError, ValueError, RecursionError):
        await client.disconnect()

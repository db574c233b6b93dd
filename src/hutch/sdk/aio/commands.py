"""Commands in a sandbox: run to the end, or handled while they run.

Output is acknowledged as it is consumed, so that a program never gets further ahead of its reader
than its window; stdin is sent as the program takes it. Messages: spec/api.md.
"""

import codecs
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any, Literal, Self, overload

from hutch import errors
from hutch.models import ExecInfo, ExecOutcome, ExecSpec, TtySize, from_json, to_json
from hutch.sdk.aio.transport import Lock, Transport, WebSocket
from hutch.sdk.http1 import broken, quote
from hutch.sdk.values import CHANNELS, Chunk, CommandResult
from hutch.sdk.websocket import BINARY

ACK_SIZE = 256 << 10
"""Bytes consumed before they are acknowledged; a quarter of the window."""
STDIN_PIECE = 64 << 10

OnText = Callable[[str], None]


class _Text:
    """Calls back with text, put together across the borders of chunks."""

    def __init__(self, call: OnText | None) -> None:
        self._call = call
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def feed(self, data: bytes, last: bool = False) -> None:
        if self._call is not None and (text := self._decoder.decode(data, last)):
            self._call(text)


class AsyncCommandHandle:
    """A program under way. Iterate for its output, or `wait` for its end.

    Leaving its context, or `close`, lets go: unless it was detached, the program ends with it.
    """

    def __init__(self, socket: WebSocket, started: Mapping[str, Any]) -> None:
        self.id = str(started["id"])
        """The id to attach by."""
        self.pid: int = started["pid"]
        """Its process id in the guest."""
        self.outcome: ExecOutcome | None = None
        """How it ended; None while it runs."""
        self._socket = socket
        self._credit: int = started["credit"]
        self._queue: deque[Chunk] = deque()
        self._unacked = {"stdout": 0, "stderr": 0}
        self._receiving = Lock()
        self._closed = False

    async def __aiter__(self) -> AsyncIterator[Chunk]:
        while True:
            while self._queue:
                chunk = self._queue.popleft()
                yield chunk
                await self._consumed(chunk)
            if self.outcome is not None:
                return
            await self._receive(output=True)

    async def wait(
        self,
        *,
        stdin: str | bytes | None = None,
        on_stdout: OnText | None = None,
        on_stderr: OnText | None = None,
    ) -> CommandResult:
        """Read all further output, and return it with the outcome once the program has ended.

        `stdin` is sent meanwhile, as the program takes it, and then ended.
        """
        parts = {"stdout": bytearray(), "stderr": bytearray()}
        texts = {"stdout": _Text(on_stdout), "stderr": _Text(on_stderr)}
        view = memoryview(stdin.encode() if isinstance(stdin, str) else stdin or b"")
        if stdin is not None and not view:
            await self.close_stdin()
        while True:
            while view and self._credit and self.outcome is None:
                view = await self._send_piece(view)
                if not view:
                    await self.close_stdin()
            while self._queue:
                chunk = self._queue.popleft()
                parts[chunk.channel] += chunk.data
                texts[chunk.channel].feed(chunk.data)
                await self._consumed(chunk)
            if self.outcome is not None:
                break
            await self._receive(output=True, credit=bool(view))
        for text in texts.values():
            text.feed(b"", last=True)
        return CommandResult(self.outcome, bytes(parts["stdout"]), bytes(parts["stderr"]))

    async def send_stdin(self, data: str | bytes) -> None:
        """Send stdin; waits until the program's side has room for it.

        As with a pipe: a program that waits for its output to be read takes no input.
        """
        view = memoryview(data.encode() if isinstance(data, str) else data)
        while view and self.outcome is None:
            if not self._credit:
                await self._receive(credit=True)
            else:
                view = await self._send_piece(view)

    async def _send_piece(self, view: memoryview) -> memoryview:
        """Send what the credit allows of the bytes; return the rest."""
        size = min(self._credit, STDIN_PIECE, len(view))
        self._credit -= size
        await self._socket.send_binary(b"\0", view[:size])
        return view[size:]

    async def close_stdin(self) -> None:
        """End stdin (EOT on a terminal)."""
        await self._say({"eof": True})

    async def signal(self, name: str) -> None:
        """Send a signal (`INT`, `TERM` …) to the program's process group."""
        await self._say({"signal": name})

    async def resize(self, rows: int, cols: int) -> None:
        """Tell the size of the terminal."""
        await self._say({"resize": {"rows": rows, "cols": cols}})

    async def kill(self) -> None:
        """Kill everything that the command started."""
        await self._say({"cancel": True})

    async def detach(self) -> None:
        """Let go of the program, which lives on; attach again with `commands.connect(id)`.

        It has what was sent before, or 3 seconds to take it.
        """
        if self.outcome is None and not self._closed:
            await self._socket.send_json({"detach": True})
            # Were we gone at once, the daemon might notice that before it has read our last words.
            async with self._receiving:
                while await self._socket.receive() is not None:
                    pass  # output that comes too late
            self._closed = True
            self._socket.close()

    async def close(self) -> None:
        """End the attachment; a program that still runs is killed."""
        if not self._closed:
            self._closed = True
            self._socket.close({"cancel": True} if self.outcome is None else None)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    async def _say(self, message: dict[str, Any]) -> None:
        if self.outcome is None and not self._closed:
            await self._socket.send_json(message)

    async def _consumed(self, chunk: Chunk) -> None:
        self._unacked[chunk.channel] += len(chunk.data)
        if self._unacked[chunk.channel] >= ACK_SIZE and self.outcome is None:
            size, self._unacked[chunk.channel] = self._unacked[chunk.channel], 0
            channel = "1" if chunk.channel == "stdout" else "2"
            await self._socket.send_json({"ack": {channel: size}})

    async def _receive(self, *, output: bool = False, credit: bool = False) -> None:
        """Take one message, unless another reader has meanwhile brought what is waited for.

        Or the program's end, after which there are none.
        """
        async with self._receiving:
            if self.outcome is not None or (output and self._queue) or (credit and self._credit):
                return
            message = await self._socket.receive()
            if message is None:
                raise broken("the daemon ended the command's connection")
            if message.kind == BINARY:
                self._queue.append(Chunk(CHANNELS[message.data[0]], message.data[1:]))
                return
            value = message.json()
        if "exit" in value:
            self.outcome = from_json(ExecOutcome, value["exit"])
            self._closed = True
            self._socket.close()
        elif "credit" in value:
            self._credit += value["credit"]
        elif "gap" in value:
            gap = value["gap"]
            self._queue.append(Chunk(CHANNELS[gap["channel"]], b"", gap["size"]))
        elif "error" in value:
            raise errors.from_json(value["error"])


class AsyncCommands:
    """The programs of one sandbox."""

    def __init__(self, transport: Transport, ref: str) -> None:
        self._transport = transport
        self._base = f"/v1/sandboxes/{quote(ref)}"

    @overload
    async def run(
        self,
        cmd: str | Sequence[str],
        *,
        env: Mapping[str, str] | None = ...,
        cwd: str | None = ...,
        user: str | None = ...,
        timeout: float = ...,
        checkpoint: bool = ...,
        stdin: str | bytes | None = ...,
        on_stdout: OnText | None = ...,
        on_stderr: OnText | None = ...,
        background: Literal[False] = ...,
    ) -> CommandResult: ...

    @overload
    async def run(
        self,
        cmd: str | Sequence[str],
        *,
        env: Mapping[str, str] | None = ...,
        cwd: str | None = ...,
        user: str | None = ...,
        timeout: float = ...,
        checkpoint: bool = ...,
        stdin: bool = ...,
        background: Literal[True],
    ) -> AsyncCommandHandle: ...

    async def run(
        self,
        cmd: str | Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        user: str | None = None,
        timeout: float = 0.0,
        checkpoint: bool = False,
        stdin: str | bytes | bool | None = None,
        on_stdout: OnText | None = None,
        on_stderr: OnText | None = None,
        background: bool = False,
    ) -> CommandResult | AsyncCommandHandle:
        """Run a command: text for /bin/sh, or a list of arguments as they are.

        Returns its result, whatever its exit code; with `background` a handle while it runs
        (`stdin=True` keeps its stdin open). After `timeout` seconds (0: none) it is ended, exit
        code 124. With `checkpoint` one is taken before, which `undo` goes back to. Raises
        GuestError (command_not_found …), and all that a request can raise.
        """
        spec = ExecSpec(
            argv=["/bin/sh", "-c", cmd] if isinstance(cmd, str) else list(cmd),
            env=dict(env or {}),
            workdir=cwd,
            user=user,
            stdin=stdin is not None and stdin is not False,
            timeout=timeout,
            checkpoint=checkpoint,
        )
        handle = await self.start(spec)
        if background:
            return handle
        text = stdin if isinstance(stdin, str | bytes) else None
        async with handle:
            return await handle.wait(stdin=text, on_stdout=on_stdout, on_stderr=on_stderr)

    async def start(self, spec: ExecSpec) -> AsyncCommandHandle:
        """Start what `spec` says, attached."""
        return await self._open({"start": to_json(spec)})

    async def spawn(self, spec: ExecSpec) -> ExecInfo:
        """Start what `spec` says, detached; its output goes to its log."""
        answer = await self._transport.request("POST", f"{self._base}/execs", json=to_json(spec))
        return from_json(ExecInfo, await answer.json())

    async def connect(self, exec_id: str) -> AsyncCommandHandle:
        """Attach to a program that runs, or has just ended; `main` is the main process."""
        return await self._open({"attach": exec_id, "offsets": None})

    async def list(self) -> list[ExecInfo]:
        """Return the programs that are known, running or not."""
        answer = await self._transport.request("GET", f"{self._base}/execs")
        return [from_json(ExecInfo, item) for item in await answer.json()]

    async def kill(self, exec_id: str, signal: str = "KILL") -> None:
        """Send a signal to everything that an exec started."""
        path = f"{self._base}/execs/{quote(exec_id)}/signal"
        answer = await self._transport.request("POST", path, json={"signal": signal, "all": True})
        await answer.close()

    async def _open(self, first: dict[str, Any]) -> AsyncCommandHandle:
        socket = await self._transport.websocket(f"{self._base}/exec")
        try:
            await socket.send_json(first)
            message = await socket.receive()
            value = {} if message is None else message.json()
            if "error" in value:
                raise errors.from_json(value["error"])
            if "started" not in value:
                raise broken("the daemon did not say that the command has started")
        except BaseException:
            socket.close()
            raise
        return AsyncCommandHandle(socket, value["started"])


class AsyncPty:
    """Terminals in one sandbox."""

    def __init__(self, commands: AsyncCommands) -> None:
        self._commands = commands

    async def create(
        self,
        cmd: str | Sequence[str] = ("/bin/sh",),
        *,
        rows: int = 24,
        cols: int = 80,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        user: str | None = None,
        timeout: float = 0.0,
    ) -> AsyncCommandHandle:
        """Start a command on a terminal of its own; all its output is on stdout."""
        spec = ExecSpec(
            argv=["/bin/sh", "-c", cmd] if isinstance(cmd, str) else list(cmd),
            env=dict(env or {}),
            workdir=cwd,
            user=user,
            tty=TtySize(rows, cols),
            stdin=True,
            timeout=timeout,
        )
        return await self._commands.start(spec)

"""A registry in the test's own event loop, that can be told to misbehave request by request."""

import asyncio
import json
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from tests.unit.images.making import MadeImage

_REASONS = {200: "OK", 206: "Partial Content", 307: "Temporary Redirect", 404: "Not Found"}


@dataclass
class Request:
    method: str
    path: str
    headers: dict[str, str]
    body: bytes = b""

    @property
    def range(self) -> tuple[int, int] | None:
        match = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("range", ""))
        return (int(match[1]), int(match[2])) if match else None


@dataclass
class Answer:
    """`cut` sends only so many bytes of the body and drops the connection; `gate` is awaited before
    the body.
    """

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    cut: int | None = None
    gate: asyncio.Event | None = None


Fault = Callable[[Request], Answer | None]


class FakeRegistry:
    """Serves images over plain HTTP. `faults` are asked first; `requests` remembers all."""

    def __init__(self) -> None:
        self.manifests: dict[str, tuple[str, bytes]] = {}
        self.blobs: dict[str, bytes] = {}
        self.faults: list[Fault] = []
        self.requests: list[Request] = []
        self.ranges = True
        self.port = 0

    @property
    def name(self) -> str:
        return f"127.0.0.1:{self.port}"

    def add(self, image: MadeImage, tag: str = "1", *, index: bool = False) -> None:
        """Serve an image under `test/app:tag`, with `index` behind an index."""
        self.blobs |= image.blobs
        kind = str(image.descriptor["mediaType"])
        body = image.blobs[image.id]
        self.manifests[image.id] = (kind, body)
        if index:
            value = image.index()
            kind, body = value["mediaType"], json.dumps(value).encode()
        self.manifests[tag] = (kind, body)

    def blob_requests(self) -> list[Request]:
        return [r for r in self.requests if "/blobs/" in r.path]

    def answer(self, request: Request) -> Answer:
        self.requests.append(request)
        for fault in self.faults:
            if (answer := fault(request)) is not None:
                return answer
        return self.honest(request)

    def honest(self, request: Request) -> Answer:
        """What a sound registry answers."""
        name = request.path.rpartition("/")[2]
        if "/manifests/" in request.path and name in self.manifests:
            kind, body = self.manifests[name]
            return Answer(200, body, {"Content-Type": kind})
        if "/blobs/" in request.path and name in self.blobs:
            body = self.blobs[name]
            if self.ranges and (wanted := request.range):
                start, end = wanted
                headers = {"Content-Range": f"bytes {start}-{end}/{len(body)}"}
                return Answer(206, body[start : end + 1], headers)
            return Answer(200, body)
        return Answer(404)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while line := await reader.readline():
                method, path, _ = line.decode().split()
                headers: dict[str, str] = {}
                while (header := (await reader.readline()).decode().strip()) != "":
                    key, _, value = header.partition(":")
                    headers[key.lower()] = value.strip()
                body = await reader.readexactly(int(headers.get("content-length", 0)))
                answer = self.answer(Request(method, path, headers, body))
                await self._send(writer, answer)
                if answer.cut is not None:
                    break
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    async def _send(self, writer: asyncio.StreamWriter, answer: Answer) -> None:
        reason = _REASONS.get(answer.status, "Status")
        lines = [f"HTTP/1.1 {answer.status} {reason}", f"Content-Length: {len(answer.body)}"]
        lines += [f"{key}: {value}" for key, value in answer.headers.items()]
        writer.write(("\r\n".join(lines) + "\r\n\r\n").encode())
        if answer.gate is not None:
            await writer.drain()
            await answer.gate.wait()
        writer.write(answer.body[: answer.cut])
        await writer.drain()


@asynccontextmanager
async def serving() -> AsyncIterator[FakeRegistry]:
    """Run a fake registry on a free port of the loopback."""
    registry = FakeRegistry()
    server = await asyncio.start_server(registry._serve, "127.0.0.1", 0)
    registry.port = server.sockets[0].getsockname()[1]
    try:
        yield registry
    finally:
        server.close()

"""The WebSockets `exec`, `logs` and `tunnel`.

A connection's first duty is to never hold more than its windows: what a client does not take stays
in the guest. Meanings are in spec/api.md; relaying a program is relay.py's.
"""

import asyncio
from typing import Any

from fastapi import APIRouter
from starlette.websockets import WebSocket

from hutch.api.bodies import validated
from hutch.api.operations import ExecSession, LogQuery, Operations
from hutch.api.relay import Relay
from hutch.api.sockets import Client, first_message, serve, until_lost
from hutch.errors import error
from hutch.guest.base import TunnelStream
from hutch.models import ExecSpec, parse_timestamp


async def open_session(operations: Operations, ref: str, first: dict[str, Any]) -> ExecSession:
    """Start or attach as a first message asks. Raises InvalidInput (bad_request), and theirs."""
    if "start" in first:
        return await operations.execs.start(ref, validated(ExecSpec, first["start"], "start"))
    if not isinstance(first.get("attach"), str):
        raise error("bad_request", 'the first message must have "start" or "attach"')
    offsets = validated(dict[int, int], first.get("offsets") or {}, "offsets") or None
    return await operations.execs.attach(ref, first["attach"], offsets)


def routes(operations: Operations) -> APIRouter:
    """Return the routes of this module."""
    router = APIRouter()

    async def exec_(socket: WebSocket) -> None:
        async def handle(client: Client, socket: WebSocket) -> None:
            first = await first_message(client)
            session = await open_session(operations, socket.path_params["ref"], first)
            await Relay(client, session).run()

        await serve(socket, handle)

    async def logs(socket: WebSocket) -> None:
        async def handle(client: Client, socket: WebSocket) -> None:
            query = log_query(socket)
            await until_lost(
                client, lambda: _send_log(operations, client, socket.path_params["ref"], query)
            )

        await serve(socket, handle)

    async def tunnel(socket: WebSocket) -> None:
        async def handle(client: Client, socket: WebSocket) -> None:
            port = validated(int, socket.query_params.get("port"), "port")
            host = socket.query_params.get("host", "127.0.0.1")
            stream = await operations.files.tunnel(socket.path_params["ref"], port, host)
            try:
                await client.send({"connected": True})
                await _splice(client, stream)
            finally:
                await stream.close()

        await serve(socket, handle)

    router.add_websocket_route("/v1/sandboxes/{ref}/exec", exec_)
    router.add_websocket_route("/v1/sandboxes/{ref}/logs", logs)
    router.add_websocket_route("/v1/sandboxes/{ref}/tunnel", tunnel)
    return router


def log_query(socket: WebSocket) -> LogQuery:
    """Return the query of a log. Raises InvalidInput (bad_request)."""
    query = socket.query_params
    tail = validated(int, query["tail"], "tail") if "tail" in query else None
    if tail is not None and tail < 0:
        raise error("bad_request", "tail: it must not be negative")
    return LogQuery(
        follow=validated(bool, query.get("follow", "false"), "follow"),
        tail=tail,
        since_ns=_moment("since", query.get("since")),
        until_ns=_moment("until", query.get("until")),
        boot=validated(bool, query.get("boot", "false"), "boot"),
        exec_id=query.get("exec", "main"),
    )


def _moment(name: str, text: str | None) -> int | None:
    if text is None:
        return None
    try:
        return int(parse_timestamp(text) * 1e9)
    except ValueError:
        raise error("bad_request", f"{name}: {text!r} is no RFC 3339 timestamp") from None


async def _send_log(operations: Operations, client: Client, ref: str, query: LogQuery) -> None:
    async for record in operations.sandboxes.logs(ref, query):
        if record.missing:
            await client.send({"gap": {"channel": record.channel, "size": record.missing}})
        else:
            head = bytes((record.channel,)) + record.time_ns.to_bytes(8, "little")
            await client.send_bytes(head + record.data)


async def _splice(client: Client, stream: TunnelStream) -> None:
    """Carry bytes both ways until both sides have ended, or the client is gone."""

    async def up() -> None:
        while True:
            message = await client.receive()
            if isinstance(message, bytes):
                await stream.write(message)
            elif message.get("eof"):
                await stream.write_eof()
                return

    async def down() -> None:
        while data := await stream.read():
            await client.send_bytes(data)
        await client.send({"eof": True})

    async with asyncio.TaskGroup() as group:
        group.create_task(up())
        group.create_task(down())

"""A gateway for tests of what stands round it: it judges nothing, and says on which TAP it heard.

Runs as a program of its own, as the real one does, and speaks the same channel. A sandbox with a
policy is answered: TCP with a line that names sandbox and destination, and after it whatever comes;
UDP with the same line.
"""

import asyncio
import contextlib
import os
import signal
import socket
import struct
import sys
from collections.abc import Mapping
from typing import Any

import hutch
from hutch.network.channel import Channel, Handler, Reply, Values, serve
from hutch.tasks import Scope

IP_PKTINFO = 8


class Sandbox:
    def __init__(self, values: Values, fds: list[int]) -> None:
        self.id = str(values["sandbox_id"])
        self.ifindex = int(values["ifindex"])
        self.policy = values["policy"]
        self.tcp, self.dns, self.sntp = (socket.socket(fileno=fd) for fd in fds[:3])
        self.names = fds[3]
        self.open: list[socket.socket] = []
        self.closed = False

    def watch(self) -> None:
        loop = asyncio.get_running_loop()
        loop.add_reader(self.tcp, self._accept)
        loop.add_reader(self.dns, self._datagram, self.dns)
        loop.add_reader(self.sntp, self._datagram, self.sntp)

    def close(self) -> None:
        loop = asyncio.get_running_loop()
        for sock in (self.tcp, self.dns, self.sntp):
            loop.remove_reader(sock)
        self.end_all()
        for sock in (self.tcp, self.dns, self.sntp):
            sock.close()
        os.close(self.names)

    def end_all(self) -> int:
        loop = asyncio.get_running_loop()
        for sock in self.open:
            loop.remove_reader(sock)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            sock.close()
        ended = len(self.open)
        self.open = []
        return ended

    def _line(self, address: str, port: int) -> bytes:
        return f"{self.id} {address}:{port}\n".encode()

    def _accept(self) -> None:
        sock, _ = self.tcp.accept()
        if self.policy is None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            sock.close()
            return
        sock.setblocking(False)
        sock.send(self._line(*sock.getsockname()))
        self.open.append(sock)
        asyncio.get_running_loop().add_reader(sock, self._echo, sock)

    def _echo(self, sock: socket.socket) -> None:
        with contextlib.suppress(OSError):
            if data := sock.recv(1 << 16):
                sock.send(data)
                return
        asyncio.get_running_loop().remove_reader(sock)
        self.open.remove(sock)
        sock.close()

    def _datagram(self, sock: socket.socket) -> None:
        data, ancillary, _, peer = sock.recvmsg(2048, 256)
        if self.policy is None:
            return
        asked = next(content for _, kind, content in ancillary if kind == IP_PKTINFO)
        address = asked[8:12]
        line = self._line(socket.inet_ntoa(address), sock.getsockname()[1])
        told = struct.pack("=I4s4s", 0, address, bytes(4))
        sock.sendmsg([data + line], [(socket.SOL_IP, IP_PKTINFO, told)], 0, peer)


class Gateway:
    def __init__(self) -> None:
        self.sandboxes: dict[str, Sandbox] = {}
        self.ending = asyncio.Event()
        self.channels: list[Channel] = []
        self.told: list[Values] = []

    def handlers(self, channel: Channel) -> Mapping[str, Handler]:
        methods = ("hello", "attach", "update", "detach", "list", "info", "connections")
        own = ("reserve", "end", "tell")
        return {name: getattr(self, f"on_{name}") for name in (*methods, *own)} | {
            "records": self._records_of(channel)
        }

    def _records_of(self, channel: Channel) -> Handler:
        async def records(values: Values, fds: list[int]) -> Reply:
            if channel not in self.channels:
                self.channels.append(channel)
            since = int(values["since"])
            found = self.told[since : since + 2]
            more = since + 2 < len(self.told)
            return Reply({"records": found, "next": since + len(found), "more": more})

        return records

    async def on_reserve(self, values: Values, fds: list[int]) -> Reply:
        return Reply()

    async def on_tell(self, values: Values, fds: list[int]) -> Reply:
        self.told.append(values["record"])
        for channel in self.channels:
            channel.notify("record", {"record": values["record"], "next": len(self.told)})
        return Reply()

    async def on_hello(self, values: Values, fds: list[int]) -> Reply:
        return Reply({"pid": os.getpid(), "version": hutch.__version__})

    async def on_attach(self, values: Values, fds: list[int]) -> Reply:
        made = Sandbox(values, fds)
        await self.on_detach(values, [])
        if (values["policy"] or {}).get("preset") == "bad":
            made.watch()
            made.close()
            raise hutch.errors.error("bad_policy", "no such rule")
        made.watch()
        self.sandboxes[made.id] = made
        return Reply()

    async def on_update(self, values: Values, fds: list[int]) -> Reply:
        sandbox = self.sandboxes[values["sandbox_id"]]
        sandbox.policy = values["policy"]
        return Reply({"ended": sandbox.end_all()})

    async def on_detach(self, values: Values, fds: list[int]) -> Reply:
        if (sandbox := self.sandboxes.pop(values["sandbox_id"], None)) is not None:
            sandbox.close()
        return Reply()

    async def on_list(self, values: Values, fds: list[int]) -> Reply:
        found = [{"sandbox_id": one.id, "ifindex": one.ifindex} for one in self.sandboxes.values()]
        return Reply({"sandboxes": found})

    async def on_info(self, values: Values, fds: list[int]) -> Reply:
        sandbox = self.sandboxes[values["sandbox_id"]]
        told: dict[str, Any] = {"sandbox_id": sandbox.id, "name": "n", "attached": True}
        return Reply({"info": told | {"policy": sandbox.policy, "connections": len(sandbox.open)}})

    async def on_connections(self, values: Values, fds: list[int]) -> Reply:
        sandbox = self.sandboxes[values["sandbox_id"]]
        told = [
            {
                "id": number,
                "state": "open",
                "name": None,
                "address": sock.getsockname()[0],
                "port": sock.getsockname()[1],
                "opened_at": "",
                "sent": 0,
                "received": 0,
            }
            for number, sock in enumerate(sandbox.open)
        ]
        return Reply({"connections": told})

    async def on_end(self, values: Values, fds: list[int]) -> Reply:
        self.ending.set()
        return Reply()


async def main() -> None:
    gateway = Gateway()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, gateway.ending.set)
    listener = socket.socket(fileno=int(sys.argv[sys.argv.index("--control") + 1]))
    async with Scope("gateway") as scope:
        scope.start("serve", serve(listener, gateway.handlers, name="gateway"))
        await gateway.ending.wait()
    listener.close()


if __name__ == "__main__":
    asyncio.run(main())

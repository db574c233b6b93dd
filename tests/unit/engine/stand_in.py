"""A program that looks like QEMU from outside: it takes QEMU's argv and descriptors and speaks QMP.

Run as `stand_in.py MODE ARGV...`; the modes are the ways in which a QEMU process may go wrong. It
boots nothing, and of the command line it knows only the descriptors of the three sockets.
"""

import json
import os
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

MEMORY = b"what the guest has in memory"
PANIC = b"[    1.0] Kernel panic - not syncing: told to\n"


def requests(control: socket.socket, files: list[int] | None = None) -> Iterator[dict[str, Any]]:
    """Yield the objects of a stream in which nothing separates them; collect the open files."""
    files = [] if files is None else files
    text = ""
    while True:
        data, fds, _, _ = socket.recv_fds(control, 4096, 4)
        files += fds
        if not data:
            return
        text += data.decode()
        while text.strip():
            try:
                request, end = json.JSONDecoder().raw_decode(text.lstrip())
            except ValueError:
                break
            text = text.lstrip()[end:]
            yield request


class StandIn:
    """One process."""

    def __init__(self, mode: str, argv: list[str]) -> None:
        self.mode = mode
        self.sockets = dict(self._sockets(argv))
        self.files: list[int] = []
        self.state = "inmigrate" if "-incoming" in argv else "prelaunch"
        devices = [word for word in argv if word.startswith("virtio-blk-pci,")]
        self.layout = json.dumps([argv[argv.index("-smp") + 1], len(devices)]).encode()
        memory = re.search(r"mem-path=([^,]+),share=(\w+)", " ".join(argv))
        if memory and memory[2] == "on":
            with open(memory[1], "r+b") as file:
                file.write(MEMORY)
        if memory and memory[2] == "off":
            with open(memory[1], "r+b") as file:
                assert file.read(len(MEMORY)) == MEMORY

    @staticmethod
    def _sockets(argv: list[str]) -> Iterator[tuple[str, socket.socket]]:
        for word in argv:
            if found := re.fullmatch(r"socket,id=(\w+),fd=(\d+),server=on,wait=off", word):
                yield found[1], socket.socket(fileno=int(found[2]))

    def run(self) -> None:
        """Serve until told to end."""
        if self.mode == "exit":
            sys.stderr.write("stand-in: warning: nic net0 has no peer\nstand-in: no such machine\n")
            sys.exit(3)
        if self.mode == "mute":
            time.sleep(600)
        for name, serve in (("console", self.console), ("agent", self.agent)):
            threading.Thread(target=serve, args=(self.sockets[name],), daemon=True).start()
        while True:
            control, _ = self.sockets["qmp"].accept()
            self.control(control)

    def control(self, control: socket.socket) -> None:
        """Serve one QMP connection."""
        file = control.makefile("rwb", buffering=0)

        def send(body: object) -> None:
            file.write(json.dumps(body).encode() + b"\r\n")

        def shutdown(reason: str) -> None:
            stamp = {"seconds": 1, "microseconds": 0}
            data = {"guest": True, "reason": reason}
            send({"event": "SHUTDOWN", "timestamp": stamp, "data": data})
            os._exit(0)

        if self.mode == "nonsense":
            file.write(b"hello\r\n")
            return
        version = {"qemu": {"micro": 0, "minor": 2, "major": 7}, "package": ""}
        send({"QMP": {"version": version, "capabilities": ["oob"]}})
        for request in requests(control, self.files):
            command = request["execute"]
            if command == "cont" and self.mode == "refuse":
                send(
                    {"error": {"class": "GenericError", "desc": "not now"}, "id": request.get("id")}
                )
                continue
            if command == "silence" or (command == "migrate" and self.mode == "stuck"):
                continue
            send({"return": self.answer(command), "id": request.get("id")})
            if command == "cont" and self.mode == "die":
                os.kill(os.getpid(), 6)
            if command == "cont" and self.mode == "panic":
                self.stream.sendall(PANIC)
                shutdown("guest-reset")
            if command == "cont" and self.mode == "reboot":
                shutdown("guest-reset")
            if command == "system_powerdown":
                shutdown("guest-shutdown")

    def answer(self, command: str) -> dict[str, Any]:
        """Do what a command asks for, and return its result."""
        match command:
            case "stop":
                self.state = "paused"
            case "cont":
                self.state = "running"
            case "migrate":
                threading.Thread(target=self.save, args=(self.files.pop(),), daemon=True).start()
            case "query-migrate":
                failed = {"status": "failed", "error-desc": "told to"}
                return failed if self.mode == "unsavable" else {"status": "completed"}
            case "migrate-incoming":
                threading.Thread(target=self.load, args=(self.files.pop(),), daemon=True).start()
            case "query-status":
                return {"status": self.state, "running": self.state == "running"}
        return {}

    def save(self, target: int) -> None:
        """Give a state, of more bytes than a socket holds."""
        with open(target, "wb") as file:
            file.write(self.layout + b"." * (1 << 20))

    def load(self, source: int) -> None:
        """Take up a state; end as QEMU does when it is another machine's."""
        with open(source, "rb") as file:
            state = file.read()
        if self.mode == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if state.rstrip(b".") != self.layout:
            sys.stderr.write("stand-in: load of migration failed: Invalid argument\n")
            sys.stderr.flush()
            os._exit(1)
        self.state = "internal-error" if self.mode == "confused" else "paused"

    def console(self, server: socket.socket) -> None:
        """Say who is there; take the next connection when one is gone."""
        while True:
            self.stream, _ = server.accept()
            self.stream.sendall(b"stand-in\n")
            while self.stream.recv(1):
                pass

    def agent(self, server: socket.socket) -> None:
        """Echo."""
        while True:
            stream, _ = server.accept()
            while data := stream.recv(4096):
                stream.sendall(data)


if __name__ == "__main__":
    if sys.argv[2:] == ["--version"]:
        sys.stdout.write("Stand-in version 1\n")
    else:
        StandIn(sys.argv[1], sys.argv[2:]).run()

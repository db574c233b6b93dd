"""A program that looks like QEMU from outside: it takes QEMU's argv and descriptors and speaks QMP.

Run as `stand_in.py MODE ARGV...`; the modes are the ways in which a QEMU process may go wrong. It
boots nothing, and of the command line it knows only the descriptors of the three sockets.
"""

import json
import mmap
import os
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any, ClassVar

MEMORY = b"what the guest has in memory"
OWN = 64 << 20
"""Where a clone's guest adds one to each byte of a page."""
NEXT = bytes((byte + 1) % 256 for byte in range(256))
PROPERTIES = {"vendor": "StandIn", "fpu": True, "sse4.1": True, "sse4-1": True, "avx": False}
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


SAVE = "xen-save-devices-state"


class StandIn:
    """One process."""

    refused: ClassVar = {"unsavable": SAVE, "unswitchable": "blockdev-snapshot"}

    def __init__(self, mode: str, argv: list[str]) -> None:
        self.mode = mode
        self.sockets = dict(self._sockets(argv))
        self.files: list[int] = []
        self.state = "inmigrate" if "-incoming" in argv else "prelaunch"
        devices = [word for word in argv if word.startswith("virtio-blk-pci,")]
        self.layout = json.dumps([argv[argv.index("-smp") + 1], len(devices)]).encode()
        self.memory = self._memory(" ".join(argv))
        self.fdsets: dict[int, dict[int, str]] = {}
        """By number: the open files, and what was said of each."""
        for word in argv:
            if found := re.fullmatch(r"fd=(\d+),set=(\d+)(?:,opaque=(\w+))?", word):
                self.fdsets.setdefault(int(found[2]), {})[int(found[1])] = found[3] or ""
        self.disks = ["drive1"]

    @staticmethod
    def _memory(argv: str) -> mmap.mmap:
        """Map the guest's memory as QEMU does; a guest that boots writes to it."""
        given = re.search(r"mem-path=([^,]+),share=(\w+)", argv)
        if given is None:
            size = int(re.search(r"memory-backend-memfd,id=ram,size=(\d+)M", argv)[1]) << 20
            fd = os.memfd_create("memory-backend-memfd")
            os.ftruncate(fd, size)
            memory = mmap.mmap(fd, size)
            memory[: len(MEMORY)] = MEMORY
        else:
            fd = os.open(given[1], os.O_RDWR)
            shared = given[2] == "on"
            flags = mmap.MAP_SHARED if shared else mmap.MAP_PRIVATE
            memory = mmap.mmap(fd, os.fstat(fd).st_size, flags)
            if shared:
                memory[: len(MEMORY)] = MEMORY
        return memory

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
            if command == "silence" or (command == SAVE and self.mode == "stuck"):
                continue
            if command == self.refused.get(self.mode):
                send({"error": {"class": "GenericError", "desc": "told to"}, "id": request["id"]})
                continue
            arguments = request.get("arguments", {})
            send({"return": self.answer(command, arguments), "id": request.get("id")})
            if command == "cont" and self.mode == "die":
                os.kill(os.getpid(), 6)
            if command == "cont" and self.mode == "panic":
                self.stream.sendall(PANIC)
                shutdown("guest-reset")
            if command == "cont" and self.mode == "reboot":
                shutdown("guest-reset")
            if command == "system_powerdown":
                shutdown("guest-shutdown")

    def answer(self, command: str, arguments: dict[str, Any]) -> Any:
        """Do what a command asks for, and return its result."""
        match command:
            case "stop":
                self.state = "paused"
            case "cont":
                self.state = "running"
            case "add-fd":
                number = arguments.get("fdset-id", max(self.fdsets, default=9) + 1)
                fd = self.files.pop()
                self.fdsets.setdefault(number, {})[fd] = arguments.get("opaque", "")
                return {"fdset-id": number, "fd": fd}
            case "remove-fd":
                files = self.fdsets[arguments["fdset-id"]]
                if self.state == "running":
                    for fd in [arguments["fd"]] if "fd" in arguments else list(files):
                        os.close(fd)
                        del files[fd]
            case "query-fdsets":
                return [
                    {"fdset-id": number, "fds": [{"fd": fd, "opaque": files[fd]} for fd in files]}
                    for number, files in self.fdsets.items()
                ]
            case "xen-save-devices-state":
                assert self.state == "paused"
                assert arguments["live"] is False
                self.save(self.fdset(arguments["filename"]))
            case "query-block":
                inserted = [{"node-name": "drive0", "ro": True}]
                inserted += [{"node-name": self.disks[-1], "ro": False}]
                return [{"device": "", "inserted": node} for node in inserted]
            case "blockdev-add":
                assert arguments["backing"] is None
                disk = self.fdset(arguments["file"]["filename"])
                assert os.pread(disk, 4, 0) == b"QFI\xfb"
                self.opened = arguments["node-name"]
            case "blockdev-del":
                assert arguments["node-name"] == self.opened
            case "blockdev-snapshot":
                assert self.state == "paused"
                assert arguments == {"node": self.disks[-1], "overlay": self.opened}
                self.disks.append(self.opened)
            case "migrate-incoming":
                threading.Thread(target=self.load, args=(self.files.pop(),), daemon=True).start()
            case "query-cpu-model-expansion":
                return {"model": {"name": arguments["model"]["name"], "props": PROPERTIES}}
            case "query-status":
                return {"status": self.state, "running": self.state == "running"}
        return {}

    def fdset(self, path: str) -> int:
        """Return the file that was handed over under a number, to be written to."""
        return next(iter(self.fdsets[int(path.removeprefix("/dev/fdset/"))]))

    def save(self, target: int) -> None:
        """Write a state, of more bytes than a socket holds."""
        os.ftruncate(target, 0)
        os.write(target, self.layout + b"." * (1 << 20))

    def load(self, source: int) -> None:
        """Take up a state; end as QEMU does when it is another machine's."""
        with open(source, "rb") as file:
            state = file.read()
        if self.mode == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        # What the process was handed may have been filled only after that.
        if state.rstrip(b".") != self.layout or self.memory[: len(MEMORY)] != MEMORY:
            sys.stderr.write("stand-in: load of migration failed: Invalid argument\n")
            sys.stderr.flush()
            os._exit(1)
        self.memory[OWN : OWN + 4096] = self.memory[OWN : OWN + 4096].translate(NEXT)
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

"""Writes spec/golden-frames.json: the exact bytes of every preamble, frame type and operation.

Run it after a change of the protocol; the tests of both sides read the result, and one of them
checks that running this again changes nothing. Usage: `python scripts/golden_frames.py [FILE]`.
"""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hutch.guest import frames
from hutch.guest.frames import Direction, FrameType, PreambleKind
from hutch.guest.messages import encode_map

TARGET = Path(__file__).resolve().parent.parent / "spec" / "golden-frames.json"

NONCE = bytes(range(0xA0, 0xB0))
BOOT_ID = "0b1e7f52-9a3c-4d7e-8f60-1c2d3e4f5a6b"
INFO = {
    "agent_version": "1.0.0",
    "protocol": 1,
    "kernel": "6.1.0-40-cloud-amd64",
    "boot_id": BOOT_ID,
    "uptime_ns": 1_234_567_890,
    "stage": "ready",
    "cpus": 2,
    "memory_bytes": 536_870_912,
    "frozen": False,
}
ENTRY = {
    "name": b"hosts",
    "type": "file",
    "mode": 0o644,
    "uid": 0,
    "gid": 0,
    "size": 127,
    "mtime_ns": 1_700_000_000_123_456_789,
    "nlink": 1,
    "rdev": 0,
    "target": None,
}
LINK = ENTRY | {
    "name": b"caf\xe9",
    "type": "symlink",
    "mode": 0o777,
    "size": 5,
    "target": b"\xff/../x",
}
EXITED = {
    "code": 3,
    "signal": None,
    "timed_out": False,
    "oom": False,
    "started_ns": 1_700_000_000_000_000_000,
    "ended_ns": 1_700_000_001_000_000_000,
    "cpu_ns": 20_000_000,
}
KILLED = EXITED | {"code": None, "signal": 9, "timed_out": True, "oom": True}
EXEC = {
    "id": "ex_7f3a",
    "argv": [b"/bin/sh", b"-c", b"printf \x9c\xff"],
    "env": [b"PATH=/usr/bin:/bin", b"RAW=\xff\xfe"],
    "cwd": b"/srv",
    "user": "www:33",
    "tty": None,
    "stdin": True,
    "detached": False,
    "main": True,
    "init": False,
    "overflow": "block",
    "timeout_ms": 30_000,
    "kill_after_ms": 5_000,
    "attach": True,
    "nofile": 1_048_576,
    "stop_signal": 15,
}
EXEC_TTY = EXEC | {
    "tty": {"rows": 24, "cols": 80},
    "main": False,
    "init": True,
    "overflow": "drop",
    "timeout_ms": 0,
}
STATS = {
    "cpu_total_ns": 9_000_000_000,
    "cpu_count": 2,
    "load": [0.25, 0.5, 1.0],
    "memory": {
        "total": 536_870_912,
        "available": 400_000_000,
        "used": 100_000_000,
        "cached": 36_870_912,
    },
    "disk": {"total": 10_737_418_240, "used": 4_096, "available": 10_737_414_144},
    "processes": 7,
    "uptime_ns": 60_000_000_000,
    "oom_kills": 0,
}
PROCESS = {
    "pid": 42,
    "ppid": 1,
    "uid": 33,
    "user": "www",
    "state": "S",
    "cpu_ns": 10_000_000,
    "rss": 1_048_576,
    "threads": 1,
    "started_ns": 1_700_000_000_000_000_000,
    "command": b"sleep\x00 60",
    "exec_id": "ex_7f3a",
}
IDENTITY = {
    "realtime_ns": 1_700_000_000_987_654_321,
    "entropy": bytes(range(32)),
    "hostname": "web-1",
    "machine_id": b"0123456789abcdef0123456789abcdef",
    "hosts": [["127.0.0.1", "localhost"], ["127.0.1.1", "web-1"]],
    "nameservers": ["10.0.0.1"],
    "generation": 3,
    "nonce": NONCE,
}
LISTED = {
    "id": "ex_7f3a",
    "pid": 42,
    "argv": [b"sleep", b"60"],
    "user": "",
    "tty": False,
    "detached": True,
    "main": False,
    "running": True,
    "started_ns": 1_700_000_000_000_000_000,
    "result": None,
    "offsets": {"1": [0, 65_536], "2": [4_294_967_296, 4_294_967_296]},
}

Message = Mapping[str, Any]
UNARY: list[tuple[str, Message, Message]] = [
    ("ping", {}, {}),
    ("info", {}, INFO),
    ("mount.root", {"serial": "root", "fstype": "squashfs"}, {}),
    ("mount.overlay", {"serial": "disk", "volumes": [b"/data", b"/v\xff"], "grow": True}, {}),
    (
        "identity",
        IDENTITY,
        {
            "nonce": NONCE,
            "reseeded": True,
            "realtime_ns": 1_700_000_000_988_000_000,
            "generation": 4,
            "sockets_destroyed": 2,
        },
    ),
    (
        "identity",
        {"nonce": NONCE},
        {
            "nonce": NONCE,
            "reseeded": False,
            "realtime_ns": 1_700_000_000_988_000_000,
            "generation": 4,
            "sockets_destroyed": None,
        },
    ),
    (
        "identity",
        {"nonce": NONCE, "network": False},
        {
            "nonce": NONCE,
            "reseeded": False,
            "realtime_ns": 1_700_000_000_989_000_000,
            "generation": 4,
            "sockets_destroyed": 1,
        },
    ),
    ("freeze", {"timeout_ms": 100}, {}),
    ("thaw", {}, {}),
    (
        "prefetch",
        {"programs": [b"/usr/bin/env", b"sh"], "limit": 33_554_432},
        {"files": 5, "bytes": 3_145_728},
    ),
    ("sync", {}, {}),
    ("stats", {}, STATS),
    ("processes", {}, {"processes": [PROCESS, PROCESS | {"pid": 1, "ppid": 0, "exec_id": None}]}),
    ("shutdown", {"action": "poweroff", "signal": 15, "grace_ms": 10_000}, {}),
    (
        "exec.list",
        {},
        {"execs": [LISTED, LISTED | {"id": "e2", "running": False, "result": EXITED}]},
    ),
    ("exec.signal", {"id": "ex_7f3a", "signal": 15, "all": False}, {}),
    ("exec.release", {"id": "ex_7f3a"}, {}),
    ("fs.stat", {"path": b"/etc/hosts", "follow": True}, {"entry": ENTRY}),
    ("fs.mkdir", {"path": b"/srv/a", "mode": 0o755, "parents": True, "uid": 33, "gid": 33}, {}),
    ("fs.remove", {"path": b"/srv/a", "recursive": True}, {}),
    ("fs.rename", {"from": b"/srv/a", "to": b"/srv/b", "replace": False}, {}),
    ("fs.chmod", {"path": b"/srv/b", "mode": 0o4755, "recursive": False}, {}),
    (
        "fs.chown",
        {"path": b"/srv/b", "uid": 1000, "gid": 4_294_967_294, "recursive": True, "follow": False},
        {},
    ),
    ("fs.symlink", {"target": b"../b", "path": b"/srv/c"}, {}),
]
STREAMING: list[tuple[str, Message, Message, Message]] = [
    ("exec.start", EXEC, {"pid": 42, "started_ns": 1_700_000_000_000_000_000}, EXITED),
    ("exec.start", EXEC_TTY, {"pid": 43, "started_ns": 1_700_000_000_000_000_001}, KILLED),
    ("exec.start", EXEC | {"detached": True, "attach": False}, {"pid": 44, "started_ns": 2}, {}),
    (
        "exec.attach",
        {"id": "ex_7f3a", "from": {"1": 65_536, "2": 0}},
        {"pid": 42, "running": True, "tty": False, "offsets": {"1": 65_536, "2": 0}},
        EXITED,
    ),
    (
        "exec.attach",
        {"id": "ex_7f3a", "from": None},
        {"pid": 42, "running": False, "tty": True, "offsets": {"1": 0, "2": 0}},
        KILLED,
    ),
    ("fs.list", {"path": b"/etc"}, {}, {"entries": 2}),
    (
        "fs.read",
        {"path": b"/etc/hosts", "offset": 5, "length": None},
        {"entry": ENTRY},
        {"bytes": 122},
    ),
    (
        "fs.write",
        {
            "path": b"/srv/f",
            "mode": 0o600,
            "uid": 1000,
            "gid": 1000,
            "append": False,
            "parents": True,
            "exclusive": True,
        },
        {},
        {"bytes": 5_368_709_120},
    ),
    (
        "tar.read",
        {"path": b"/srv", "name": b"srv", "follow": False},
        {"entry": ENTRY | {"type": "dir"}},
        {"entries": 3, "bytes": 10_240},
    ),
    (
        "tar.write",
        {"path": b"/srv", "uid": None, "gid": None, "parents": True},
        {},
        {"entries": 3, "bytes": 10_240},
    ),
    ("tunnel", {"host": "127.0.0.1", "port": 8080}, {}, {}),
]
CODES = [
    "bad_request",
    "unsupported",
    "not_found",
    "exists",
    "not_dir",
    "is_dir",
    "not_empty",
    "permission",
    "read_only",
    "no_space",
    "too_large",
    "limit",
    "loop",
    "not_executable",
    "no_such_user",
    "bad_cwd",
    "busy",
    "refused",
    "cancelled",
    "timeout",
    "not_ready",
    "io",
]
ERRNO = {"not_found": 2, "exists": 17, "no_space": 28, "loop": 40, "io": 5}
EVENTS: list[Message] = [
    {"event": "hello", **INFO, "generation": 3},
    {"event": "exec.exit", "id": "ex_7f3a", "result": EXITED},
    {"event": "oom", "exec_id": "ex_7f3a", "process": "python3", "count": 1},
    {"event": "main.exit", "result": KILLED},
    {"event": "generation", "generation": 4, "hooks": 2, "failed": ["10-keys"]},
]


def readable(value: Any) -> Any:
    """Return `value` as JSON can hold it: bytes become {"hex": …}."""
    if isinstance(value, bytes):
        return {"hex": value.hex()}
    if isinstance(value, Mapping):
        return {key: readable(item) for key, item in value.items()}
    if isinstance(value, list):
        return [readable(item) for item in value]
    return value


def preamble(name: str, kind: PreambleKind, version: int) -> dict[str, Any]:
    """Return the row of a preamble."""
    return {
        "name": name,
        "direction": "to_guest" if kind == PreambleKind.HELLO else "to_host",
        "hex": frames.Preamble(kind, version, NONCE).encode().hex(),
        "preamble": kind.name.lower(),
        "version": version,
        "nonce_hex": NONCE.hex(),
    }


def row(
    name: str, direction: Direction, raw: bytes, message: Message | None = None
) -> dict[str, Any]:
    """Return the row of one encoded frame."""
    (frame,) = frames.FrameDecoder(direction).feed(raw)
    entry: dict[str, Any] = {
        "name": name,
        "direction": direction.name.lower(),
        "hex": raw.hex(),
        "type": int(frame.type),
        "channel": frame.channel,
        "stream": frame.stream,
        "payload_hex": frame.payload.hex(),
    }
    return entry if message is None else entry | {"message": readable(message)}


def mapped(
    name: str, direction: Direction, kind: FrameType, stream: int, message: Message
) -> dict[str, Any]:
    """Return the row of a frame that holds a map."""
    return row(name, direction, frames.encode_message(kind, stream, message), message)


def operations() -> list[dict[str, Any]]:
    """Return a request and its answers for every operation."""
    rows = []
    stream = 0
    seen: dict[str, int] = {}

    def numbered(op: str) -> str:
        seen[op] = seen.get(op, 0) + 1
        return op if seen[op] == 1 else f"{op} #{seen[op]}"

    for op, request, reply in UNARY:
        stream += 1
        name = numbered(op)
        message = {"op": op, **request}
        rows.append(
            mapped(f"{name} request", Direction.TO_GUEST, FrameType.REQUEST, stream, message)
        )
        rows.append(mapped(f"{name} reply", Direction.TO_HOST, FrameType.REPLY, stream, reply))
    for op, request, reply, result in STREAMING:
        stream += 1
        name = numbered(op)
        message = {"op": op, **request}
        rows.append(
            mapped(f"{name} request", Direction.TO_GUEST, FrameType.REQUEST, stream, message)
        )
        rows.append(mapped(f"{name} reply", Direction.TO_HOST, FrameType.REPLY, stream, reply))
        rows.append(mapped(f"{name} result", Direction.TO_HOST, FrameType.RESULT, stream, result))
    return rows


def plain_frames() -> list[dict[str, Any]]:
    """Return the frames that hold no map, and the maps that belong to no single operation."""
    to_guest, to_host = Direction.TO_GUEST, Direction.TO_HOST
    encode = frames.encode_frame
    listing = b"".join(encode_map(entry) for entry in (LINK, ENTRY))
    rows = [
        row("stdin data", to_guest, encode(FrameType.DATA, 7, b"\x00in\r\n\xff", 0)),
        row("stdout data", to_host, encode(FrameType.DATA, 7, b"out\n", 1)),
        row("stderr data", to_host, encode(FrameType.DATA, 7, b"err\n", 2)),
        row("empty data", to_host, encode(FrameType.DATA, 7, b"", 1)),
        row("listing data", to_host, encode(FrameType.DATA, 7, listing, 1)),
        row("largest stream id", to_host, encode(FrameType.DATA, 0xFFFF_FFFF, b"x", 1)),
        row("stdin end", to_guest, encode(FrameType.END, 7, b"", 0)),
        row("stdout end", to_host, encode(FrameType.END, 7, b"", 1)),
        row("stderr end", to_host, encode(FrameType.END, 7, b"", 2)),
        row("stdout credit", to_guest, frames.encode_credit(7, 1, 65_536)),
        row("stderr credit", to_guest, frames.encode_credit(7, 2, 1)),
        row("stdin credit", to_host, frames.encode_credit(7, 0, 1_048_576)),
        row("close", to_guest, encode(FrameType.CLOSE, 7)),
        row("stdout gap", to_host, frames.encode_gap(7, 1, 4_294_967_297)),
        row("stderr gap", to_host, frames.encode_gap(7, 2, 5)),
    ]
    # A magic inside DATA: the host cuts it in the middle.
    cut = b"a" + frames.MAGIC + b"b"
    for index, part in enumerate(frames.split_data(cut)):
        rows.append(row(f"cut magic {index}", to_guest, encode(FrameType.DATA, 7, bytes(part), 0)))
    controls: list[Message] = [
        {"signal": 2},
        {"resize": {"rows": 50, "cols": 132}},
        {"overflow": "drop"},
    ]
    rows += [
        mapped(f"control {next(iter(message))}", to_guest, FrameType.CONTROL, 7, message)
        for message in controls
    ]
    for code in CODES:
        message = {"code": code, "message": f"it failed: {code}", "errno": ERRNO.get(code)}
        rows.append(mapped(f"error {code}", to_host, FrameType.ERROR, 7, message))
    rows += [
        mapped(f"event {event['event']}", to_host, FrameType.EVENT, 0, event) for event in EVENTS
    ]
    return rows


def generate() -> str:
    """Return the text of the golden file."""
    rows = [
        preamble("hello", PreambleKind.HELLO, frames.VERSION),
        preamble("welcome", PreambleKind.WELCOME, frames.VERSION),
        preamble("welcome, no version in common", PreambleKind.WELCOME, 0),
        *plain_frames(),
        *operations(),
    ]
    return "[\n" + ",\n".join(json.dumps(entry) for entry in rows) + "\n]\n"


if __name__ == "__main__":
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else TARGET
    target.write_text(generate())

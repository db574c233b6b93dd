"""A guest that greets like the agent and then lies: of its files, its programs, itself.

The VM is real; the lies are told in the agent's stead (liar.py).
"""

import contextlib
import io
import itertools
import signal
import tarfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from hutch.guest.frames import FrameType, encode_data, encode_frame
from hutch.guest.messages import encode_map
from tests.fault.liar import Liar, Lie, message, transfer
from tests.vm.conftest import Box
from tests.vm.streams import memory
from tests.waiting import wait_until

MIB = 1 << 20
MUCH = 48 * MIB
"""More than the daemon keeps of anything."""
_BLOCK = bytes(60 << 10)


@contextmanager
def lying(box: Box, *, patient: bool = False, **lies: Lie) -> Iterator[None]:
    """Have a new daemon hear lies; `_` in the operations' names stands for a dot."""
    hutch = box.hutch
    hutch.kill_daemon()
    [path] = hutch.runtime.glob("*/sb_*/agent.sock")
    answers = {name.replace("_", "."): lie for name, lie in lies.items()}
    with Liar(path, answers, patient=patient):
        hutch.run("ps")
        yield
        if hutch.daemon is not None:
            hutch.kill_daemon()
    # The truth again, with a daemon and a sandbox that are none the worse.
    assert box.run("echo", "well").text == "well"


def entry(**fields: object) -> dict[str, object]:
    plain = {"type": "file", "mode": 0o100644, "uid": 0, "gid": 0, "size": 0, "mtime_ns": 0}
    return {"name": b"f", **plain, **fields}


def stat(**fields: object) -> Lie:
    return lambda stream: [message(FrameType.REPLY, stream, entry=entry(**fields))]


DIRECTORY = stat(name=b"tree", type="dir", mode=0o40755)


def archive(*members: tuple[str, bytes, dict[str, object]]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, kind, fields in members:
            info = tarfile.TarInfo(name)
            info.type = kind
            for key, value in fields.items():
                setattr(info, key, value)
            tar.addfile(info, io.BytesIO(b"x" * info.size))
    return out.getvalue()


def tar(body: bytes) -> Lie:
    return lambda stream: transfer(stream, [body], entries=1, entry=entry(type="dir"))


REG, SYM, LNK, DIR = tarfile.REGTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE
TREE = ("tree", DIR, {"mode": 0o755})
TRICKS = {
    "dots": archive(TREE, ("tree/../../escaped", REG, {"size": 3})),
    "absolute": archive(TREE, ("/tmp/hutch-escaped", REG, {"size": 3})),
    "through a link": archive(
        TREE,
        ("tree/way", SYM, {"linkname": "../.."}),
        ("tree/way/escaped", REG, {"size": 3}),
    ),
    "a link to what is outside": archive(
        TREE, ("tree/passwd", LNK, {"linkname": "tree/../../kept"})
    ),
    "cut short": archive(TREE, ("tree/file", REG, {"size": 5000}))[:3000],
    "no archive": b"\xff" * 4096,
}


def test_archives_that_would_leave_their_place(box: Box, tmp_path: Path) -> None:
    def answer(stream: int) -> Iterable[bytes]:
        return tar(TRICKS[trick])(stream)

    with lying(box, fs_stat=DIRECTORY, tar_read=answer):
        for trick in TRICKS:
            place = tmp_path / trick
            target = place / "in" / "here"
            target.mkdir(parents=True)
            (place / "kept").write_text("mine")
            done = box.hutch.run("--json", "cp", f"{box.name}:/tree", str(target), expect=125)
            assert done.json["error"]["code"] in ("bad_image", "bad_path", "guest_protocol"), done
            assert (place / "kept").read_text() == "mine", trick
            assert (place / "kept").stat().st_nlink == 1, trick
            assert {path.name for path in place.iterdir()} == {"kept", "in"}, trick
            assert not Path("/tmp/hutch-escaped").exists(), trick
            found = {path.name for path in target.rglob("*") if path.is_file()}
            assert found <= {"file"}, (trick, "nothing half-made, nothing of another name")
    assert {path.name for path in tmp_path.iterdir()} == TRICKS.keys()


LIES: dict[str, tuple[str, Lie]] = {
    "no map": ("guest_protocol", lambda n: [encode_frame(FrameType.REPLY, n, b"\xc1")]),
    "no entry": ("guest_protocol", lambda n: [message(FrameType.REPLY, n)]),
    "a huge mode": ("guest_protocol", stat(mode=1 << 40)),
    "an unknown type": ("guest_protocol", stat(type="door")),
    "deeply nested": (
        "guest_protocol",
        lambda n: [encode_frame(FrameType.REPLY, n, b"\x91" * 200_000)],
    ),
    "another's stream": ("guest_protocol", lambda n: [message(FrameType.REPLY, n + 100)]),
    "data first": (
        "guest_protocol",
        lambda n: [b"".join(map(bytes, encode_data(n, 1, b"x")))],
    ),
    "an error with controls": (
        "guest_refused",
        lambda n: [
            message(FrameType.ERROR, n, code="io", message="\x1b[2J\x07evil", errno=5),
        ],
    ),
    "an unknown error": (
        "guest_protocol",
        lambda n: [message(FrameType.ERROR, n, code="\x1b[2Jnew", message="x" * 9999, errno=5)],
    ),
}


@pytest.mark.parametrize("lie", LIES)
def test_answers_that_cannot_be(box: Box, tmp_path: Path, lie: str) -> None:
    code, answer = LIES[lie]
    with lying(box, fs_stat=answer):
        argv = ("cp", f"{box.name}:/f", str(tmp_path / "f"))
        done = box.hutch.run("--json", *argv, expect=125)
        assert done.json["error"]["code"] in (code, "sandbox_died", "guest_failed"), done
        assert b"\x1b" not in box.hutch.run(*argv, expect=125).stderr
    assert list(tmp_path.iterdir()) == []


def endless(stream: int) -> Iterable[bytes]:
    yield message(FrameType.REPLY, stream, entry=entry(), pid=7, started_ns=1)
    block = b"".join(map(bytes, encode_data(stream, 1, _BLOCK)))
    yield from itertools.repeat(block)


def test_output_beyond_its_credit(box: Box) -> None:
    with lying(box, exec_start=endless):
        daemon = box.hutch.daemon
        assert daemon is not None
        before = memory(daemon.pid)
        process = box.start("true", options=())
        # Nobody reads, so nothing is given back, and the guest goes on all the same.
        assert process.wait(120) == 125
        assert memory(daemon.pid) - before < MUCH


def test_events_without_end(box: Box) -> None:
    def events(stream: int) -> Iterable[bytes]:
        yield message(FrameType.REPLY, stream, entry=entry())
        event = {"event": "oom", "exec_id": "x", "process": "\x1b[2J" * 100, "count": 1}
        yield from itertools.repeat(encode_frame(FrameType.EVENT, 0, encode_map(event)) * 20)

    with lying(box, fs_stat=events):
        daemon = box.hutch.daemon
        assert daemon is not None
        before = memory(daemon.pid)
        box.hutch.run("cp", f"{box.name}:/f", "-", expect=None)
        for _ in range(5):
            box.hutch.run("ps")
        assert memory(daemon.pid) - before < MUCH


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGKILL])
def test_a_file_without_end(box: Box, tmp_path: Path, end: signal.Signals) -> None:
    header = tarfile.TarInfo("f")
    header.size = 1 << 50

    def endless_archive(stream: int) -> Iterable[bytes]:
        yield message(FrameType.REPLY, stream, entry=entry())
        parts = itertools.chain([header.tobuf()], itertools.repeat(_BLOCK))
        for part in parts:
            yield b"".join(map(bytes, encode_data(stream, 1, part)))

    with lying(box, patient=True, fs_stat=stat(size=3), tar_read=endless_archive):
        daemon = box.hutch.daemon
        assert daemon is not None
        before = memory(daemon.pid)
        process = box.hutch.start("cp", f"{box.name}:/f", str(tmp_path / "f"))
        wait_until(lambda: _size(tmp_path) > 3 * MUCH, timeout=120, what="it flows")
        assert memory(daemon.pid) - before < MUCH
        assert memory(process.pid) < 2 * MUCH
        process.send_signal(end)
        assert process.wait(60) == (130 if end is signal.SIGINT else -end)
        # The daemon gives up what nobody takes, and serves the next.
        box.hutch.run("ps")
    if end is signal.SIGINT:
        assert not list(tmp_path.iterdir())


def _size(place: Path) -> int:
    total = 0
    for path in place.rglob("*"):
        with contextlib.suppress(FileNotFoundError):  # it has another name by now
            total += path.stat().st_size
    return total


RESULTS: dict[str, Callable[[int], Iterable[bytes]]] = {
    "an exit code out of range": lambda n: [_started(n), _result(n, code=70_000, signal=None)],
    "neither code nor signal": lambda n: [_started(n), _result(n, code=None, signal=None)],
    "a signal out of range": lambda n: [_started(n), _result(n, code=None, signal=4000)],
    "a result of another kind": lambda n: [_started(n), _result(n, code="0", signal="x")],
    "a result twice": lambda n: [
        _started(n),
        _result(n, code=0, signal=None) * 2,
    ],
}


def _started(stream: int) -> bytes:
    return message(FrameType.REPLY, stream, pid=7, started_ns=1)


def _result(stream: int, **fields: object) -> bytes:
    times = {"timed_out": False, "oom": False, "started_ns": 1, "ended_ns": 2, "cpu_ns": 1}
    return message(FrameType.RESULT, stream, **times, **fields)


@pytest.mark.parametrize("lie", RESULTS)
def test_ends_of_programs_that_cannot_be(box: Box, lie: str) -> None:
    with lying(box, exec_start=RESULTS[lie]):
        done = box.run("true", expect=None)
        assert done.code in ((0,) if lie == "a result twice" else (125,)), done

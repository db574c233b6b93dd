"""Checkpoints that share files: daemons that are killed as they are made, files that are damaged.

Each has all that it needs, whatever becomes of the template and of the others.
"""

import os
from collections.abc import Callable
from pathlib import Path

from tests.fault.crash import Crasher, consistent
from tests.fault.test_damaged_snapshots import flipped, shorter
from tests.harness.hutch import Hutch
from tests.vm.resting import look
from tests.waiting import wait_until

TAKE = ("checkpoint", "box")


def kept(hutch: Hutch) -> dict[str, str]:
    """Return the checkpoints by their numbers; nothing else is there, nor half of one."""
    found = {str(x["number"]): str(x["snapshot"]["id"]) for x in hutch.json("checkpoints", "box")}
    ids = set(found.values())
    wait_until(lambda: {path.name for path in hutch.home.glob("snapshots/*")} == ids)
    wait_until(lambda: not list(hutch.home.rglob("*.part")))
    return found


def damaged(path: Path, harm: Callable[[Path], None]) -> None:
    """Harm a file of one checkpoint alone, whoever else has it."""
    whole = path.with_name("whole")
    os.rename(path, whole)
    with whole.open("rb") as source, path.open("wb") as copy:
        copy.truncate(whole.stat().st_size)
        end = 0
        while end < whole.stat().st_size:
            try:
                start = os.lseek(source.fileno(), end, os.SEEK_DATA)
            except OSError:
                break
            end = os.lseek(source.fileno(), start, os.SEEK_HOLE)
            os.pwrite(copy.fileno(), os.pread(source.fileno(), end - start, start), start)
    harm(path)


def test_a_line_of_checkpoints(hutch: Hutch) -> None:
    hutch.run("run", "-d", "--idle", "--name", "box", "busybox")
    hutch.run("exec", "box", "sh", "-c", "echo one >/run/file")
    first = hutch.json(*TAKE)["id"]
    # When its memory is there, and nothing says yet what that is over.
    act = f"1 os.rename {hutch.home.parent}/*/snapshots/*/state.part"
    assert Crasher(hutch).crash_at(act, *TAKE).code == 125
    assert look(hutch, "box")["state"] == "running"
    consistent(hutch)
    hutch.run("exec", "box", "sh", "-c", "echo two >/run/file")
    assert kept(hutch) == {"1": first}
    last = hutch.json(*TAKE)["id"]
    assert kept(hutch) == {"1": last, "2": first}
    directory = hutch.home / "snapshots" / last
    assert (directory / "memory-1").is_file()
    pid = look(hutch, "box")["pid"]
    for name, harm in (("memory-1", flipped), ("memory-1", shorter), ("memory", flipped)):
        damaged(directory / name, harm)
        refused = hutch.run("--json", "undo", "box", expect=125)
        assert refused.json["error"]["code"] == "snapshot_damaged", (name, refused)
        assert look(hutch, "box")["pid"] == pid
        os.replace(directory / "whole", directory / name)
    hutch.run("template", "rm", *[template["id"] for template in hutch.json("template", "ls")])
    assert hutch.json("template", "ls") == []
    hutch.run("undo", "--to", first, "box")
    assert hutch.run("exec", "box", "cat", "/run/file").text == "one"
    hutch.run("snapshot", "rm", first)
    hutch.run("undo", "--to", last, "box")
    assert hutch.run("exec", "box", "cat", "/run/file").text == "two"
    hutch.run("rm", "-f", "box")
    wait_until(lambda: not list(hutch.home.glob("snapshots/*")), what="no snapshot is left")

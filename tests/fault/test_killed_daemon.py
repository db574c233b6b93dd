"""Kill -9 of the daemon before each of its outward acts: the next daemon finds a true state.

Nothing half-made is used, nothing is left, and the same command works when it is given again.
"""

import re
from pathlib import Path

import pytest

from tests.fault.crash import Crasher, chosen, consistent, content, same_content
from tests.harness.fixtures import NewHutch
from tests.harness.hutch import Hutch
from tests.unit.images.making import MadeImage, entry, layer
from tests.waiting import wait_until

_RUN = ("run", "--rm", "--name", "one", "busybox", "echo", "hello")


def test_making_a_sandbox(hutch: Hutch) -> None:
    crasher = Crasher(hutch)
    create = ("create", "--name", "one", "busybox")
    hutch.run(*_RUN)  # makes what a home has from its first sandbox on
    acts = crasher.rehearse(*create)
    hutch.run("rm", "one")
    before = content(hutch)
    for act in chosen(acts, 5):
        ended = crasher.crash_at(act, *create)
        assert ended.code == (125 if crasher.reached else 0), ended
        consistent(hutch)
        if hutch.json("ps", "-a"):
            hutch.run("start", "one")
            hutch.run("rm", "-f", "one")
        same_content(hutch, before, when=act)
    hutch.run(*create)


def test_a_whole_run(hutch: Hutch) -> None:
    crasher = Crasher(hutch)
    hutch.run(*_RUN)
    acts = crasher.rehearse(*_RUN)
    before = content(hutch)
    for act in chosen(acts, 8):
        failed = crasher.crash_at(act, *_RUN)
        assert failed.code in (0, 125), failed
        if failed.code == 125:
            assert b"daemon" in failed.stderr, failed
        wait_until(lambda: not hutch.json("ps", "-a"), what=act)
        consistent(hutch)
        same_content(hutch, before, when=act)
    assert hutch.run(*_RUN).text == "hello"


def test_stopping_and_removing(hutch: Hutch) -> None:
    crasher = Crasher(hutch)
    start = ("run", "-d", "--name", "one", "--idle", "busybox")
    hutch.run(*start)
    before = content(hutch)
    for command in (("stop", "one"), ("rm", "-f", "one")):
        acts = crasher.rehearse(*command)
        for act in chosen(acts, 3):
            if not hutch.json("ps", "-a"):
                hutch.run(*start)
            hutch.run("start", "one")
            assert crasher.crash_at(act, *command).code in (0, 125)
            consistent(hutch)
    if hutch.json("ps", "-a"):
        hutch.run("rm", "-f", "one")
    left = {path for path in content(hutch) if path.startswith("sandboxes/")}
    assert not left
    hutch.run(*start)
    wait_until(lambda: _kinds(content(hutch)) == _kinds(before), what="as it was")


def _kinds(paths: set[str]) -> set[str]:
    return {re.sub(r"(sb|ly)_[0-9a-f]+", "ID", path) for path in paths}


@pytest.mark.parametrize("way", ["builtin", "archive"])
def test_getting_an_image(new_hutch: NewHutch, tmp_path: Path, way: str) -> None:
    hutch = new_hutch()
    if way == "archive":
        root = layer(entry("bin", "dir"), entry("bin/hello", data=b"hello" * 100_000))
        MadeImage([root]).write_docker_archive(tmp_path / "image.tar")
        get = ("image", "import", "--tag", "localhost/made", str(tmp_path / "image.tar"))
        name = "localhost/made"
    else:
        hutch.run("image", "rm", "busybox")
        get, name = ("image", "pull", "busybox"), "busybox"
    crasher = Crasher(hutch)
    before = content(hutch)
    acts = crasher.rehearse(*get)
    complete = content(hutch)
    for act in chosen(acts, 5):
        hutch.run("image", "rm", name)
        assert crasher.crash_at(act, *get).code in (0, 125)
        hutch.run("image", "ls")
        same_content(hutch, before, complete, when=act)
        hutch.run(*get)
        same_content(hutch, complete, when=act)

"""Hosts that lack something: what the user is told, and by whom."""

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

import hutch as package
from tests.harness.fixtures import NewHutch
from tests.harness.hutch import COMMAND, Hutch, Result

TOOLS = (
    "sh",
    "sleep",
    "busybox",
    "apt-get",
    "apt-cache",
    "mkfs.ext4",
    "tar2sqfs",
    "qemu-system-x86_64",
)


@pytest.fixture
def path_without(short_tmp: Path) -> Any:
    """Make a PATH with all of TOOLS but some: `path_without("tar2sqfs")`."""

    def make(*names: str) -> dict[str, str]:
        directory = short_tmp / "bin"
        directory.mkdir()
        for name in TOOLS:
            found = shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/sbin")
            if found and name not in names:
                (directory / name).symlink_to(found)
        return {"PATH": str(directory)}

    return make


def _fails(hutch: Hutch, code: str, *args: str, env: dict[str, str] | None = None) -> Result:
    done = hutch.run("--json", *args, expect=125, env=env)
    told = done.json[0] if isinstance(done.json, list) else done.json
    assert told["error"]["code"] == code, done
    assert told["error"]["message"], done
    assert told["error"]["hint"], done
    assert hutch.json("ps", "-a") == []
    return done


def _doctor(hutch: Hutch, env: dict[str, str]) -> dict[str, tuple[str, str]]:
    done = hutch.run("--json", "doctor", expect=None, env=env)
    checks = {check["name"]: (check["status"], check["fix"] or "") for check in done.json}
    failed = any(status == "fail" for status, _ in checks.values())
    assert done.code == (1 if failed else 0), done
    return checks


def test_no_qemu(new_hutch: NewHutch, short_tmp: Path) -> None:
    hutch = new_hutch(qemu=str(short_tmp / "none"))
    done = _fails(hutch, "engine_missing", "run", "--rm", "busybox", "true")
    assert b"qemu-system-x86" in done.stdout
    status, fix = _doctor(hutch, {})["qemu"]
    assert (status, "apt-get install" in fix) == ("fail", True)
    # Without --json the same words, on stderr, after nothing on stdout.
    plain = hutch.run("run", "--rm", "busybox", "true", expect=125)
    assert plain.stdout == b""
    assert b"apt-get install qemu-system-x86" in plain.stderr


@pytest.mark.parametrize(
    "program",
    [
        "#!/bin/sh\nexit 3\n",
        "#!/bin/sh\necho no such machine >&2; exit 1\n",
        "#!/no/such/interpreter\n",
        "no program at all",
    ],
)
def test_a_qemu_that_is_none(new_hutch: NewHutch, short_tmp: Path, program: str) -> None:
    short_tmp.chmod(0o755)
    fake = short_tmp / "qemu"
    fake.write_text(program)
    fake.chmod(0o755)
    hutch = new_hutch(qemu=str(fake), accelerator="tcg")
    done = hutch.run("--json", "run", "--rm", "busybox", "true", expect=125)
    assert done.json["error"]["code"] in ("engine_failed", "tool_missing"), done
    if "no such machine" in program:
        assert b"no such machine" in done.stdout
    assert hutch.json("ps", "-a") == []
    assert _doctor(hutch, {})["qemu"][0] == "fail"


def test_no_tool_for_root_images(new_hutch: NewHutch, path_without: Any) -> None:
    hutch = new_hutch(empty=True)
    env = path_without("tar2sqfs")
    hutch.env |= env
    if shutil.which("mkfs.erofs"):
        pytest.fail("this host has mkfs.erofs, which PATH cannot hide")
    done = _fails(hutch, "tool_missing", "image", "pull", "busybox")
    assert b"squashfs-tools-ng" in done.stdout
    assert _doctor(hutch, env)["root images"] == ("fail", "apt-get install squashfs-tools-ng")
    assert hutch.json("image", "ls") == []


def test_no_kernel_to_be_had(new_hutch: NewHutch, path_without: Any) -> None:
    hutch = new_hutch(empty=True)
    env = path_without("apt-get", "apt-cache")
    hutch.env |= env
    done = _fails(hutch, "kernel_missing", "run", "--rm", "busybox", "true")
    assert b"hutch kernel import" in done.stdout
    assert _doctor(hutch, env)["kernel"][0] == "warn"
    assert hutch.json("kernel", "ls") == []


@pytest.mark.skipif(os.geteuid() != 0, reason="hiding a program takes a mount of one's own")
def test_no_tool_for_disks(hutch: Hutch) -> None:
    disks, tool = hutch.home / "disks", shutil.which("mkfs.ext4", path="/usr/sbin:/sbin")
    assert tool is not None
    shutil.rmtree(disks, ignore_errors=True)  # one that was made before needs no tool
    # It is found in /usr/sbin on any PATH, so the daemon and `doctor` get one of their own.
    script = 'mount --bind /dev/null "$1" && shift && exec "$@"'
    without = ["unshare", "--mount", "sh", "-c", script, "sh", tool, str(COMMAND)]
    subprocess.run([*without, "ps"], env=hutch.env, check=True, capture_output=True, timeout=120)
    done = _fails(hutch, "tool_missing", "run", "--rm", "busybox", "true")
    assert b"apt-get install e2fsprogs" in done.stdout
    told = subprocess.run(
        [*without, "doctor"], check=False, env=hutch.env, capture_output=True, timeout=120
    )
    assert told.returncode == 1, told
    assert b"apt-get install e2fsprogs" in told.stdout
    assert not list(disks.glob("*"))
    assert not list((hutch.home / "sandboxes").glob("*"))


@pytest.mark.parametrize("empty", [False, True], ids=["kernel at hand", "new home"])
def test_no_guest_agent(new_hutch: NewHutch, tmp_path: Path, empty: bool) -> None:
    """An installation whose package lost its binary; an initramfs made before does not count."""
    installed = tmp_path / "src" / "hutch"
    source = Path(package.__file__).parent
    shutil.copytree(source, installed, ignore=shutil.ignore_patterns("_agent", "__pycache__"))
    hutch = new_hutch(empty=empty)
    hutch.env |= {"PYTHONPATH": str(installed.parent)}
    done = _fails(hutch, "agent_missing", "run", "--rm", "busybox", "true")
    assert b"reinstall" in done.stdout
    status, fix = _doctor(hutch, {})["guest agent"]
    assert (status, "reinstall" in fix) == ("fail", True)
    assert not list((hutch.home / "sandboxes").glob("*"))
    # Mended by what the hint says, with nothing in the way.
    if not empty:
        del hutch.env["PYTHONPATH"]
        hutch.run("daemon", "stop")
        assert hutch.run("run", "--rm", "busybox", "echo", "back").text == "back"

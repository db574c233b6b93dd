"""Starts from bare templates, with real VMs: a disk of any size, new or used, loses nothing."""

import subprocess
from pathlib import Path

import pytest

from tests.harness.fixtures import NewHutch
from tests.harness.hutch import Hutch

LESS = 2
"""By how much less CPU time a clone that mounts its own disk must be there than a cold boot.

The host's CPU time: how long it takes says more of what else the host does.
"""
# The trial in which a disk was lost that had been mounted in the template: what one life wrote was
# gone in the next, and the file system was said to be clean.
FILL = "for i in 1 2 3 4 5 6 7 8; do mkdir -p /kept/$i && echo $i > /kept/$i/file; done"
KEPT = "cat /kept/*/file | tr -d '\\n'"
SEEN = "12345678"
UNIQUE = (
    "head -c 16 /dev/urandom | od -An -tx1; cat /proc/sys/kernel/random/uuid /etc/machine-id;"
    " hostname"
)


@pytest.fixture
def hutch(new_hutch: NewHutch) -> Hutch:
    """A home without a template."""
    return new_hutch()


def sh(hutch: Hutch, name: str, script: str) -> str:
    return hutch.run("exec", name, "sh", "-c", script).text


def cpu_seconds(hutch: Hutch, name: str) -> float:
    return float(hutch.json("stats", name)[0]["host_cpu_seconds"])


def points(hutch: Hutch) -> list[str]:
    return sorted(info["point"] for info in hutch.json("template", "ls"))


def check_disks(hutch: Hutch, directory: Path) -> None:
    """Replay the journals of all disks offline, as the next mount would, and look for damage."""
    layers = list((hutch.home / "layers").iterdir())
    assert layers
    for layer in layers:
        raw = directory / "raw"
        subprocess.run(["qemu-img", "convert", "-O", "raw", str(layer), str(raw)], check=True)
        done = subprocess.run(["e2fsck", "-fp", str(raw)], capture_output=True, check=False)
        raw.unlink()
        assert done.returncode in (0, 1), done.stdout.decode()


@pytest.mark.parametrize("end", [("stop", "-t", "1s"), ("kill",)], ids=["stop", "kill"])
def test_a_later_start_is_a_clone_that_has_every_file(
    hutch: Hutch, short_tmp: Path, end: tuple[str, ...]
) -> None:
    hutch.run("run", "-d", "--idle", "--name", "box", "busybox")
    assert points(hutch) == ["bare", "fresh"]
    times: dict[str, float] = {}
    for life in ("first", "second", "cold", "last"):
        if times:
            hutch.run("start", "box", *(("--no-template",) if life == "cold" else ()))
        used = cpu_seconds(hutch, "box")
        if times:
            assert sh(hutch, "box", KEPT) == SEEN
            assert sh(hutch, "box", "cat /lives").split() == list(times)
        times[life] = used
        sh(hutch, "box", f"{FILL}; echo {life} >> /lives; sync")
        hutch.run(*end, "box")
        check_disks(hutch, short_tmp)
    print(f"CPU seconds: {times}")
    assert max(times["second"], times["last"]) * LESS <= times["cold"]
    (template,) = [each for each in hutch.json("template", "ls") if each["point"] == "bare"]
    assert template["memory_bytes"] > 0


def test_a_disk_of_another_size_is_all_there(new_hutch: NewHutch, short_tmp: Path) -> None:
    hutch = new_hutch(disk="1g")
    hutch.run("run", "-d", "--idle", "--name", "usual", "busybox")
    sizes = {"large": (3 << 30, 2400), "small": (256 << 20, 100)}
    for name, (size, megabytes) in sizes.items():
        hutch.run("run", "-d", "--idle", "--disk", str(size), "--name", name, "busybox")
        seen = int(sh(hutch, name, "cat /sys/block/vdb/size")) * 512
        assert seen == size
        blocks = int(sh(hutch, name, "df -k / | tail -1 | awk '{print $2}'"))
        assert 0.85 * size < blocks * 1024 < size
        # A file larger than the disk that the guest saw when it was frozen, written at its end.
        sh(hutch, name, f"fallocate -l {megabytes}m /big && echo end of file >> /big && sync")
        hutch.run("stop", "-t", "1s", name)
    hutch.run("stop", "-t", "1s", "usual")
    check_disks(hutch, short_tmp)
    for name, (size, megabytes) in sizes.items():
        hutch.run("start", name)
        assert sh(hutch, name, "tail -c 12 /big") == "end of file"
        assert sh(hutch, name, "stat -c %s /big") == str((megabytes << 20) + 12)
        assert int(sh(hutch, name, "cat /sys/block/vdb/size")) * 512 == size
    # All of them are clones, of no more templates than the usual size has.
    assert points(hutch) == ["bare", "fresh"]
    templates = {info["id"]: info["point"] for info in hutch.json("template", "ls")}
    infos = {info["name"]: info for info in hutch.json("inspect", "usual", "large", "small")}
    assert {name: templates[info["template"]] for name, info in infos.items()} == {
        "usual": "fresh",
        "large": "bare",
        "small": "bare",
    }


def test_lives_and_sandboxes_have_nothing_random_in_common(hutch: Hutch) -> None:
    seen = []
    for name in ("one", "two"):
        hutch.run("run", "-d", "--idle", "--disk", "1g", "--name", name, "busybox")
        seen.append(sh(hutch, name, UNIQUE).split("\n"))
    for name in ("one", "two"):
        hutch.run("stop", "-t", "1s", name)
        hutch.run("start", name)
        seen.append(sh(hutch, name, UNIQUE).split("\n"))
    assert points(hutch) == ["bare"]
    # The same commands in the same order, each time in a clone that had run nothing else.
    for random in (0, 1):
        assert len({lines[random] for lines in seen}) == 4
    for lasting in (2, 3):
        assert [lines[lasting] for lines in seen[:2]] == [lines[lasting] for lines in seen[2:]]
        assert seen[0][lasting] != seen[1][lasting]
    assert sh(hutch, "one", "cat /run/hutch/generation") == "2"


def test_a_damaged_bare_template_costs_no_file(hutch: Hutch) -> None:
    hutch.run("run", "-d", "--idle", "--name", "box", "busybox")
    sh(hutch, "box", f"{FILL}; sync")
    hutch.run("stop", "-t", "1s", "box")
    hutch.run("daemon", "stop")
    (bare,) = [path.parent for path in hutch.home.glob("templates/*/template.json")
               if '"bare"' in path.read_text()]  # fmt: skip
    memory = bare / "memory"
    with memory.open("r+b") as file:
        file.seek(memory.stat().st_size // 2)
        file.truncate()
    hutch.run("start", "box")
    assert sh(hutch, "box", KEPT) == SEEN
    assert points(hutch) == ["fresh"]
    hutch.run("stop", "-t", "1s", "box")
    # The next start makes another one.
    hutch.run("start", "box")
    assert sh(hutch, "box", KEPT) == SEEN
    assert points(hutch) == ["bare", "fresh"]

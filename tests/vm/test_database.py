"""A database that is written all the time is whole in whatever is made of its machine meanwhile.

SQLite keeps a part of it in its own memory, a part is in the guest's page cache, a part on the
disk: if these were not of one moment, its integrity check would tell.
"""

import json
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.harness.hutch import Hutch
from tests.unit.images.making import MadeImage, entry, layer
from tests.waiting import wait_until

SOURCE = Path(__file__).with_name("ledger.c")
IMAGE = "localhost/ledger"
FILE = "/root/ledger.db"
ENTRIES = 20
"""So many there are at least."""
LOADED = """
import json, sqlite3
print(json.dumps([line.split()[-1] for line in open("/proc/self/maps") if "libsqlite3" in line]))
"""


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """An image of the program, with the SQLite that this Python uses."""
    found = subprocess.run([sys.executable, "-c", LOADED], check=True, capture_output=True).stdout
    libraries = json.loads(found)
    if not libraries:
        pytest.skip("this Python has its SQLite within itself")
    program = tmp_path / "ledger"
    subprocess.run(
        ["cc", "-O1", "-Wall", "-Werror", "-o", program, SOURCE, libraries[0]], check=True
    )
    needed = subprocess.run(["ldd", program], check=True, capture_output=True, text=True).stdout
    files = {"bin/ledger": program}
    for path in re.findall(r"(?:^|\s)(/\S+) \(", needed):
        files[path.lstrip("/")] = Path(path)
    entries = [entry(name, data=path.read_bytes(), mode=0o755) for name, path in files.items()]
    run = {"Cmd": ["/bin/ledger", "write", FILE], "Env": ["PATH=/bin"]}
    directory = entry("root", "dir")
    return MadeImage([layer(directory, *entries)], run=run).write_docker_archive(
        tmp_path / "ledger.tar"
    )


@dataclass(frozen=True, slots=True)
class Ledger:
    """What a database says of itself: its entries, how many, and the last of a certain life."""

    count: int
    last: int
    point: int


def sql(hutch: Hutch, name: str, statement: str) -> list[str]:
    return hutch.run("exec", name, "/bin/ledger", "sql", FILE, statement).text.splitlines()


def check(hutch: Hutch, name: str, life: int) -> Ledger:
    """Check that a database is whole, and return how far it is."""
    whole, *rest = sql(
        hutch,
        name,
        # In one transaction: it goes on meanwhile.
        "BEGIN; PRAGMA integrity_check;"
        " SELECT count(*), max(n), sum(n) - (SELECT sum FROM total) FROM entries;"
        f" SELECT max(n) FROM entries WHERE life = {life}; SELECT count(*) FROM total; COMMIT",
    )
    assert whole == "ok", (name, whole, rest)
    (count, last, difference), (point,), (totals,) = (line.split("|") for line in rest)
    assert (int(difference), totals) == (0, "1"), (name, rest)
    assert count == last, (name, rest)
    return Ledger(int(count), int(last), int(point))


def settled(hutch: Hutch, name: str, life: int) -> Ledger:
    """Wait until a copy has an entry of its own life: what was under way in `life` is done then."""
    last = "SELECT max(life) FROM entries"
    wait_until(lambda: int(sql(hutch, name, last)[0]) > life, what=f"{name} begins anew")
    return check(hutch, name, life)


def goes_on(hutch: Hutch, name: str, life: int, beyond: int) -> None:
    """Wait until there are entries beyond one of them."""
    wait_until(lambda: check(hutch, name, life).count > beyond, what=f"{name} goes on")


def test_it_is_whole_in_every_copy_and_goes_on(hutch: Hutch, image: Path) -> None:
    hutch.run("image", "import", "--tag", IMAGE, str(image))
    hutch.run("run", "-d", "--name", "box", IMAGE)
    asked = ("exec", "box", "/bin/ledger", "sql", FILE, "SELECT max(n), max(life) FROM entries")

    def begun() -> int:
        count, _, life = hutch.run(*asked, expect=None).text.rpartition("\n")[2].partition("|")
        return int(life) if count.isdigit() and int(count) > ENTRIES else 0

    life = wait_until(begun, what="there are entries")
    names = [child["name"] for child in hutch.json("fork", "--count", "3", "box")["children"]]
    children = [settled(hutch, name, life) for name in names]
    # All are of one moment, also the one that came up last.
    point = children[0].point
    assert point > ENTRIES
    assert [child.point for child in children] == [point] * 3
    goes_on(hutch, names[0], life, children[0].last)
    hutch.run("rm", "-f", *names)
    # The source goes on in its own life, and what is made of it now is of a later moment.
    goes_on(hutch, "box", life, point)
    hutch.run("snapshot", "create", "--name", "then", "box")
    then = check(hutch, "box", life).count
    goes_on(hutch, "box", life, then)
    source = check(hutch, "box", life)
    assert source.point == source.last
    hutch.run("rm", "-f", "box")
    hutch.run("restore", "then", "restored")
    restored = settled(hutch, "restored", life)
    assert point < restored.point <= source.last
    hutch.run("park", "restored")
    goes_on(hutch, "restored", life, restored.last)
    hutch.run("rm", "-f", "restored")
    # What is on its disk is of that moment, too, but for the transaction that was under way.
    hutch.run("restore", "--disk-only", "then", "booted")
    booted = check(hutch, "booted", life)
    assert restored.point - 1 <= booted.point <= restored.point

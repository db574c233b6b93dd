"""The network of real guests, before a pretend internet: what arrives there, and what does not."""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.harness.fixtures import FAILED
from tests.harness.hutch import Hutch
from tests.harness.internet import ECHO, NEIGHBOUR, RESOLVER, Internet, Zone
from tests.harness.stores import SharedStore
from tests.waiting import wait_until

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces take root")

SITE, OTHER, INSIDE = "files.harbour.net", "mail.lagoon.net", "disk.harbour.net"
SITE_AT, OTHER_AT = "5.9.1.1", "5.9.2.2"


@pytest.fixture(scope="module")
def internet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Internet]:
    zone = Zone(hosts={SITE: [SITE_AT], OTHER: [OTHER_AT], INSIDE: [NEIGHBOUR]})
    with Internet(zone, tmp_path_factory.mktemp("internet")) as made:
        yield made


@pytest.fixture(scope="module")
def _hutch(internet: Internet, shared_store: SharedStore) -> Iterator[Hutch]:
    runtime = Path(tempfile.mkdtemp(prefix="h-", dir="/tmp"))
    made = Hutch(
        shared_store.new_home(templates=True),
        runtime,
        {"dns_servers": RESOLVER},
        internet.host.prefix,
    )
    try:
        yield made
    finally:
        made.close()
        shutil.rmtree(runtime, ignore_errors=True)


@pytest.fixture(scope="module")
def _box(_hutch: Hutch) -> str:
    _hutch.run("run", "-d", "--idle", "--name", "box", "--allow", SITE, "busybox")
    return "box"


@pytest.fixture
def hutch(request: pytest.FixtureRequest, _hutch: Hutch) -> Iterator[Hutch]:
    yield _hutch
    _hutch.end_started()
    if request.node.stash.get(FAILED, False):
        print(_hutch.logs())


@pytest.fixture
def box(hutch: Hutch, _box: str) -> str:
    """A sandbox that may reach SITE and nothing else."""
    hutch.run("network", "update", "--policy", "deny", "--allow", SITE, _box)
    return _box


def sh(hutch: Hutch, name: str, script: str) -> str:
    return hutch.run("exec", name, "sh", "-c", f"{script} 2>&1; true").text


# A static busybox looks names up with its nslookup alone; its `wget -T` crashes.
LOOK_UP = (
    r"at() { nslookup -type=a $1 |"
    r" sed -n 's/^Address:[[:space:]]*\([0-9.]*\)$/\1/p' | tail -n 1; };"
)
WGET = "timeout 60 wget -q -O -"


def web(hutch: Hutch, name: str, where: str) -> str:
    address = "$(at $host)" if where[0].isalpha() else "$host"
    get = f'{WGET} --header "Host: $host" http://{address}/'
    return sh(hutch, name, f"{LOOK_UP} host={where}; {get}")


def talks(hutch: Hutch, name: str, where: str, port: int) -> str:
    """Return what a port answers to `hello`."""
    return sh(hutch, name, f"{LOOK_UP} echo hello | nc -w 60 $(at {where}) {port}")


def reaches(hutch: Hutch, name: str, where: str) -> bool:
    """Tell whether a program in a sandbox gets its answer from there."""
    text = web(hutch, name, where)
    assert ('"service": "http"' in text) or "wget:" in text, text
    return '"service": "http"' in text


def arrived(internet: Internet, address: str) -> bool:
    came = [each for each in internet.arrivals if each.address == address]
    return bool(came or internet.left_for(address))


def echoing(hutch: Hutch, name: str) -> list[dict[str, Any]]:
    """Return what is open to that port; others may still be about to close."""
    found = hutch.json("network", "connections", name)
    return [each for each in found if each["port"] == ECHO]


def visits(internet: Internet) -> int:
    """Return how many connections arrived; a resolver may still ask for what was looked up."""
    return len([each for each in internet.arrivals if each.service != "dns"])


def denials(hutch: Hutch, name: str, since: int = 0) -> list[dict[str, Any]]:
    lines = hutch.run(
        "network", "log", "--json", "--denied", "--since", str(since), name
    ).stdout.splitlines()
    return [json.loads(line) for line in lines]


def test_only_what_is_allowed_arrives(internet: Internet, hutch: Hutch, box: str) -> None:
    assert reaches(hutch, box, SITE)
    assert internet.came("http")[-1].said == f"GET {SITE}/"
    assert "403" in web(hutch, box, OTHER)
    assert not reaches(hutch, box, SITE_AT)
    assert not reaches(hutch, box, OTHER_AT)
    assert not reaches(hutch, box, NEIGHBOUR)
    assert "hello" not in talks(hutch, box, SITE, ECHO)
    assert not arrived(internet, OTHER_AT)
    assert not arrived(internet, NEIGHBOUR)
    assert f"1 {OTHER}" not in [each.said for each in internet.came("dns")]

    def told() -> set[str]:
        return {each["name"] or each["address"] for each in denials(hutch, box)}

    wait_until(lambda: {OTHER, SITE, OTHER_AT, NEIGHBOUR} <= told(), what="they are in the log")
    assert {each["reason"] for each in denials(hutch, box) if each["name"] == OTHER} == {
        "not_allowed"
    }
    kinds = [each["kind"] for each in _events(hutch)]
    assert "network.denied" in kinds
    shown = hutch.json("network", "show", box)
    assert (shown["attached"], shown["policy"]["allow"]) == (True, [SITE])
    assert shown["denied_total"] > 0


def _events(hutch: Hutch) -> list[dict[str, Any]]:
    return [json.loads(line) for line in hutch.run("events", "--json").stdout.splitlines()]


def test_a_change_holds_at_once(internet: Internet, hutch: Hutch, box: str) -> None:
    hutch.run("network", "update", "--allow", f"{SITE}:{ECHO}", box)
    script = f"{LOOK_UP} (echo one; sleep 60) | nc $(at {SITE}) {ECHO}"
    talk = hutch.start("exec", "-i", box, "sh", "-c", script)
    assert talk.stdout is not None
    assert talk.stdout.readline() == b"one\n"
    assert [each["name"] for each in echoing(hutch, box)] == [SITE]
    changed = hutch.json("network", "update", "--remove", f"{SITE}:{ECHO}", box)
    assert changed["ended"] == 1
    assert echoing(hutch, box) == []
    assert "hello" not in talks(hutch, box, SITE, ECHO)
    assert reaches(hutch, box, SITE)
    hutch.run("network", "update", "--net", "public", box)
    assert reaches(hutch, box, OTHER)
    assert not reaches(hutch, box, INSIDE)
    assert not arrived(internet, NEIGHBOUR)
    hutch.run("network", "update", "--allow-lan", box)
    assert reaches(hutch, box, INSIDE)


def test_none(internet: Internet, hutch: Hutch, box: str) -> None:
    hutch.run("network", "update", "--net", "none", box)
    before = visits(internet)
    assert not reaches(hutch, box, SITE)
    assert not reaches(hutch, box, SITE_AT)
    assert visits(internet) == before
    hutch.run("network", "update", "--net", "deny", box)
    assert reaches(hutch, box, SITE)


def test_a_port_of_the_host(internet: Internet, hutch: Hutch, box: str) -> None:
    with internet.on_host(4321, b"from the host\n"), internet.on_host(4322, b"closed\n"):
        hutch.run("network", "update", "--allow-host", "4321", box)
        assert talks(hutch, box, "host.hutch", 4321) == "from the host"
        assert "closed" not in talks(hutch, box, "host.hutch", 4322)
        hutch.run("network", "update", "--close-host", "4321", box)
        assert "from" not in talks(hutch, box, "host.hutch", 4321)


def test_it_goes_with_the_sandbox(internet: Internet, hutch: Hutch, box: str) -> None:
    """In forks, in what is restored or parked, and after the daemon's death."""
    address = sh(hutch, box, f"{LOOK_UP} at {SITE}")
    assert address.startswith("198.")
    hutch.run("fork", box, "kid")
    hutch.run("snapshot", "create", "--name", "moment", box)
    hutch.run("network", "update", "--net", "open", box)
    assert reaches(hutch, box, OTHER)
    before = len(internet.came("http"))
    for name in ("kid", "again"):
        if name == "again":
            hutch.run("restore", "moment", name)
        assert hutch.json("network", "show", name)["policy"]["mode"] == "deny"
        # An address that its memory knows is that of the same name.
        get = f"{WGET} --header 'Host: {SITE}' http://{address}/"
        assert SITE in sh(hutch, name, get)
        assert not reaches(hutch, name, OTHER)
    assert len(internet.came("http")) == before + 2
    hutch.run("rm", "-f", "again")
    hutch.run("park", "kid")
    hutch.kill_daemon()
    assert reaches(hutch, "kid", SITE)
    assert not reaches(hutch, "kid", OTHER)
    assert hutch.json("network", "show", box)["attached"]
    assert reaches(hutch, box, OTHER)
    hutch.run("rm", "-f", "kid")


def test_no_sandbox_begins_without_its_policy(internet: Internet, hutch: Hutch, box: str) -> None:
    """Nothing of the first program of a sandbox gets through, cold, cloned or claimed."""
    before = visits(internet)
    hutch.run("pool", "warm", "busybox")
    script = f"{LOOK_UP} {WGET} http://{SITE_AT}/; at {OTHER}; echo over"
    for options in ([], ["--no-template"]):
        program = ["busybox", "sh", "-c", script]
        done = hutch.run("run", "--rm", "--net", "deny", *options, *program)
        assert done.stdout.endswith(b"over\n")
    hutch.run("pool", "drain", "--all")
    assert visits(internet) == before

"""`hutch port` and `-p` as a process."""

import json
from typing import Any

import pytest

from tests.unit.cli.conftest import Cli


def ports_of(hutch: Cli, name: str) -> list[dict[str, Any]]:
    [info] = json.loads(hutch("inspect", name).stdout)
    return list(info["ports"])


def test_ports_are_published_listed_and_given_up(hutch: Cli) -> None:
    sandbox = hutch("create", "-p", "8080:80", "-p", "[::1]::443/tcp", "busybox").stdout.decode()
    name = sandbox.strip()
    try:
        [web, tls] = ports_of(hutch, name)
        assert (web["host_port"], web["guest_port"], web["address"]) == (8080, 80, "127.0.0.1")
        assert (tls["guest_port"], tls["address"]) == (443, "::1")
        first, second = hutch("port", name).stdout.decode().splitlines()
        assert first == "127.0.0.1:8080->80/tcp"
        assert second == f"[::1]:{tls['host_port']}->443/tcp"
        assert hutch("port", name, "80").stdout == b"127.0.0.1:8080\n"
        assert b"127.0.0.1:8080->80/tcp" in hutch("ps", "-a", "--no-trunc").stdout
        done = hutch("port", "publish", name, "9000-9001:90-91", "3000")
        lines = done.stdout.decode().splitlines()
        assert lines[:2] == ["127.0.0.1:9000->90/tcp", "127.0.0.1:9001->91/tcp"]
        assert lines[2].endswith("->3000/tcp")
        done = hutch("port", "unpublish", name, "9000", "127.0.0.1:9001")
        assert done.stdout.decode().splitlines() == lines[:2]
        assert [port["guest_port"] for port in ports_of(hutch, name)] == [80, 443, 3000]
        listed = json.loads(hutch("port", "ls", "--json", name, "443").stdout)
        assert listed == [tls]
        [added] = json.loads(hutch("port", "add", "--json", name, "5000:50").stdout)
        assert added["host_port"] == 5000
        assert json.loads(hutch("port", "rm", "--json", name, "5000").stdout) == [added]
    finally:
        hutch("rm", "-f", name)


def test_what_fails_is_told(hutch: Cli) -> None:
    assert b"(port_not_found)" in hutch("port", "box", "80", code=125).stderr
    assert b"(port_not_found)" in hutch("port", "unpublish", "box", "80", code=125).stderr
    assert b"(port_taken)" in hutch("port", "publish", "box", "9999:80", code=125).stderr
    assert b"(sandbox_not_found)" in hutch("port", "nosuch", code=125).stderr
    for words in (["publish", "box"], ["unpublish", "box"], ["box", "x"], ["ls"]):
        assert b"(bad_request)" in hutch("port", *words, code=125).stderr
    for words in (["publish", "box", "80/udp"], ["unpublish", "box", "80-81"]):
        assert b"(bad_port)" in hutch("port", *words, code=125).stderr


@pytest.mark.parametrize("verb", ["run", "create"])
def test_what_is_no_port_is_refused_before_anything_is_made(hutch: Cli, verb: str) -> None:
    before = hutch("ps", "-aq").stdout
    failure = hutch(verb, "-p", "80/udp", "busybox", "true", code=125).stderr
    assert b"(bad_port)" in failure
    assert b"only TCP ports" in failure
    assert hutch("ps", "-aq").stdout == before

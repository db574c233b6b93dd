"""`hutch run` as a process, and what it asks for."""

import dataclasses
import json
import signal
import subprocess

import pytest

from hutch.cli.grammar import NETWORK, read
from hutch.cli.run import RUN, SPEC, sandbox_spec
from hutch.models import SandboxSpec, from_json
from hutch.networking import PublishedPort
from tests.unit.cli.conftest import Cli


def spec_of(*args: str) -> dict[str, object]:
    line = read(RUN, args)
    assert line is not None
    return sandbox_spec(line.positional, line.words, line.values)


@pytest.mark.parametrize("code", [0, 3, 255])
def test_exit_code(hutch: Cli, code: int) -> None:
    hutch("run", "--rm", "busybox", "exit", str(code), code=code)


def test_output_and_input(hutch: Cli) -> None:
    assert hutch("run", "--rm", "-i", "busybox", "cat", stdin=b"a\0b").stdout == b"a\0b"
    done = hutch("run", "--rm", "busybox", "err", "words", code=3)
    assert (done.stdout, done.stderr) == (b"", b"words\n")


def test_kept_unless_rm(own_hutch: Cli) -> None:
    own_hutch("run", "--name", "kept", "busybox", "exit", "4", code=4)
    own_hutch("run", "--rm", "--name", "gone", "busybox", "true")
    infos = {info["name"]: info for info in json.loads(own_hutch("ps", "-a", "--json").stdout)}
    assert "gone" not in infos
    assert infos["kept"]["exit"]["code"] == 4


def test_detached_prints_the_id(own_hutch: Cli) -> None:
    out = own_hutch("run", "-d", "--name", "bg", "busybox", "hang").stdout.decode()
    assert out.startswith("sb_")
    assert own_hutch("ps", "-q", "--filter", "name=bg").stdout.decode() == out
    idle = json.loads(own_hutch("run", "--idle", "--json", "busybox").stdout)
    assert (idle["idle"], idle["state"]) == (True, "running")


def test_json_holds_output_and_sandbox(hutch: Cli) -> None:
    body = json.loads(hutch("run", "--rm", "--json", "busybox", "echo", "hi").stdout)
    assert (body["stdout"], body["exit_code"]) == ("hi\n", 0)
    assert body["sandbox"]["state"] == "stopped"


def test_failures(hutch: Cli) -> None:
    done = hutch("run", "nosuch", "true", code=125)
    assert done.stderr == b"hutch: no image nosuch (image_not_found)\n"
    assert hutch("run", "--rm", "busybox", "nosuch", code=127).stdout == b""
    assert b"no main process" in hutch("run", "--idle", "busybox", "true", code=125).stderr
    assert b"--memory" in hutch("run", "-m", "much", "busybox", code=125).stderr
    assert b"--env-file" in hutch("run", "--env-file", "/nosuch", "busybox", code=125).stderr


def test_interrupt_reaches_the_main_process(hutch: Cli) -> None:
    with hutch.start("run", "--rm", "busybox", "hang") as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"ready\n"
        child.send_signal(signal.SIGINT)
        assert child.wait(60) == 130


def test_interrupt_during_the_pull_takes_it_back(own_hutch: Cli) -> None:
    with own_hutch.start("image", "pull", "hang") as child:
        with pytest.raises(subprocess.TimeoutExpired):
            child.wait(1)
        child.send_signal(signal.SIGINT)
        assert child.wait(60) == 130
    own_hutch("image", "inspect", "hang", code=125)


def test_words_after_the_image_are_the_commands() -> None:
    spec = spec_of("-e", "A=1", "img", "ls", "-e", "--rm", "--")
    assert spec["command"] == ["ls", "-e", "--rm", "--"]
    assert spec["auto_remove"] is False


def test_all_options() -> None:
    spec = spec_of(
        *("--name=n", "--entrypoint", "sh -c", "--cpus", "2", "-m", "1g", "--disk=2g"),
        *("--timeout", "1h", "-la=b", "-l", "c", "--hostname", "h", "--stop-signal", "INT"),
        *("--kernel", "k", "--pull", "never", "--rm", "-w", "/w", "-u", "a:b", "img"),
    )
    assert spec == {
        "image": "img",
        "name": "n",
        "entrypoint": ["sh", "-c"],
        "cpus": 2,
        "memory": 1 << 30,
        "disk": 2 << 30,
        "timeout": 3600.0,
        "labels": {"a": "b", "c": ""},
        "hostname": "h",
        "stop_signal": "INT",
        "kernel": "k",
        "pull": "never",
        "auto_remove": True,
        "workdir": "/w",
        "user": "a:b",
        "env": {},
    }
    assert spec.keys() <= {field.name for field in dataclasses.fields(SandboxSpec)}


def test_an_empty_entrypoint_takes_the_images_away() -> None:
    assert spec_of("--entrypoint", "", "img", "sh")["entrypoint"] == []


def test_ports_are_read() -> None:
    spec = spec_of("-p", "8080:80", "-p[::1]:8443-8444:443-444", "-P", "img")
    assert spec["publish_all"] is True
    assert [port["host_port"] for port in spec["ports"]] == [8080, 8443, 8444]
    assert from_json(SandboxSpec, spec).ports[1] == PublishedPort(443, 8443, "::1")
    assert "ports" not in spec_of("img")


def test_every_option_ends_in_the_spec() -> None:
    fields = {field.name for field in dataclasses.fields(SandboxSpec)}
    own = {option.dest for option in SPEC} - {option.dest for option in NETWORK}
    assert own - fields == {"label", "env_file", "no_template"}
    assert spec_of("--no-template", "img")["template"] is False

"""What a request becomes: the rules of container tools, sizes, signals."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from hutch.content import ImageConfig
from hutch.errors import HutchError
from hutch.images.base import Image, RootFs
from hutch.models import (
    ExecSpec,
    SandboxInfo,
    SandboxSpec,
    SandboxState,
    TtySize,
)
from hutch.networking import NetworkMode, NetworkPolicy
from hutch.service import spec as rules
from hutch.service.spec import HostSize
from hutch.settings import GIB, MIB, Settings

CONFIG = ImageConfig(
    entrypoint=["/entry", "-x"],
    command=["cmd"],
    env={"PATH": "/bin", "A": "image"},
    workdir="/srv",
    user="www:www",
    stop_signal="SIGQUIT",
    volumes=["/data"],
    exposed_ports=["80/tcp"],
)
HOST = HostSize(4, 8 * GIB)


@pytest.fixture
def resolve(settings: Settings) -> Any:
    def resolve(config: ImageConfig = CONFIG, **fields: Any) -> SandboxInfo:
        image = Image("sha256:1", "web:1", config, RootFs(Path("/r"), "squashfs", 1))
        request = SandboxSpec("web:1", **fields)
        rules.check_request(request, settings, HOST)
        return rules.resolve(
            request,
            image,
            settings,
            HOST,
            sandbox_id="sb_1",
            name="one",
            created_at="now",
            network=NetworkPolicy(NetworkMode.DENY),
        )

    return resolve


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, ["/entry", "-x", "cmd"]),
        ({"command": ["a", "b"]}, ["/entry", "-x", "a", "b"]),
        ({"command": []}, ["/entry", "-x", "cmd"]),
        ({"entrypoint": ["/mine"]}, None),
        ({"entrypoint": ["/mine"], "command": ["a"]}, ["/mine", "a"]),
        ({"entrypoint": [""], "command": ["a"]}, ["a"]),
        ({"idle": True}, []),
    ],
)
def test_command(resolve: Any, fields: Any, expected: list[str] | None) -> None:
    assert resolve(**fields).command == (["/mine"] if expected is None else expected)


def test_a_new_entry_point_drops_the_command_of_the_image(resolve: Any) -> None:
    with pytest.raises(HutchError) as caught:
        resolve(entrypoint=[""])
    assert caught.value.code == "bad_command"


def test_what_comes_from_the_image(resolve: Any) -> None:
    info = resolve(env={"A": "mine", "B": ""})
    assert info.env == {"PATH": "/bin", "A": "mine", "B": ""}
    assert (info.workdir, info.user, info.stop_signal) == ("/srv", "www:www", "SIGQUIT")
    assert (info.volumes, info.exposed_ports) == (["/data"], ["80/tcp"])
    assert (info.state, info.hostname) == (SandboxState.CREATED, "one")


def test_what_is_asked_for_goes_first(resolve: Any) -> None:
    info = resolve(workdir="/w", user="", stop_signal="int", hostname="h", labels={"k": "v"})
    assert (info.workdir, info.user, info.stop_signal) == ("/w", "", "SIGINT")
    assert (info.hostname, info.labels) == ("h", {"k": "v"})


def test_an_empty_image(resolve: Any) -> None:
    info = resolve(ImageConfig(workdir=""), command=["x"])
    assert (info.workdir, info.user, info.stop_signal) == ("/", "", "SIGTERM")


def test_sizes(resolve: Any) -> None:
    info = resolve(cpus=2, memory=100 * MIB + 1, disk=64 * MIB)
    assert (info.cpus, info.memory, info.disk) == (2, 101 * MIB, 64 * MIB)
    info = resolve()
    assert (info.cpus, info.memory, info.disk) == (1, 512 * MIB, 10 * GIB)


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"cpus": 0}, "bad_size"),
        ({"cpus": 256}, "bad_size"),
        ({"cpus": 5}, "no_capacity"),
        ({"memory": MIB}, "bad_size"),
        ({"memory": 9 * GIB}, "no_capacity"),
        ({"disk": MIB}, "bad_size"),
        ({"disk": 1 << 50}, "bad_size"),
        ({"name": "a b"}, "bad_name"),
        ({"name": "sb_123456"}, "bad_name"),
        ({"timeout": -1.0}, "bad_request"),
        ({"timeout": float("nan")}, "bad_request"),
        ({"workdir": "relative"}, "bad_path"),
        ({"env": {"A=B": "c"}}, "bad_request"),
        ({"env": {"A": "\0"}}, "bad_request"),
        ({"command": ["x" * 600_000]}, "bad_request"),
        ({"hostname": "-no"}, "bad_request"),
        ({"hostname": "a" * 64}, "bad_request"),
        ({"labels": {"": "x"}}, "bad_request"),
        ({"labels": {"k": "x" * 70_000}}, "bad_request"),
        ({"stop_signal": "NOPE"}, "bad_request"),
        ({"idle": True, "command": ["x"]}, "bad_request"),
    ],
)
def test_what_cannot_be(resolve: Any, fields: Any, code: str) -> None:
    with pytest.raises(HutchError) as caught:
        resolve(**fields)
    assert caught.value.code == code
    assert caught.value.hint or code == "bad_request"


@pytest.mark.parametrize(
    ("text", "number"),
    [("TERM", 15), ("SIGKILL", 9), ("2", 2), ("int", 2), ("RTMIN+3", 37), ("SIGRTMIN", 34)],
)
def test_signals(text: str, number: int) -> None:
    assert rules.signal_number(text) == number
    assert rules.signal_number(rules.signal_name(text)) == number


@pytest.mark.parametrize("text", ["", "0", "65", "NOPE", "RTMIN+31", "RTMIN+", "-9", "٣"])
def test_no_signals(text: str) -> None:
    with pytest.raises(HutchError) as caught:
        rules.signal_number(text)
    assert caught.value.code == "bad_request"


@pytest.mark.parametrize(
    ("name", "hostname"), [("a_b", "a-b"), ("x" * 70, "x" * 63), ("a.", "a"), ("_", "sandbox")]
)
def test_hostname_from_name(name: str, hostname: str) -> None:
    assert rules.default_hostname(name) == hostname


def test_init_is_known_by_its_name() -> None:
    assert rules.is_init(["/lib/systemd/systemd"])
    assert rules.is_init(["/sbin/init", "x"])
    assert not rules.is_init(["tini", "init"])
    assert not rules.is_init([])


@pytest.mark.parametrize(
    ("command", "image", "asked", "expected"),
    [
        (["/sbin/init"], "SIGTERM", None, "SIGRTMIN+3"),
        (["/lib/systemd/systemd"], "SIGTERM", None, "SIGRTMIN+3"),
        (["/sbin/init"], "SIGUSR2", None, "SIGUSR2"),
        (["/sbin/init"], "SIGTERM", "TERM", "SIGTERM"),
        (["nginx"], "SIGTERM", None, "SIGTERM"),
        (["nginx"], "SIGQUIT", None, "SIGQUIT"),
    ],
)
def test_what_asks_a_program_to_end(
    resolve: Any, command: list[str], image: str, asked: str | None, expected: str
) -> None:
    config = ImageConfig(command=command, stop_signal=image)
    assert resolve(config, stop_signal=asked).stop_signal == expected


def test_execs() -> None:
    good = ExecSpec(["true"], tty=TtySize(1, 1))
    rules.check_exec(good)
    with pytest.raises(HutchError):
        rules.check_exec(dataclasses.replace(good, tty=TtySize(1, 70_000)))
    with pytest.raises(HutchError):
        rules.check_exec(dataclasses.replace(good, argv=[""]))


def test_this_host_has_a_size() -> None:
    size = HostSize.of_this_host()
    assert size.cpus >= 1
    assert size.memory > 64 * MIB


def test_the_chosen_name_goes_on_record(resolve: Any) -> None:
    assert rules.running_spec(SandboxSpec("web:1"), resolve()).name == "one"

"""From network flags to a policy, in each of their spellings."""

from typing import Any

import pytest

from hutch.cli.app import App
from hutch.cli.grammar import NETWORK, read
from hutch.cli.netflags import policy_of
from hutch.cli.run import RUN
from hutch.errors import HutchError
from hutch.models import from_json
from hutch.networking import NetworkMode, NetworkPolicy

DENY, PUBLIC, OPEN = NetworkMode.DENY, NetworkMode.PUBLIC, NetworkMode.OPEN


def parsed(*flags: str) -> dict[str, Any] | None:
    line = read(RUN, [*flags, "busybox"])
    assert line is not None
    return policy_of(App(), {row.dest: line.values[row.dest] for row in NETWORK})


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HUTCH_CONFIG", "/nonexistent")
    monkeypatch.delenv("HUTCH_NETWORK", raising=False)


def test_no_flags_no_policy() -> None:
    assert parsed() is None


@pytest.mark.parametrize(
    ("flags", "policy"),
    [
        ("--net none", NetworkPolicy(NetworkMode.NONE)),
        ("--allow a.b --allow *.c:22", NetworkPolicy(DENY, ["a.b", "*.c:22"])),
        ("--net public --allow 10.0.0.1:5432", NetworkPolicy(PUBLIC, ["10.0.0.1:5432"])),
        ("--deny a.b", NetworkPolicy(PUBLIC, deny=["a.b"])),
        ("--allow-host 3000 --allow-lan", NetworkPolicy(allow_host=[3000], allow_lan=True)),
        ("--policy open", NetworkPolicy(OPEN, preset="open")),
        ("--policy open --deny a.b", NetworkPolicy(OPEN, deny=["a.b"])),
        ("--policy open --net deny", NetworkPolicy(DENY)),
        ("--net-policy deny", NetworkPolicy(DENY)),
        ("--net-policy allow:a.b,c.d", NetworkPolicy(DENY, ["a.b", "c.d"])),
        (
            "--allowed-domain a.b --allowed-cidr 1.2.3.0/24 --denied-cidr 1.2.3.4/32",
            NetworkPolicy(DENY, ["a.b", "1.2.3.0/24"], ["1.2.3.4/32"]),
        ),
    ],
)
def test_spellings(flags: str, policy: NetworkPolicy) -> None:
    assert from_json(NetworkPolicy, parsed(*flags.split())) == policy


def test_the_default_of_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HUTCH_NETWORK", "deny")
    assert from_json(NetworkPolicy, parsed("--deny", "a.b")) == NetworkPolicy(DENY, deny=["a.b"])


@pytest.mark.parametrize("text", ["", "allow", "allow:", "deny:a", "public"])
def test_what_is_no_policy(text: str) -> None:
    with pytest.raises(HutchError, match="is no policy") as caught:
        parsed("--net-policy", text)
    assert caught.value.code == "bad_policy"

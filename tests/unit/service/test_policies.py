"""The policy of a new sandbox, and what a change makes of one."""

from dataclasses import replace

import pytest

from hutch.errors import HutchError
from hutch.models import SandboxSpec
from hutch.network.base import Ability
from hutch.networking import NetworkChange, NetworkMode, NetworkPolicy
from hutch.service.policies import changed, checked, policy_of, without_holes
from hutch.settings import Settings

CAN, CANNOT = Ability(taps=True), Ability(taps=False, why="there is no tap", hint="load it")
BASE = NetworkPolicy(
    NetworkMode.DENY, ["a.example.com", "b.example.com:22"], ["10.0.0.0/8"], [80], preset="ci"
)


def test_the_default_is_a_setting(settings: Settings) -> None:
    spec = SandboxSpec("busybox")
    assert policy_of(spec, settings, CAN) == NetworkPolicy(NetworkMode.PUBLIC)
    denying = replace(settings, network="deny")
    assert policy_of(spec, denying, CAN) == NetworkPolicy(NetworkMode.DENY)
    asked = SandboxSpec("busybox", network=BASE)
    assert policy_of(asked, denying, CAN) == BASE


def test_a_host_without_networks(settings: Settings, caplog: pytest.LogCaptureFixture) -> None:
    spec = SandboxSpec("busybox")
    assert policy_of(spec, settings, CANNOT).mode is NetworkMode.NONE
    assert "there is no tap" in caplog.text
    none = NetworkPolicy(NetworkMode.NONE)
    assert policy_of(replace(spec, network=none), settings, CANNOT) == none
    with pytest.raises(HutchError, match="there is no tap") as caught:
        policy_of(replace(spec, network=NetworkPolicy()), settings, CANNOT)
    assert (caught.value.code, caught.value.hint) == ("network_missing", "load it")


def test_a_rule_that_cannot_be_is_named() -> None:
    with pytest.raises(HutchError, match=r"1\.2\.3\.4/99") as caught:
        checked(NetworkPolicy(allow=["1.2.3.4/99"]), CAN)
    assert caught.value.code == "bad_policy"


@pytest.mark.parametrize(
    ("change", "after"),
    [
        (NetworkChange(), BASE),
        (NetworkChange(mode=NetworkMode.OPEN), replace(BASE, mode=NetworkMode.OPEN, preset=None)),
        (
            NetworkChange(allow=["c.example.com", "a.example.com"], remove=["b.example.com:22"]),
            replace(BASE, allow=["a.example.com", "c.example.com"], preset=None),
        ),
        (
            NetworkChange(remove=["10.0.0.0/8"], deny=["x.example.com"]),
            replace(BASE, deny=["x.example.com"], preset=None),
        ),
        (
            NetworkChange(allow_host=[443], close_host=[80], allow_lan=True),
            replace(BASE, allow_host=[443], allow_lan=True, preset=None),
        ),
        (NetworkChange(policy=NetworkPolicy(preset="public")), NetworkPolicy(preset="public")),
        (
            NetworkChange(policy=NetworkPolicy(preset="public"), allow=["a.example.com"]),
            NetworkPolicy(allow=["a.example.com"]),
        ),
    ],
)
def test_changes(change: NetworkChange, after: NetworkPolicy) -> None:
    assert changed(BASE, change) == after


def test_a_rule_that_is_not_there() -> None:
    with pytest.raises(HutchError, match="no rule 'z'") as caught:
        changed(BASE, NetworkChange(remove=["z"]))
    assert caught.value.code == "bad_policy"


def test_without_holes() -> None:
    wide = NetworkPolicy(
        NetworkMode.OPEN,
        ["a.example.com", "*.b.example.com:22", "10.0.0.1", "9.9.9.9:53", "[fd00::1]:80"],
        ["10.0.0.0/8"],
        [8080],
        allow_lan=True,
    )
    assert without_holes(wide) == NetworkPolicy(
        NetworkMode.PUBLIC, ["a.example.com", "*.b.example.com:22"], ["10.0.0.0/8"]
    )
    for mode in (NetworkMode.DENY, NetworkMode.NONE, NetworkMode.PUBLIC):
        assert without_holes(NetworkPolicy(mode)) == NetworkPolicy(mode)

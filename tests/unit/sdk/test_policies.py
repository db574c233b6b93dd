"""What a program may give for a policy."""

from dataclasses import replace
from pathlib import Path

import pytest

from hutch.errors import NotFound
from hutch.networking import NetworkMode, NetworkPolicy
from hutch.sdk.policies import as_policy
from hutch.settings import load_settings


def test_a_policy_a_mode_a_name_or_a_file(tmp_path: Path) -> None:
    settings = replace(load_settings(), home=tmp_path)
    policy = NetworkPolicy(NetworkMode.DENY, ["a.example.com"])
    assert as_policy(policy) is policy
    assert as_policy("deny") == NetworkPolicy(NetworkMode.DENY)
    (tmp_path / "policies").mkdir()
    (tmp_path / "policies" / "ci.toml").write_text('mode = "deny"\nallow = ["a.example.com"]\n')
    assert as_policy("ci", settings).allow == ["a.example.com"]
    path = str(tmp_path / "policies" / "ci.toml")
    assert as_policy(path, settings).mode is NetworkMode.DENY
    with pytest.raises(NotFound):
        as_policy("nothing", settings)

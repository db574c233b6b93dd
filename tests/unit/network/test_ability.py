"""What a host lacks, as it is told before anything is tried."""

import os
from pathlib import Path

import pytest

from hutch import process
from hutch.network import ability


@pytest.fixture(autouse=True)
def _nft_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "which", lambda program: f"/usr/sbin/{program}")


def test_a_host_with_all_lacks_nothing(tmp_path: Path) -> None:
    device = tmp_path / "tun"
    device.touch()
    assert ability.lacking(device) is None


def test_each_lack_has_a_reason_and_a_hint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = ability.lacking(tmp_path / "tun")
    assert found is not None
    assert not found.taps
    assert found.why == f"there is no {tmp_path / 'tun'}"
    assert "modprobe tun" in (found.hint or "")
    found = ability.lacking(tmp_path)
    assert found is not None
    assert "cannot be opened: Is a directory" in found.why
    monkeypatch.setattr(process, "which", lambda program: None)
    found = ability.lacking(tmp_path / "tun")
    assert found is not None
    assert "nftables" in (found.hint or "")


def test_the_hint_names_what_refuses_namespaces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert "CAP_NET_ADMIN" in ability.hint(tmp_path)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert ability.hint(tmp_path) == "run the daemon as root"
    (tmp_path / "user").mkdir()
    (tmp_path / "user/max_user_namespaces").write_text("0\n")
    assert "sysctl -w user.max_user_namespaces=10000" in ability.hint(tmp_path)
    (tmp_path / "kernel").mkdir()
    (tmp_path / "kernel/unprivileged_userns_clone").write_text("1\n")
    assert "max_user_namespaces" in ability.hint(tmp_path)

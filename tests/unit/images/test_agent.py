"""Where the agent is found."""

import importlib.resources
from pathlib import Path

import pytest

from hutch.errors import HutchError
from hutch.images.agent import agent_binary


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "src/hutch"
    path.mkdir(parents=True)
    monkeypatch.setattr(importlib.resources, "files", lambda name: path)
    return path


def write(path: Path) -> Path:
    path.parent.mkdir(parents=True)
    path.write_bytes(b"agent")
    return path


def test_it_is_in_the_package(package: Path) -> None:
    path = write(package / "_agent/hutch-agent")
    assert agent_binary() == path


def test_a_checkouts_own_build_goes_first(package: Path, tmp_path: Path) -> None:
    write(package / "_agent/hutch-agent")
    target = "guest-agent/target/x86_64-unknown-linux-gnu/release/hutch-agent"
    path = write(tmp_path / target)
    assert agent_binary() == path


@pytest.mark.usefixtures("package")
def test_without_one_it_says_what_to_do() -> None:
    with pytest.raises(HutchError) as caught:
        agent_binary()
    assert caught.value.code == "agent_missing"
    assert "make setup" in (caught.value.hint or "")

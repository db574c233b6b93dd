"""A whole host in memory: the fake engine, with a fake agent in each machine, and tiny stores."""

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from hutch.service import boot, pool
from hutch.settings import Settings, load_settings
from tests.unit.service.world import World


@pytest.fixture
def settings(short_tmp: Path) -> Settings:
    flags = {
        "home": short_tmp / "home",
        "runtime_dir": short_tmp / "run",
        "boot_timeout": 60.0,
        "stop_timeout": 0.5,
        "exec_orphan_grace": 0.2,
        "templates": False,
    }
    return load_settings(flags)


@pytest.fixture
def cloning(settings: Settings) -> Settings:
    """Settings with which sandboxes begin as clones."""
    return replace(settings, templates=True)


@pytest.fixture
async def farm(cloning: Settings) -> AsyncIterator[World]:
    """A world in which sandboxes begin as clones."""
    async with World(cloning) as world:
        yield world


@pytest.fixture
async def world(settings: Settings) -> AsyncIterator[World]:
    async with World(settings) as world:
        yield world


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the moments in which pools stand back, and let them try again soon."""
    monkeypatch.setattr(pool, "QUIET_SECONDS", 0.0)
    monkeypatch.setattr(pool, "FIRST_PAUSE", 0.02)


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait a moment only for guests that give no sign of life; all others have time."""
    monkeypatch.setattr(boot, "STALL_SHARE", 0.02)

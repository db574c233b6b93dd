"""A whole host in memory: the fake engine, with a fake agent in each machine, and tiny stores."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from hutch.settings import Settings, load_settings
from tests.unit.service.world import World


@pytest.fixture
def settings(short_tmp: Path) -> Settings:
    flags = {
        "home": short_tmp / "home",
        "runtime_dir": short_tmp / "run",
        "boot_timeout": 2.0,
        "stop_timeout": 0.5,
        "exec_orphan_grace": 0.2,
    }
    return load_settings(flags)


@pytest.fixture
async def world(settings: Settings) -> AsyncIterator[World]:
    async with World(settings) as world:
        yield world

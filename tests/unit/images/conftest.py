"""Fixtures of the image tests: a store in a directory of its own, with the tests' settings."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hutch.images.store import ImageStore
from tests.unit.images.making import Reports, settings_with

MakeStore = Callable[..., ImageStore]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "Home"  # as users may have it: not every tool likes capitals


@pytest.fixture
def make_store(home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> MakeStore:
    """Make stores of one home; keyword arguments are settings. Registries see no credentials of
    ours.
    """
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "docker"))

    def make(**changes: Any) -> ImageStore:
        return ImageStore(home, settings_with(**changes))

    return make


@pytest.fixture
def store(make_store: MakeStore) -> ImageStore:
    return make_store()


@pytest.fixture
def reports() -> Reports:
    return Reports()


def left_over(home: Path) -> list[str]:
    """Return what a store should not have after a failure: temporary files, blobs, root file
    systems.
    """
    images = home / "images"
    found = [
        *(images / "oci/tmp").iterdir(),
        *(images / "oci/blobs").glob("*/*"),
        *(images / "rootfs").iterdir(),
    ]
    return [str(path.relative_to(images)) for path in found]

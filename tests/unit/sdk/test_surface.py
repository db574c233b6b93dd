import subprocess
import sys

import pytest

import hutch.sdk
from hutch.sdk.surface import HOMES


def test_the_public_surface_is_sorted_and_there() -> None:
    assert sorted(hutch.sdk.__all__) == hutch.sdk.__all__
    assert all(getattr(hutch.sdk, name).__name__ == name for name in hutch.sdk.__all__)
    assert set(HOMES) == set(hutch.sdk.__all__)


def test_other_names_are_none() -> None:
    with pytest.raises(AttributeError, match="Sandwich"):
        hutch.sdk.Sandwich  # noqa: B018 - the access is what is tested


def test_clients_need_nothing_heavy() -> None:
    code = (
        "import sys\n"
        "from hutch.sdk import AsyncSandbox, Sandbox\n"
        "print([name for name in ('httpx', 'pydantic', 'fastapi') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == "[]"

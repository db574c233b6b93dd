"""`pip install .` on a machine without this checkout: the wheel carries all that Hutch runs on."""

import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

from hutch import __version__

ROOT = Path(__file__).resolve().parents[2]
AGENT = "hutch/_agent/hutch-agent"

pytestmark = pytest.mark.timeout(600)  # cargo may have to build the agent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run(
        [*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(target), "."],
        cwd=ROOT,
        check=True,
    )
    (built,) = target.iterdir()
    return built


def test_the_wheel_is_for_this_platform_and_any_python(wheel: Path) -> None:
    platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
    assert wheel.name.endswith(f"-py3-none-{platform}.whl")


def test_the_wheel_carries_the_agent_and_nothing_of_the_tests(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        agent = archive.read(AGENT)
        executable = archive.getinfo(AGENT).external_attr >> 16 & 0o111
    assert agent.startswith(b"\x7fELF")
    assert executable
    assert "hutch/py.typed" in names
    assert {name.split("/")[0] for name in names} == {"hutch", f"hutch-{__version__}.dist-info"}
    assert any(name.endswith(".sql") for name in names), "the state's migrations"


def test_an_installed_wheel_runs(wheel: Path, tmp_path: Path) -> None:
    python = tmp_path / "venv/bin/python"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv"], check=True)
    target = subprocess.check_output(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], text=True
    ).strip()
    pip = [sys.executable, "-m", "pip", "--python", str(python), "--disable-pip-version-check"]
    subprocess.run([*pip, "--quiet", "install", "--no-deps", str(wheel)], check=True)
    # The dependencies are those of this environment, whose editable Hutch comes later on the path.
    (Path(target) / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")

    found = subprocess.check_output(
        [python, "-c", "from hutch.images.agent import agent_binary; print(agent_binary())"],
        text=True,
        cwd=tmp_path,
    )
    assert Path(found.strip()) == Path(target) / AGENT
    version = subprocess.check_output([python.parent / "hutch", "version"], text=True)
    assert __version__ in version

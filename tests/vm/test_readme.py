"""The README as a new user would try it: every command as printed, the output as shown."""

import re
import subprocess
import sys
from pathlib import Path

from tests.harness.hutch import Hutch

README = Path(__file__).parents[2] / "README.md"
VARYING = re.compile(
    r"sb_[0-9a-f]{12}|\b[0-9a-f]{12}\b|\b\d+(ms|s|m|h|d)( \d+(s|m|h))?\b|\b\d+(\.\d+)? MiB\b"
    r"|\d+\.\d+\.\d+-\S+"
)
"""What differs from run to run: ids, ages, sizes, the kernel's version."""


def examples() -> list[tuple[str, str]]:
    """Return each command of the console blocks with the output that the README shows."""
    found = []
    for block in re.findall(r"^```console\n(.*?)^```", README.read_text(), re.M | re.S):
        for part in block.split("$ ")[1:]:
            command, _, output = part.partition("\n")
            found.append((command, output.rstrip("\n")))
    return found


def same(text: str) -> list[str]:
    """Return the lines with what varies, and the widths that follow from it, made equal."""
    return [" ".join(VARYING.sub("*", line).split()) for line in text.strip().splitlines()]


def test_every_command_prints_what_the_readme_shows(hutch: Hutch, tmp_path: Path) -> None:
    shown = examples()
    assert len(shown) >= 10
    for command, output in shown:
        done = subprocess.run(
            ["/bin/bash", "-c", command],
            check=False,
            env=hutch.env | {"PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin"},
            cwd=tmp_path,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,  # as on a terminal
            text=True,
            timeout=120,
        )
        printed, shows = same(done.stdout), same(output)
        if ">&2" in command:  # two streams, which have no order
            printed, shows = sorted(printed), sorted(shows)
        assert printed == shows, command


def test_the_python_example_runs_as_printed(hutch: Hutch, tmp_path: Path) -> None:
    (code,) = re.findall(r"^```python\n(.*?)^```", README.read_text(), re.M | re.S)
    done = subprocess.run(
        [sys.executable, "-c", code],
        check=False,
        env=hutch.env,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.returncode, done.stdout) == (0, "42\n 0\n"), done.stderr


def test_what_varies_is_little() -> None:
    assert same("sb_0123456789ab  box  1s") == same("sb_ba9876543210  box  12s")
    assert same("running") != same("stopped")

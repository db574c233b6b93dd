"""The rules of CONTRIBUTING.md that a program can check."""

import ast
import re
import subprocess
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

from scripts.docs import DOCS, PAGES

ROOT = Path(__file__).resolve().parents[2]
MODULE_LINES = 500
FUNCTION_LINES = 80

# Source modules without a unit test of their own, and why. This list only ever gets shorter.
UNMIRRORED: dict[str, str] = {
    "api/moments.py": "Protocols, without behaviour of their own",
    "api/operations.py": "Protocols, without behaviour of their own",
    "api/origins.py": "Protocols, without behaviour of their own",
}

# Names that tell nothing: what would be in them has a better home.
FORBIDDEN = {"utils", "util", "helpers", "helper", "common", "misc", "manager", "base_manager"}

# Registries of packages, spelled in parts so that this file passes its own test. A lock file or a
# script that names one would override what the machine is configured to use.
REGISTRIES = [
    ".".join(parts)
    for parts in (
        ("pypi", "org"),
        ("files", "pythonhosted", "org"),
        ("crates", "io"),
        ("npmjs", "org"),
        ("deb", "debian", "org"),
        ("archive", "ubuntu", "com"),
        ("proxy", "golang", "org"),
    )
]


def tracked() -> list[Path]:
    """Return the files that are in git or about to be."""
    listed = subprocess.run(
        [
            "git",
            "-c",
            "safe.directory=*",
            "ls-files",
            "-z",
            "--cached",
            "--others",
            "--exclude-standard",
        ],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    paths = [ROOT / name for name in listed.stdout.decode().split("\0") if name]
    return [path for path in paths if path.is_file()]


FILES = tracked()
PYTHON = [path for path in FILES if path.suffix == ".py"]
MODULES = [
    path
    for path in (ROOT / "src/hutch").rglob("*.py")
    if path.name not in ("__init__.py", "base.py", "__main__.py")
]


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_each_module_has_its_unit_test() -> None:
    source = ROOT / "src/hutch"
    missing = set()
    for path in MODULES:
        inner = path.relative_to(source)
        if not (ROOT / "tests/unit" / inner.parent / f"test_{inner.name}").exists():
            missing.add(str(inner))
    assert sorted(missing - UNMIRRORED.keys()) == []
    assert sorted(UNMIRRORED.keys() - missing) == [], "shorten the list"


def test_modules_are_short() -> None:
    code = [path for path in FILES if path.suffix in (".py", ".rs")]
    long = {name(path): len(path.read_text().splitlines()) for path in code}
    assert {path: lines for path, lines in long.items() if lines > MODULE_LINES} == {}


def test_functions_are_short() -> None:
    long = {}
    for path in PYTHON:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or 0) - node.lineno + 1
                if lines > FUNCTION_LINES:
                    long[f"{name(path)}: {node.name}"] = lines
    assert long == {}


def test_names_tell_something() -> None:
    assert [name(path) for path in FILES if path.stem in FORBIDDEN] == []


def test_packages_hold_no_logic() -> None:
    for path in (ROOT / "src/hutch").rglob("__init__.py"):
        body = ast.parse(path.read_text()).body
        logic = [node for node in body if isinstance(node, ast.FunctionDef | ast.ClassDef)]
        assert logic == [], f"{name(path)} holds logic"


def test_no_file_names_a_package_registry_or_this_checkout() -> None:
    forbidden = [re.compile(rb"(?<![\w-])" + re.escape(host.encode())) for host in REGISTRIES]
    if len(ROOT.parts) > 2:  # a checkout in /src would find itself in many a file
        forbidden.append(re.compile(re.escape(bytes(ROOT)) + rb"(?![\w-])"))
    found = []
    for path in FILES:
        content = path.read_bytes()
        found += [f"{name(path)}: {p.pattern!r}" for p in forbidden if p.search(content)]
    assert found == []


def test_lock_files_hold_no_address() -> None:
    locks = [path for path in FILES if path.suffix == ".lock" or "requirements" in path.name]
    assert {"requirements.lock", "requirements-dev.lock"} <= {path.name for path in locks}
    assert [name(path) for path in locks if "://" in path.read_text()] == []


def test_every_dependency_is_locked() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    dev = project["optional-dependencies"]["dev"]
    for lock, wanted in (
        ("requirements.lock", project["dependencies"]),
        ("requirements-dev.lock", [*project["dependencies"], *dev]),
    ):
        locked = re.findall(r"^([\w.-]+)==", (ROOT / lock).read_text(), re.MULTILINE)
        names = {re.split(r"[^\w.-]", entry)[0] for entry in wanted}
        normal = {re.sub(r"[-_.]+", "-", name).lower() for name in names}
        assert sorted(normal - set(locked)) == [], f"not in {lock}; run: make lock"


@pytest.mark.parametrize(("page", "write"), PAGES.items(), ids=PAGES.keys())
def test_generated_pages_are_up_to_date(page: str, write: Callable[[], str]) -> None:
    assert (DOCS / page).read_text() == write(), "run: make docs"

"""Holds guest-agent/Cargo.lock to guest-agent/crates.lock: exact versions and hashes of all crates.

Cargo's own lock file names a registry, so it is not committed; crates.lock has one line for each
crate (name, version, SHA-256) and no address. `python scripts/crates.py` brings Cargo.lock to those
versions and fails when content differs; with `--record`, after a change of dependencies, it writes
crates.lock from Cargo.lock.
"""

import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
AGENT = ROOT / "guest-agent"
RECORD = AGENT / "crates.lock"
HEADER = "# name version sha256; written by scripts/crates.py --record\n"

Crate = tuple[str, str, str]


def cargo(*args: str) -> None:
    """Run cargo in the agent's directory, silent unless it fails."""
    command = [str(ROOT / "scripts/cargo"), *args]
    done = subprocess.run(command, cwd=AGENT, check=False, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"cargo {' '.join(args)} failed: {done.stderr.strip()}")


def resolved() -> set[Crate]:
    """Return the crates of Cargo.lock that come from outside; it is made when it is missing."""
    lock = AGENT / "Cargo.lock"
    if not lock.exists():
        cargo("generate-lockfile")
    packages = tomllib.loads(lock.read_text())["package"]
    return {(p["name"], p["version"], p["checksum"]) for p in packages if "checksum" in p}


def recorded() -> set[Crate]:
    """Return the crates of crates.lock."""
    lines = RECORD.read_text().splitlines()
    rows = [line.split() for line in lines if line and not line.startswith("#")]
    return {(name, version, checksum) for name, version, checksum in rows}


def main() -> None:
    """Verify, or record."""
    if "--record" in sys.argv[1:]:
        rows = sorted(resolved())
        RECORD.write_text(HEADER + "".join(f"{' '.join(row)}\n" for row in rows))
        return
    wanted = recorded()
    for name, version, _ in sorted(wanted - resolved()):
        cargo("update", "--package", name, "--precise", version)
    if resolved() != wanted:
        names = sorted({row[0] for row in resolved() ^ wanted})
        sys.exit(
            f"guest-agent/crates.lock does not match Cargo.toml for {', '.join(names)} "
            "(hint: after a change of dependencies, run scripts/crates.py --record)"
        )


if __name__ == "__main__":
    main()

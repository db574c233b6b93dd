"""What a run leaves: one JSON file with everything, and the page of documentation made from it."""

import datetime
import json
import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.bench.samples import Check, Measured

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "bench-results"
PAGE = ROOT / "docs" / "benchmarks.md"


def surroundings(argv: Sequence[str], quick: bool) -> dict[str, Any]:
    """Return what the figures depend on besides the code: machine, versions, commit, load."""
    cpus = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": ["python", "-m", "tests.bench", *argv],
        "quick": quick,
        "commit": _output("git", "-c", "safe.directory=*", "rev-parse", "HEAD"),
        "changed": bool(_output("git", "-c", "safe.directory=*", "status", "--porcelain")),
        "machine": {
            "cpu": cpus[0] if cpus else platform.processor(),
            "cpus": os.cpu_count(),
            "memory_bytes": memory,
            "system": platform.freedesktop_os_release().get("PRETTY_NAME", ""),
            "kernel": platform.release(),
        },
        "versions": {
            "python": platform.python_version(),
            "qemu": _output("qemu-system-x86_64", "--version").partition("\n")[0],
        },
        "load_before": list(os.getloadavg()),
        "niceness": os.nice(0),
    }


def write(around: Mapping[str, Any], parts: Sequence[Measured]) -> Path:
    """Write a run's JSON file; return its path."""
    RESULTS.mkdir(exist_ok=True)
    stamp = around["time"].replace(":", "").replace("+0000", "Z")
    path = RESULTS / f"{stamp}{'-quick' if around['quick'] else ''}.json"
    body = {**around, "load_after": list(os.getloadavg())}
    body["parts"] = [part.to_json() for part in parts]
    path.write_text(json.dumps(body, indent=1) + "\n")
    return path


def line(check: Check) -> str:
    """Return a check as one line for a terminal."""
    sign = "<=" if check.at_most else ">="
    verdict = "pass" if check.passed else "FAIL"
    return f"{verdict}  {check.figure:9.3f} {sign} {check.limit:g} {check.unit:4}  {check.what}"


def page(body: Mapping[str, Any]) -> str:
    """Return docs/benchmarks.md, made from the JSON of a run."""
    machine, versions = body["machine"], body["versions"]
    loads = [
        " ".join(f"{value:.1f}" for value in body[key]) for key in ("load_before", "load_after")
    ]
    lines = [
        "# Benchmarks",
        "",
        "Written by `python -m tests.bench --docs` from the raw samples of one run; do not edit. "
        "Limits are ratios to what the same machine does without Hutch, in the same run, wherever "
        "that is possible: seconds depend on the machine, ratios hardly. `make bench` fails when "
        "one is missed, and keeps all samples in `bench-results/`.",
        "",
        f"Taken {body['time']} at commit `{body['commit'][:12]}`"
        f"{' with uncommitted changes' if body['changed'] else ''}, on {machine['cpus']} x "
        f"{machine['cpu']}, {machine['memory_bytes'] / 2**30:.0f} GiB, {machine['system']}, "
        f"Linux {machine['kernel']}, {versions['qemu']}, Python {versions['python']}. "
        f"VMs run on {body['accelerator']}. Load average before and after: {loads[0]}; "
        f"{loads[1]}; niceness {body['niceness']}.",
        "",
        "| | figure | limit | |",
        "|---|---:|---:|---|",
    ]
    checks = [check for part in body["parts"] for check in part["checks"]]
    lines += [_row(check) for check in checks]
    for part in body["parts"]:
        lines += ["", f"## {part['title']}", ""]
        if part["notes"]:
            lines += [part["notes"], ""]
        lines += ["| | samples | min | median | max | |", "|---|---:|---:|---:|---:|---|"]
        lines += [_series(series) for series in part["series"]]
    return "\n".join(lines) + "\n"


def _row(check: Mapping[str, Any]) -> str:
    sign = "≤" if check["at_most"] else "≥"
    verdict = "pass" if check["passed"] else "**missed**"
    figure = f"{check['figure']:.3g} {check['unit']}"
    return f"| {check['what']} | {figure} | {sign} {check['limit']:g} {check['unit']} | {verdict} |"


def _series(series: Mapping[str, Any]) -> str:
    unit, factor = series["unit"], 1
    if unit == "s" and series["median"] < 1:
        unit, factor = "ms", 1000
    values = [f"{series[key] * factor:.4g}" for key in ("min", "median", "max")]
    return f"| {series['name']} | {len(series['samples'])} | {' | '.join(values)} | {unit} |"


def _output(*argv: str) -> str:
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, check=False, text=True)
    return done.stdout.strip() if done.returncode == 0 else ""

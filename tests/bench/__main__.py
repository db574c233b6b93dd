"""`make bench`: measures every figure that Hutch promises, and fails when one is missed.

`--quick` takes few samples, to see that everything can be measured: it judges nothing. `--docs`
writes docs/benchmarks.md from the run.
"""

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence

from tests.bench import results
from tests.bench.boots import cold_boot, daemon_start
from tests.bench.checkpoints import checkpoints
from tests.bench.clones import from_template
from tests.bench.copies import large_files
from tests.bench.density import density
from tests.bench.execs import command_line, round_trip
from tests.bench.forks import forks
from tests.bench.idle import idle_daemon
from tests.bench.lab import Lab, laboratory
from tests.bench.pools import pool_claims
from tests.bench.rests import pause_and_resume
from tests.bench.samples import Measured
from tests.bench.shells import from_the_shell

PARTS: Mapping[str, Callable[[Lab], Measured]] = {
    "start": daemon_start,
    "boot": cold_boot,
    "template": from_template,
    "pool": pool_claims,
    "run": from_the_shell,
    "pause": pause_and_resume,
    "fork": forks,
    "checkpoint": checkpoints,
    "exec": round_trip,
    "cli": command_line,
    "copy": large_files,
    "idle": idle_daemon,
    "density": density,
}


def main(argv: Sequence[str]) -> int:
    """Run the benchmark; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few samples, no verdict")
    parser.add_argument("--docs", action="store_true", help="write docs/benchmarks.md")
    parser.add_argument("--only", choices=PARTS, action="append", help="this part (repeatable)")
    options = parser.parse_args(argv)
    around = results.surroundings(argv, options.quick)
    measured: list[Measured] = []
    with laboratory(quick=options.quick) as lab:
        for name in options.only or PARTS:
            measured.append(PARTS[name](lab))
            for check in measured[-1].checks:
                print(results.line(check), flush=True)
        around["accelerator"] = lab.accelerator
    path = results.write(around, measured)
    print(f"raw samples: {path.relative_to(results.ROOT)}")
    if options.docs:
        results.PAGE.write_text(results.page(json.loads(path.read_text())))
    missed = [check for part in measured for check in part.checks if not check.passed]
    return 1 if missed and not options.quick else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

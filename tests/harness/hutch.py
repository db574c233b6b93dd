"""The real `hutch` command against a home of its own: what the tests with VMs drive.

Tests speak to it as a user does. `close` proves that nothing is left: no process, no mount, no
socket; whatever is found all the same is killed first, so that one failure does not become many.
"""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hutch.process import ProcessId
from tests.waiting import wait_until

COMMAND = Path(sys.executable).parent / "hutch"
LEAVING = 30.0
"""Seconds that a process may take to end after the daemon has said that all is done."""
_TAIL = 1 << 14


@dataclass(frozen=True, slots=True)
class Result:
    """What a command left."""

    argv: Sequence[str]
    code: int
    stdout: bytes
    stderr: bytes

    @property
    def text(self) -> str:
        """Stdout as text, without its last newline."""
        return self.stdout.decode().removesuffix("\n")

    @property
    def json(self) -> Any:
        """Stdout as JSON."""
        return json.loads(self.stdout)


class Hutch:
    """A home, its daemon once something has started it, and the command that speaks to it."""

    def __init__(
        self,
        home: Path,
        runtime: Path,
        settings: Mapping[str, str],
        prefix: Sequence[str] = (),
    ) -> None:
        """`settings` maps keys to values, as if given in the environment; each command line begins
        with `prefix`, which leads into another namespace.
        """
        self.home = home
        self.runtime = runtime
        self._command = [*prefix, str(COMMAND)]
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("HUTCH_")}
        self.env = inherited | {
            "HUTCH_HOME": str(home),
            "HUTCH_RUNTIME_DIR": str(runtime),
            "HUTCH_CONFIG": str(home / "config.toml"),
            **{f"HUTCH_{key.upper()}": value for key, value in settings.items()},
        }
        self._started: list[subprocess.Popen[bytes]] = []

    def run(
        self,
        *args: str,
        stdin: bytes | None = None,
        expect: int | None = 0,
        timeout: float = 120,
        env: Mapping[str, str] | None = None,
    ) -> Result:
        """Run `hutch ARGS` to its end. `expect` is the exit code it must have, None for any."""
        argv = [*self._command, *args]
        done = subprocess.run(
            argv,
            env=self.env | dict(env or {}),
            input=stdin,
            stdin=subprocess.DEVNULL if stdin is None else None,
            capture_output=True,
            timeout=timeout,
            check=False,
        )
        result = Result(args, done.returncode, done.stdout, done.stderr)
        assert expect is None or result.code == expect, result
        return result

    def start(self, *args: str, **options: Any) -> "subprocess.Popen[bytes]":
        """Start `hutch ARGS` with pipes (or other Popen options), for a test that talks to it.

        `end_started` ends it, if nothing else has.
        """
        pipes: dict[str, Any] = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        started = subprocess.Popen([*self._command, *args], env=self.env, **(pipes | options))
        self._started.append(started)
        return started

    def end_started(self) -> None:
        """Kill what `start` has started and what still runs of it, and close its pipes."""
        for started in self._started:
            if started.poll() is None:
                started.kill()
                started.wait()
            for pipe in (started.stdin, started.stdout, started.stderr):
                if pipe is not None:
                    with contextlib.suppress(BrokenPipeError):  # what was never taken
                        pipe.close()
        self._started.clear()

    def json(self, *args: str) -> Any:
        """Run `hutch --json ARGS` and return what it printed."""
        return self.run("--json", *args).json

    @property
    def daemon(self) -> ProcessId | None:
        """The running daemon's process, or None."""
        try:
            record = json.loads((self.home / "daemon.lock").read_text())
        except (FileNotFoundError, ValueError):
            return None
        return ProcessId.of(record["pid"])

    def kill_daemon(self) -> None:
        """Kill -9 the daemon, and wait until it is gone. Its VMs go on."""
        daemon = self.daemon
        assert daemon is not None, "no daemon runs"
        daemon.kill()
        wait_until(lambda: not daemon.alive(), what="the daemon is killed")

    def processes(self) -> dict[ProcessId, str]:
        """Return every process with a trace of this home: in arguments, environment or files."""
        marks = (os.fsencode(self.home), os.fsencode(self.runtime))
        found = {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and int(entry.name) != os.getpid():
                traces = _traces(entry)
                who = ProcessId.of(int(entry.name))
                if who is not None and any(mark in traces for mark in marks):
                    found[who] = traces.partition(b"\n")[0].replace(b"\0", b" ").decode()
        return found

    def remains(self) -> list[str]:
        """Return what should not be there once all sandboxes and the daemon are gone."""
        left = [f"process {who.pid}: {what}" for who, what in self.processes().items()]
        mounts = Path("/proc/self/mountinfo").read_text().splitlines()
        left += [f"mount {m}" for m in mounts if str(self.home) in m or str(self.runtime) in m]
        left += [f"file {path}" for path in self.runtime.rglob("*") if not path.is_dir()]
        left += [f"directory {path}" for path in (self.home / "sandboxes").glob("*")]
        return left

    def logs(self) -> str:
        """Return the ends of the daemon's log and of all consoles, for a failed test's report."""
        parts = []
        for path in [*self.home.glob("daemon.log*"), *self.home.rglob("console*")]:
            if path.is_file():
                text = path.read_bytes()[-_TAIL:].decode(errors="backslashreplace")
                parts.append(f"--- {path.relative_to(self.home)}\n{text}")
        return "\n".join(parts)

    def close(self) -> None:
        """Remove all sandboxes, end the daemon, and check that nothing remains."""
        problems = []
        self.end_started()
        if self.daemon is not None:
            for args in (("rm", "--force", "--all"), ("daemon", "stop")):
                done = self.run(*args, expect=None)
                if done.code:
                    problems.append(f"hutch {' '.join(args)}: {done.stderr.decode()}")
        # A process that has let go of its lock may still be on its way out; one that stays is
        # told below, with everything else.
        with contextlib.suppress(AssertionError):
            wait_until(lambda: not self.processes(), timeout=LEAVING)
        problems += self.remains()
        for who in self.processes():
            who.kill(signal.SIGKILL)
        shutil.rmtree(self.home, ignore_errors=True)
        assert not problems, "left over: " + "; ".join(problems)


def _traces(entry: Path) -> bytes:
    """Return the arguments, environment and open paths of a process, as far as we may see them."""
    parts = []
    for name in ("cmdline", "environ"):
        try:
            parts.append((entry / name).read_bytes())
        except OSError:
            parts.append(b"")
    with contextlib.suppress(OSError):  # it has ended, or is another user's
        for link in (entry / "fd").iterdir():
            parts.append(os.fsencode(os.readlink(link)))
    return b"\n".join(parts)

"""The one gate to other programs: argv lists, a minimal environment, a process group of their own.

`run` waits for a command, which ends with us, however we end; `spawn` starts one that may outlive
us; `ProcessId` names a process so that a reused pid is never mistaken for it (its pid and its start
time).
"""

import asyncio
import contextlib
import logging
import os
import shlex
import shutil
import signal
import subprocess
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import IO, TypeAlias

from hutch.errors import error

log = logging.getLogger(__name__)

_KEPT = ("PATH", "HOME", "TMPDIR", "LANG", "http_proxy", "https_proxy", "no_proxy")
OUTPUT_LIMIT = 1 << 20
_GUARD = ("/bin/sh", "-c", "read -r end; kill -KILL 0")
"""What leads the group of a command: it waits for the end of a pipe that only we hold."""

Child: TypeAlias = subprocess.Popen[bytes]  # noqa: TID251 - the gate itself
"""What `spawn` returns."""


@dataclass(frozen=True, slots=True)
class ProcessId:
    """A process for good: its pid and the clock tick at which it began."""

    pid: int
    start_time: int

    @classmethod
    def of(cls, pid: int) -> "ProcessId | None":
        """Return the identity of a living (not zombie) process, or None."""
        try:
            with open(f"/proc/{pid}/stat", "rb") as stat:
                fields = stat.read().rpartition(b")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            return None
        return None if fields[0] in (b"Z", b"X") else cls(pid, int(fields[19]))

    def alive(self) -> bool:
        """Tell whether that very process still runs."""
        return ProcessId.of(self.pid) == self

    def kill(self, number: int = signal.SIGKILL) -> bool:
        """Send a signal to that very process, through a pidfd; returns False when it is gone."""
        try:
            fd = os.pidfd_open(self.pid)
        except ProcessLookupError:
            return False
        try:
            # Checked after the descriptor is held: from here on the pid cannot come to mean
            # another process.
            if not self.alive():
                return False
            signal.pidfd_send_signal(fd, number)
            return True
        except ProcessLookupError:
            return False
        finally:
            os.close(fd)

    async def wait(self) -> None:
        """Return when the process is gone, a child of ours or not."""
        try:
            fd = os.pidfd_open(self.pid)
        except ProcessLookupError:
            return
        loop = asyncio.get_running_loop()
        ended: asyncio.Future[None] = loop.create_future()
        try:
            if not self.alive():
                return
            loop.add_reader(fd, _finish, ended)
            await ended
        finally:
            loop.remove_reader(fd)
            os.close(fd)


def _finish(ended: "asyncio.Future[None]") -> None:
    if not ended.done():
        ended.set_result(None)


@dataclass(frozen=True, slots=True)
class Finished:
    """What a command left: its exit code (negative for a signal) and its capped output."""

    argv: Sequence[str]
    code: int
    stdout: bytes
    stderr: bytes


def which(program: str) -> str | None:
    """Return the absolute path of a program on PATH (with the sbin directories), or None."""
    path = os.environ.get("PATH", "") + os.pathsep + "/usr/local/sbin:/usr/sbin:/sbin"
    return shutil.which(program, path=path)


def _setpriv() -> str | None:
    """Return the path of util-linux's setpriv; busybox has one that cannot change users."""
    found = which("setpriv")
    return found if found and os.path.basename(os.path.realpath(found)) == "setpriv" else None


def require(program: str, package: str) -> str:
    """Return the absolute path of `program`.

    Raises Missing (tool_missing), naming the package that has it.
    """
    found = which(program)
    if found is None:
        raise error(
            "tool_missing",
            f"the program {program} is not installed",
            hint=f"install the package {package} (`apt-get install {package}`)",
        )
    return found


def minimal_env(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the few variables that other programs get, plus `extra`."""
    env = {key: os.environ[key] for key in _KEPT if key in os.environ}
    env.setdefault("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
    return env | {"LC_ALL": "C.UTF-8"} | dict(extra or {})


def bare_env(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return what a program gets that may turn against us: no proxy, which may hold a password."""
    env = {"PATH": minimal_env()["PATH"], "LC_ALL": "C.UTF-8"}
    return env | dict(extra or {})


async def run(
    argv: Sequence[str],
    *,
    timeout: float,
    stdin: bytes | IO[bytes] | int | None = None,
    env: Mapping[str, str] | None = None,
    cwd: str | os.PathLike[str] | None = None,
    pass_fds: Sequence[int] = (),
    check: bool = True,
    code: str = "engine_failed",
) -> Finished:
    """Run a command to its end and return what it left.

    `stdin` is bytes to feed, a file, or None for /dev/null. The command has its own process group,
    of which nothing is left in the end, nor when we are killed. Raises HutchError with `code` when
    it fails (and `check`) or runs out of time, Missing (tool_missing) when it is not installed.
    """
    log.debug("run: %s", shlex.join(argv))
    feed = stdin if isinstance(stdin, bytes) else None
    source: IO[bytes] | int | None
    if isinstance(stdin, bytes):
        source = subprocess.PIPE
    else:
        source = subprocess.DEVNULL if stdin is None else stdin
    async with _group() as group:
        try:
            child = await asyncio.create_subprocess_exec(  # noqa: TID251 - the gate itself
                *argv,
                stdin=source,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=minimal_env(env),
                cwd=cwd,
                pass_fds=pass_fds,
                process_group=group,
            )
        except FileNotFoundError as cause:
            raise error("tool_missing", f"the program {argv[0]} is not installed") from cause
        except OSError as cause:
            raise error(code, f"{argv[0]} cannot be run: {cause.strerror}") from cause
        try:
            async with asyncio.timeout(timeout):
                out, err = await child.communicate(feed)
        except TimeoutError:
            raise error(
                code, f"{argv[0]} did not finish within {timeout:g} s", details={"argv": list(argv)}
            ) from None
        finally:
            if child.returncode is None:
                # The group, as what is left of it may hold the pipes.
                os.killpg(group, signal.SIGKILL)
                await child.wait()
    assert child.returncode is not None
    done = Finished(tuple(argv), child.returncode, out[:OUTPUT_LIMIT], err[:OUTPUT_LIMIT])
    if check and done.code != 0:
        text = done.stderr.decode(errors="replace").strip()[-2000:]
        raise error(
            code,
            f"{argv[0]} failed with exit code {done.code}: {text}",
            details={"argv": list(argv), "exit_code": done.code},
        )
    return done


@asynccontextmanager
async def _group() -> AsyncIterator[int]:
    """Have a process group that lasts as long as the block, and no longer than we do.

    Its leader lives until then, so its number cannot come to mean another group.
    """
    guard = await asyncio.create_subprocess_exec(  # noqa: TID251 - the gate itself
        *_GUARD,
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={},
        process_group=0,
    )
    try:
        yield guard.pid
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(guard.pid, signal.SIGKILL)
        await guard.wait()


def spawn(
    argv: Sequence[str],
    *,
    stdin: int | None = None,
    stdout: int | None = None,
    stderr: int | None = None,
    env: Mapping[str, str] | None = None,
    cwd: str | os.PathLike[str] | None = None,
    pass_fds: Sequence[int] = (),
    user: int | None = None,
    group: int | None = None,
) -> "subprocess.Popen[bytes]":  # noqa: TID251 - the gate itself
    """Start a program in a session of its own; it outlives us. Missing descriptors are /dev/null.

    Its environment is `bare_env`, with `env` added.

    `user` and `group` (numeric, both or none) drop privileges, with no supplementary groups. Raises
    Missing (tool_missing). That it cannot be run as that user is told by its stderr, or by OSError.
    """
    log.debug("spawn: %s", shlex.join(argv))
    null = subprocess.DEVNULL
    if user is not None and (setpriv := _setpriv()) is not None:
        if which(argv[0]) is None:
            raise error("tool_missing", f"the program {argv[0]} is not installed")
        # Not by us: a child that is to become another user must be forked, with a copy of all our
        # page tables, for which the loop would stand still for several milliseconds.
        argv = [setpriv, f"--reuid={user}", f"--regid={group}", "--clear-groups", "--", *argv]
        user = group = None
    try:
        return subprocess.Popen(  # noqa: TID251 - the gate itself
            argv,
            stdin=null if stdin is None else stdin,
            stdout=null if stdout is None else stdout,
            stderr=null if stderr is None else stderr,
            env=bare_env(env),
            cwd=cwd,
            pass_fds=pass_fds,
            start_new_session=True,
            user=user,
            group=group,
            extra_groups=[] if user is not None else None,
        )
    except FileNotFoundError as cause:
        raise error("tool_missing", f"the program {argv[0]} is not installed") from cause

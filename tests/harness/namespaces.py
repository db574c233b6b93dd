"""Network namespaces that a test makes, and what is done inside of them.

They have no name and no mount: only descriptors hold them, and nothing is left of them when the
test's process ends, however it does. Needs root.
"""

import ctypes
import os
import subprocess
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Self, TypeVar

T = TypeVar("T")

_CLONE_NEWNET = 0x40000000
_LIBC = ctypes.CDLL(None, use_errno=True)


def _checked(result: int) -> None:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _in_thread(work: Callable[[], T]) -> T:
    """Run `work` in a thread of its own, whose namespace is its own, too."""
    results: list[T] = []
    failures: list[BaseException] = []

    def run() -> None:
        try:
            results.append(work())
        except BaseException as cause:  # noqa: BLE001 - told by the caller
            failures.append(cause)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if failures:
        raise failures[0]
    return results[0]


class Namespace:
    """A network namespace with nothing but a loopback that is up."""

    def __init__(self) -> None:
        def make() -> int:
            _checked(_LIBC.unshare(_CLONE_NEWNET))
            return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)

        self.fd = _in_thread(make)
        self.run("ip", "link", "set", "lo", "up")

    @property
    def prefix(self) -> list[str]:
        """What a command line begins with that is to run inside, while this process lives."""
        return ["nsenter", f"--net=/proc/{os.getpid()}/fd/{self.fd}", "--"]

    def call(self, work: Callable[[], T]) -> T:
        """Return what `work` returns inside: a socket that it makes stays there."""

        def enter() -> T:
            _checked(_LIBC.setns(self.fd, _CLONE_NEWNET))
            return work()

        return _in_thread(enter)

    def run(self, *argv: str, stdin: str | None = None, timeout: float = 30) -> str:
        """Run a program inside to its end; returns its output. Raises CalledProcessError."""
        done = subprocess.run(
            [*self.prefix, *argv],
            input=stdin,
            text=True,
            capture_output=True,
            timeout=timeout,
            check=False,
        )
        assert done.returncode == 0, (argv, done.stdout, done.stderr)
        return done.stdout

    def connect(self, other: "Namespace", name: str, other_name: str) -> None:
        """Lay a cable (veth) to another namespace. Both ends are up, without addresses."""
        peer = f"/proc/{os.getpid()}/fd/{other.fd}"
        self.run("ip", "link", "add", name, "type", "veth", "peer", other_name, "netns", peer)
        self.run("ip", "link", "set", name, "up")
        other.run("ip", "link", "set", other_name, "up")

    def close(self) -> None:
        """Let go of it: it ends with the last process and socket in it."""
        os.close(self.fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

"""Values of the SDK's own: what a command left, a piece of its output, a piece of a log."""

from dataclasses import dataclass

from hutch.models import ExecOutcome


@dataclass(frozen=True, slots=True)
class CommandResult:
    """How a command ended, and what it wrote.

    `exit_code` is what a shell would see: the code, 128+n for signal n, 124 for a timeout.
    """

    outcome: ExecOutcome
    stdout_bytes: bytes
    stderr_bytes: bytes

    @property
    def exit_code(self) -> int:
        """The exit code as a shell would see it."""
        return self.outcome.exit_code

    @property
    def stdout(self) -> str:
        """Standard output as text; bytes that are no UTF-8 are replaced."""
        return self.stdout_bytes.decode("utf-8", "replace")

    @property
    def stderr(self) -> str:
        """Standard error as text; bytes that are no UTF-8 are replaced."""
        return self.stderr_bytes.decode("utf-8", "replace")

    @property
    def timed_out(self) -> bool:
        """Whether its own timeout ended it."""
        return self.outcome.timed_out


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of output: `channel` is "stdout" or "stderr"; `missing` bytes were lost before it."""

    channel: str
    data: bytes
    missing: int = 0


@dataclass(frozen=True, slots=True)
class LogChunk:
    """A piece of a log: `channel` is "stdout", "stderr" or "console"; `missing` as in Chunk.

    `time_ns` is Unix time, 0 for a gap.
    """

    channel: str
    time_ns: int
    data: bytes
    missing: int = 0


CHANNELS = {1: "stdout", 2: "stderr", 3: "console"}

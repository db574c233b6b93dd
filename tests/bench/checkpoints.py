"""Checkpoints of a sandbox that works in steps, as an agent does: what one costs, before each step.

What it takes on disk is the checkpoint's own: what it shares with others and with the template is
told apart. It is compared with a whole snapshot of the same sandbox at the same time. The last one
is gone back to at the end: what was in memory then must be there again.
"""

import time

from hutch.models import SandboxInfo, SnapshotInfo
from hutch.sdk import AsyncClient, AsyncSandbox
from tests.bench.boots import cold
from tests.bench.lab import Lab, Session
from tests.bench.lives import tell_marker
from tests.bench.samples import Check, Measured, Series, part_of

_PART, _BYTES_PART = 10, 4
_DIRTY = 64 << 20
_MIB = 1 << 20
_FILL = f"head -c {_DIRTY} /dev/urandom >/dev/shm/dirty; sha256sum </dev/shm/dirty"


def checkpoints(lab: Lab) -> Measured:
    """Measure checkpoints of an idle busybox, and of one with 64 MiB in use, against cold boots."""
    with lab.sandbox(template=True) as info, lab.session() as session:
        boots = cold(lab, lab.recipe(info))
        idle = _Steps(session, info)
        warm, rounds = lab.rounds(2, 1), lab.rounds(15, 3)
        for number in range(warm + rounds):
            idle.step(counted=number >= warm)
        idle_whole = idle.whole()
        digest = idle.run(_FILL)
        full = _Steps(session, info)
        first = full.step(counted=False)
        for _ in range(rounds):
            full.step()
        full_whole = full.whole()
        idle.run("rm /dev/shm/dirty")
        session(lambda client: client.checkpoints.undo(info.id))
        assert idle.run("sha256sum </dev/shm/dirty") == digest, "another memory came back"
    return Measured(
        "Checkpoints before each step",
        [
            boots,
            Series("idle: request to reply", "s", idle.seconds),
            Series("idle: the programs stand still", "s", idle.still),
            Series("idle: own bytes of a checkpoint", "MiB", idle.sizes),
            Series("idle: bytes of a whole snapshot", "MiB", [idle_whole]),
            Series("64 MiB in use: own bytes of the first one", "MiB", [first.disk_bytes / _MIB]),
            Series("64 MiB in use: request to reply", "s", full.seconds),
            Series("64 MiB in use: the programs stand still", "s", full.still),
            Series("64 MiB in use: own bytes of a checkpoint", "MiB", full.sizes),
            Series("64 MiB in use: bytes of a whole snapshot", "MiB", [full_whole]),
        ],
        [
            part_of("checkpoint of an idle sandbox, of a cold boot",
                    Series("", "s", idle.seconds), boots, _PART),
            Check("its own bytes, of a whole snapshot",
                  Series("", "MiB", idle.sizes).median / idle_whole, 1 / _BYTES_PART, "x"),
            Check("the same with 64 MiB in use",
                  Series("", "MiB", full.sizes).median / full_whole, 1 / _BYTES_PART, "x"),
        ],
        "A command ran in the sandbox before each checkpoint, and told which machine it was in.",
    )  # fmt: skip


class _Steps:
    """Takes checkpoints of a sandbox in which a command runs before each."""

    def __init__(self, session: Session, info: SandboxInfo) -> None:
        self._session = session
        self._info = info
        self.seconds: list[float] = []
        self.still: list[float] = []
        self.sizes: list[float] = []

    def step(self, *, counted: bool = True) -> SnapshotInfo:
        """Run a command, and take a checkpoint."""

        async def sample(client: AsyncClient) -> tuple[float, SnapshotInfo]:
            await tell_marker(client, self._info)
            started = time.monotonic()
            made = await client.checkpoints.create(self._info.id)
            return time.monotonic() - started, made

        seconds, made = self._session(sample)
        if counted:
            self.seconds.append(seconds)
            self.still.append(made.pause_seconds)
            self.sizes.append(made.disk_bytes / _MIB)
        return made

    def whole(self) -> float:
        """Return the MiB of a whole snapshot of the sandbox as it is now."""

        async def sample(client: AsyncClient) -> float:
            made = await client.snapshots.create(self._info.id)
            await client.snapshots.remove(made.id)
            return made.disk_bytes / _MIB

        return self._session(sample)

    def run(self, script: str) -> str:
        """Run a script in the sandbox; return what it said."""

        async def say(client: AsyncClient) -> str:
            box = AsyncSandbox(self._info, client, owned=False, own_client=False)
            said = await box.commands.run(script)
            assert said.exit_code == 0, said
            return said.stdout

        return self._session(say)

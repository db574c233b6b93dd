"""Sandboxes made with one connected client, timed to the reply and to a first command's output.

The command tells the machine id, which was set by the sandbox's identity, is made of its id, and is
no other machine's: so each sample proves which machine it reached, and that it has its identity.
"""

import hashlib
import time
from dataclasses import dataclass

from hutch.models import SandboxInfo, SandboxSpec
from hutch.sdk import AsyncClient, AsyncSandbox
from tests.bench.lab import Session

MACHINE_ID = "/etc/machine-id"


@dataclass(frozen=True, slots=True)
class Begun:
    """How long a start took, in seconds from the request."""

    info: SandboxInfo
    reply: float
    output: float


def machine_id(sandbox_id: str) -> str:
    """Return the machine id that only this sandbox has."""
    return hashlib.sha256(sandbox_id.encode()).hexdigest()[:32]


async def tell_marker(client: AsyncClient, info: SandboxInfo) -> None:
    """Run a command in a sandbox and check that it was that one which answered."""
    box = AsyncSandbox(info, client, owned=False, own_client=False)
    said = await box.commands.run(["cat", MACHINE_ID])
    assert said.stdout.strip() == machine_id(info.id), said


def begin(session: Session, spec: SandboxSpec) -> Begun:
    """Make a sandbox, run a command in it, and remove it."""

    async def sample(client: AsyncClient) -> Begun:
        started = time.monotonic()
        info = await client.create(spec)
        replied = time.monotonic()
        try:
            await tell_marker(client, info)
            ended = time.monotonic()
        finally:
            await client.remove(info.id, force=True)
        return Begun(info, replied - started, ended - started)

    return session(sample)

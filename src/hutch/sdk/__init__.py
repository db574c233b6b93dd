"""The SDK: what programs use to drive Hutch.

    from hutch.sdk import Sandbox

    with Sandbox.create("busybox") as box:
        print(box.commands.run("uname -a").stdout)

Names are loaded when they are first asked for: the CLI's hot path takes only wire.py and start.py
from here.
"""

from typing import TYPE_CHECKING

from hutch.sdk.surface import load as __getattr__  # noqa: F401 - the module's own hook

if TYPE_CHECKING:
    from hutch.sdk.aio.client import AsyncClient
    from hutch.sdk.aio.commands import AsyncCommandHandle
    from hutch.sdk.aio.sandbox import AsyncSandbox
    from hutch.sdk.sync.client import Client
    from hutch.sdk.sync.commands import CommandHandle
    from hutch.sdk.sync.sandbox import Sandbox
    from hutch.sdk.values import Chunk, CommandResult, LogChunk

__all__ = [
    "AsyncClient",
    "AsyncCommandHandle",
    "AsyncSandbox",
    "Chunk",
    "Client",
    "CommandHandle",
    "CommandResult",
    "LogChunk",
    "Sandbox",
]

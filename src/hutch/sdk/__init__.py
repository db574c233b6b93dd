"""The SDK: what programs use to drive Hutch.

    from hutch.sdk import Sandbox

    with Sandbox.create("busybox") as box:
        print(box.commands.run("uname -a").stdout)

Names are loaded when they are first asked for: the CLI's hot path takes only wire.py and start.py
from here.
"""

import importlib
from typing import TYPE_CHECKING, Any

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

_HOMES = {
    "AsyncClient": "hutch.sdk.aio.client",
    "AsyncCommandHandle": "hutch.sdk.aio.commands",
    "AsyncSandbox": "hutch.sdk.aio.sandbox",
    "Chunk": "hutch.sdk.values",
    "Client": "hutch.sdk.sync.client",
    "CommandHandle": "hutch.sdk.sync.commands",
    "CommandResult": "hutch.sdk.values",
    "LogChunk": "hutch.sdk.values",
    "Sandbox": "hutch.sdk.sync.sandbox",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)

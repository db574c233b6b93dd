"""Where the SDK's public names live, so that asking for one loads only what it needs."""

import importlib
from typing import Any

HOMES = {
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


def load(name: str) -> Any:
    """Return a public name of `hutch.sdk`. Raises AttributeError for any other."""
    if name not in HOMES:
        raise AttributeError(f"module 'hutch.sdk' has no attribute {name!r}")
    return getattr(importlib.import_module(HOMES[name]), name)

"""Where this installation keeps the guest agent: the static program that is PID 1 in every VM."""

import importlib.resources
from pathlib import Path

from hutch.errors import error

_CHECKOUT = "guest-agent/target/x86_64-unknown-linux-gnu/release/hutch-agent"


def agent_binary() -> Path:
    """Return the agent that the package carries, or the one built in a source checkout.

    Raises Missing (agent_missing).
    """
    package = Path(str(importlib.resources.files("hutch")))
    # The checkout goes first: there the packaged copy, if any, is of an earlier build.
    for candidate in (package.parents[1] / _CHECKOUT, package / "_agent" / "hutch-agent"):
        if candidate.is_file():
            return candidate
    raise error(
        "agent_missing",
        "this installation carries no guest agent",
        hint="in a source checkout run `make setup`, else reinstall hutch",
    )

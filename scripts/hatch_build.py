"""Hatchling's build hook: a wheel carries the guest agent, compiled here by cargo.

The wheel is for one platform but any Python: the agent is a static program, and the rest is pure
Python. An editable install carries nothing, since a source checkout finds its own build.
"""

import os
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class AgentHook(BuildHookInterface[Any]):
    """Builds the agent and puts it into the wheel as hutch/_agent/hutch-agent."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Build the agent. Raises CalledProcessError when cargo is missing or fails."""
        if self.target_name != "wheel" or version == "editable":
            return
        script = Path(self.root) / "scripts/agent"
        agent = subprocess.run(
            [str(script)],
            check=True,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHON": sys.executable},
        ).stdout.strip()
        build_data["pure_python"] = False
        platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
        build_data["tag"] = f"py3-none-{platform}"
        build_data["force_include"][agent] = "hutch/_agent/hutch-agent"

"""Puts tests.unit.cli.local_host where a daemon, also one that the CLI starts, looks for its host.

On PYTHONPATH of the CLI's tests only.
"""

import sys
import types

if "hutch.api.daemon" in sys.orig_argv:
    stand_in = types.ModuleType("hutch.service.host")

    def open_host(settings: object) -> object:
        from tests.unit.cli.local_host import open_local_host

        return open_local_host(settings)

    stand_in.open_host = open_host
    sys.modules["hutch.service.host"] = stand_in

"""What a VM leaves when it is gone: its place in the network, its sockets, its directory.

The one way to be rid of them, whoever's VM it was. It must not know why a VM has ended.
"""

import shutil
from pathlib import Path

from hutch.service.parts import Parts
from hutch.tasks import both, in_thread


async def clear_away(parts: Parts, directory: Path) -> None:
    """Remove what the VM of that directory leaves, which has ended, or was never started.

    Nothing happens where there is nothing. Raises engine_failed.
    """
    await both(parts.plugs.detach(directory.name), _remove(parts, directory))


async def _remove(parts: Parts, directory: Path) -> None:
    await parts.engine.discard(directory)
    await in_thread(shutil.rmtree, directory, ignore_errors=True)

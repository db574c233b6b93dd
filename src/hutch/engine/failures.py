"""What the host refuses and what will not load, as Hutch's errors: shared by the engine's parts."""

import errno

from hutch.errors import HutchError, error


def os_failure(message: str, cause: OSError) -> HutchError:
    """Return the error for a failed system call: disk_full, or engine_failed with its reason."""
    words = f"{message}: {cause.strerror}"
    if cause.errno in (errno.ENOSPC, errno.EDQUOT):
        hint = "free some space, for example with `hutch image prune` or `hutch rm`"
        return error("disk_full", words, hint=hint)
    return error("engine_failed", words)


def template_failure(message: str) -> HutchError:
    """Return the error for a frozen machine that will never load: whoever keeps it drops it."""
    return error(
        "engine_failed",
        message,
        hint="it is made anew from a cold boot",
        details={"template": True},
    )

"""What the agent's ERROR frames, silence and a lost connection become above: `hutch.errors` only.

The guest chooses the words, so they are cut and cleaned before anyone sees them.
"""

from typing import Any, Final

from hutch.errors import HutchError, error
from hutch.guest import fields

_TEXT_LIMIT: Final = 300

# not_found, exists and busy mean another object for each family of operations.
_BY_OPERATION: Final = {
    ("exec.start", "not_found"): "command_not_found",
    ("exec.attach", "not_found"): "exec_not_found",
    ("exec.attach", "busy"): "exec_taken",
    ("exec.start", "busy"): "exec_taken",
    ("exec.signal", "not_found"): "exec_not_found",
    ("exec.release", "not_found"): "exec_not_found",
    ("tunnel", "not_found"): "guest_refused",
    ("tunnel", "timeout"): "guest_refused",
}

_BY_CODE: Final = {
    "not_found": "path_not_found",
    "not_executable": "command_not_executable",
    "no_such_user": "no_such_user",
    "timeout": "guest_timeout",
    "cancelled": "cancelled",
    "bad_cwd": "guest_refused",
    "exists": "guest_refused",
    "not_dir": "guest_refused",
    "is_dir": "guest_refused",
    "not_empty": "guest_refused",
    "permission": "guest_refused",
    "read_only": "guest_refused",
    "no_space": "guest_refused",
    "too_large": "guest_refused",
    "limit": "guest_refused",
    "loop": "guest_refused",
    "busy": "guest_refused",
    "refused": "guest_refused",
    "bad_request": "guest_failed",
    "unsupported": "guest_failed",
    "not_ready": "guest_failed",
    "io": "guest_failed",
}

_HINTS: Final = {
    "no_space": "free space in the sandbox, or create one with a larger --disk",
    "read_only": "write below a writable directory",
    "bad_cwd": "choose a working directory that exists in the image",
    "no_such_user": "choose a user of the image's /etc/passwd, or a number",
    "not_ready": "wait until the sandbox has started",
    "refused": "check that a program listens on that port in the sandbox",
}


def from_guest(operation: str, subject: str, message: dict[str, Any]) -> HutchError:
    """Return what an ERROR frame means for `operation` on `subject` (a path, a program, an id)."""
    guest_code = fields.text(message, "code", limit=64)
    words = clean(fields.text(message, "message", "", limit=1 << 20)) or guest_code
    code = _BY_OPERATION.get((operation, guest_code)) or _BY_CODE.get(guest_code, "guest_failed")
    details = {
        "guest_code": clean(guest_code),
        "errno": fields.optional(message, "errno", high=4095),
    }
    return error(code, f"{subject}: {words}", hint=_HINTS.get(guest_code), details=details)


def timed_out(subject: str, seconds: float) -> HutchError:
    """Return the error for a guest that stays silent."""
    return error(
        "guest_timeout",
        f"{subject}: the guest did not answer within {seconds:g} s",
        hint="the sandbox may be paused or overloaded; see its boot log",
    )


def lost(why: str) -> HutchError:
    """Return the error for a connection that has ended."""
    return error("sandbox_died", f"the connection to the sandbox was lost: {why}")


def clean(words: str) -> str:
    """Return text of the guest as one line that no terminal can be harmed by."""
    return "".join(c if c.isprintable() else "\ufffd" for c in words[:_TEXT_LIMIT])

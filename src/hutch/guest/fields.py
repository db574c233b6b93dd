"""Typed reading of the guest's maps, and the way paths travel.

The guest is hostile: a field of the wrong type or beyond its range is a violation of the protocol,
never a TypeError somewhere above. Also the one place that turns text into the protocol's bytes and
back.
"""

import math
from collections.abc import Mapping
from typing import Any, Final

from hutch.errors import error
from hutch.guest.messages import GuestProtocolError

Message = Mapping[str, Any]

U64: Final = (1 << 64) - 1
PATH_MAX: Final = 4096


def integer(message: Message, key: str, default: int | None = None, *, high: int = U64) -> int:
    """Return an integer of 0..`high`; `default` stands in for a missing one or nil."""
    value = message.get(key)
    if value is None and default is not None:
        return default
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= high:
        raise _wrong(key, "a number in range")
    return value


def signed(message: Message, key: str, default: int = 0) -> int:
    """Return an integer of 64 bits with a sign."""
    value = message.get(key, default)
    if not isinstance(value, int) or isinstance(value, bool) or not -(1 << 63) <= value < 1 << 63:
        raise _wrong(key, "a number in range")
    return value


def optional(message: Message, key: str, *, high: int = U64) -> int | None:
    """Return an integer of 0..`high`, or None for a missing one or nil."""
    return None if message.get(key) is None else integer(message, key, high=high)


def flag(message: Message, key: str) -> bool:
    """Return a boolean; a missing one is False."""
    value = message.get(key, False)
    if not isinstance(value, bool):
        raise _wrong(key, "true or false")
    return value


def text(message: Message, key: str, default: str | None = None, *, limit: int = 1024) -> str:
    """Return a string of at most `limit` characters; `default` stands in for a missing one."""
    value = message.get(key)
    if value is None and default is not None:
        return default
    if not isinstance(value, str) or len(value) > limit:
        raise _wrong(key, f"a string of at most {limit} characters")
    return value


def octets(message: Message, key: str, *, limit: int = U64) -> bytes:
    """Return bytes (a str is accepted) of at most `limit`."""
    value = message.get(key)
    if isinstance(value, str):
        value = value.encode()
    if not isinstance(value, bytes) or len(value) > limit:
        raise _wrong(key, f"at most {limit} bytes")
    return value


def table(message: Message, key: str) -> Message:
    """Return a map."""
    value = message.get(key)
    if not isinstance(value, dict):
        raise _wrong(key, "a map")
    return value


def items(message: Message, key: str) -> list[Any]:
    """Return an array."""
    value = message.get(key)
    if not isinstance(value, list):
        raise _wrong(key, "an array")
    return value


def tables(message: Message, key: str) -> list[Message]:
    """Return an array of maps."""
    found = items(message, key)
    if not all(isinstance(item, dict) for item in found):
        raise _wrong(key, "an array of maps")
    return found


def numbers(message: Message, key: str) -> list[float]:
    """Return an array of finite numbers, as JSON can hold them."""
    found = items(message, key)
    if not all(isinstance(item, int | float) and math.isfinite(item) for item in found):
        raise _wrong(key, "an array of numbers")
    return [float(item) for item in found]


def to_bytes(value: str) -> bytes:
    """Return the bytes of a text that may hold surrogate escapes. Raises bad_request for a NUL."""
    if "\0" in value:
        raise error("bad_request", f"{value!r} contains a NUL character")
    return _encode(value, "bad_request")


def to_text(value: bytes) -> str:
    """Return bytes of the guest as text, undecodable ones as surrogate escapes."""
    return value.decode("utf-8", "surrogateescape")


def path_bytes(path: str) -> bytes:
    """Return an absolute path of the guest as bytes. Raises bad_path for any other."""
    if not path.startswith("/") or "\0" in path:
        raise error(
            "bad_path",
            f"{path!r} is not an absolute path in the sandbox",
            hint="give a path that begins with /",
        )
    raw = _encode(path, "bad_path")
    if len(raw) >= PATH_MAX:
        raise error("bad_path", f"the path has {len(raw)} bytes, allowed are {PATH_MAX - 1}")
    return raw


def _encode(value: str, code: str) -> bytes:
    try:
        return value.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError as failure:
        raise error(code, f"{value!r} cannot be encoded in UTF-8") from failure


def _wrong(key: str, wanted: str) -> GuestProtocolError:
    return GuestProtocolError(f"the field {key!r} of a message is not {wanted}")

"""The maps of the guest protocol: MessagePack, decoded within bounds.

The peer is hostile: what it claims about lengths and nesting is limited before memory is taken for
it, and each violation raises GuestProtocolError. This module must not know frames (frames.py) or
what the maps mean.
"""

from collections.abc import Iterator, Mapping
from typing import Any, Final

import msgpack

from hutch.errors import GuestError

# A map is a tree of at most this depth and these lengths. The array bound matters most: the
# unpacker makes room for an array's claimed length before it sees an element, at each level of
# nesting.
_MAX_DEPTH: Final = 8
_MAX_ARRAY: Final = 4096
_MAX_MAP: Final = 1024


class GuestProtocolError(GuestError):
    """The guest sent something that the protocol forbids; the connection is of no more use."""

    def __init__(self, what: str) -> None:
        super().__init__(
            "guest_protocol",
            f"the guest broke the protocol: {what}",
            hint="the guest agent is damaged or hostile; stop the sandbox",
        )


def encode_map(message: Mapping[str, Any]) -> bytes:
    """Return the MessagePack bytes of `message`, its bytes as bin."""
    payload: bytes = msgpack.packb(message, use_bin_type=True)
    return payload


def decode_map(payload: bytes) -> dict[str, Any]:
    """Return a MessagePack map with string keys. Raises GuestProtocolError for anything else."""
    try:
        value = msgpack.unpackb(payload, **_bounds(len(payload)))
    except _UNPACK_ERRORS as error:
        raise _undecodable(error) from error
    if not isinstance(value, dict):
        raise GuestProtocolError("a message is not a map")
    _check_tree(value)
    return value


class MapStream:
    """Decodes concatenated maps that are split anywhere, each of at most `limit` bytes (a directory
    listing).
    """

    def __init__(self, limit: int = 64 << 10) -> None:
        self._limit = limit
        self._unpacker = msgpack.Unpacker(max_buffer_size=2 * limit, **_bounds(limit))
        self._taken = 0
        self._fed = 0

    def feed(self, data: bytes) -> Iterator[dict[str, Any]]:
        """Take at most `limit` bytes in and yield the maps that are now whole. Raises
        GuestProtocolError.
        """
        self._fed += len(data)
        try:
            self._unpacker.feed(data)
        except msgpack.BufferFull as error:
            raise _undecodable(error) from error
        while True:
            try:
                value = self._unpacker.unpack()
            except msgpack.OutOfData:
                break
            except _UNPACK_ERRORS as error:
                raise _undecodable(error) from error
            self._taken = self._unpacker.tell()
            if not isinstance(value, dict):
                raise GuestProtocolError("an item of a listing is not a map")
            _check_tree(value)
            yield value
        if self.pending > self._limit:
            raise GuestProtocolError(f"an item of a listing exceeds {self._limit} bytes")

    @property
    def pending(self) -> int:
        """Bytes taken in that do not yet make a map; not 0 at the end of a listing means it was cut
        off.
        """
        return self._fed - self._taken


_UNPACK_ERRORS: Final = (
    msgpack.UnpackException,
    msgpack.ExtraData,
    msgpack.StackError,
    ValueError,
    TypeError,
    OverflowError,
    RecursionError,
)


def _bounds(size: int) -> dict[str, Any]:
    return {
        "raw": False,
        "strict_map_key": True,
        "max_str_len": size,
        "max_bin_len": size,
        "max_array_len": min(size, _MAX_ARRAY),
        "max_map_len": min(size, _MAX_MAP),
        "max_ext_len": 0,
    }


def _undecodable(error: Exception) -> GuestProtocolError:
    return GuestProtocolError(f"a message cannot be decoded ({str(error) or type(error).__name__})")


def _check_tree(root: dict[Any, Any]) -> None:
    level: list[Any] = [root]
    for _ in range(_MAX_DEPTH):
        below: list[Any] = []
        for node in level:
            if isinstance(node, dict):
                if not all(isinstance(key, str) for key in node):
                    raise GuestProtocolError("a key of a message is not a string")
                below.extend(node.values())
            elif isinstance(node, list):
                below.extend(node)
            elif isinstance(node, msgpack.Timestamp | msgpack.ExtType):
                raise GuestProtocolError("a message has an extension type")
        if not below:
            return
        level = below
    raise GuestProtocolError(f"a message is nested more than {_MAX_DEPTH} deep")

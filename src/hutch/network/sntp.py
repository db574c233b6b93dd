"""The clock of guests: SNTP version 4 (RFC 4330), a pure function of a request and the time.

Guests that ask any time server get the host's time, and nothing leaves the host for it.
"""

import struct
from typing import Final

PACKET: Final = struct.Struct("!BBbb11I")
"""Flags, stratum, poll, precision, root delay, root dispersion, reference id, four timestamps."""

_UNIX_EPOCH: Final = 2_208_988_800  # seconds from 1900 to 1970
_SECOND: Final = 1_000_000_000
_CLIENT, _SERVER = 3, 4
_STRATUM: Final = 2
_PRECISION: Final = -20  # about a microsecond
_DISPERSION: Final = 1 << 6  # about a millisecond, in seconds << 16
_REFERENCE: Final = 0x7F000001


def answer(request: bytes, received: int, sent: int | None = None) -> bytes | None:
    """Return what a client's request is answered with; None for whatever is no such request.

    `received` and `sent` are the host's time, in nanoseconds since 1970. The answer is never longer
    than the request.
    """
    if len(request) < PACKET.size:
        return None
    flags, _, poll, *_, seconds, fraction = PACKET.unpack_from(request)
    version, mode = flags >> 3 & 7, flags & 7
    if mode != _CLIENT or not 1 <= version <= 4:
        return None
    return PACKET.pack(
        version << 3 | _SERVER,
        _STRATUM,
        poll,
        _PRECISION,
        0,
        _DISPERSION,
        _REFERENCE,
        *_stamp(received - received % (16 * _SECOND)),  # when the host's clock was last set, say
        seconds,
        fraction,
        *_stamp(received),
        *_stamp(received if sent is None else max(sent, received)),
    )


def _stamp(at: int) -> tuple[int, int]:
    """Return a time as NTP has it: seconds since 1900 of an era of 2**32, and their fraction."""
    seconds, rest = divmod(at, _SECOND)
    return (seconds + _UNIX_EPOCH) & 0xFFFFFFFF, (rest << 32) // _SECOND

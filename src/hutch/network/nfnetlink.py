"""The filter of a TAP's frames: a chain of its own that jumps to the constant rules.

As nfnetlink messages, since the program `nft` would take 5 ms for each.
"""

import errno
import itertools
import os
import socket
import struct
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Final

_NETFILTER: Final = 12
_BATCH_BEGIN, _BATCH_END = 0x10, 0x11
_NFTABLES: Final = 10
_NEW_CHAIN, _DELETE_CHAIN, _NEW_RULE = 3, 5, 6
_NETDEV: Final = 5
_REQUEST, _ACK, _CREATE, _APPEND = 0x1, 0x4, 0x400, 0x800
_GOTO: Final = -4
_CHAIN_TABLE, _CHAIN_NAME, _CHAIN_HOOK, _CHAIN_POLICY, _CHAIN_TYPE = 1, 3, 4, 5, 7
_HOOK_NUMBER, _HOOK_PRIORITY, _HOOK_DEVICE = 1, 2, 3
_RULE_TABLE, _RULE_CHAIN, _RULE_EXPRESSIONS = 1, 2, 4
_ELEMENT, _EXPRESSION_NAME, _EXPRESSION_DATA = 1, 1, 2
_IMMEDIATE_REGISTER, _IMMEDIATE_DATA = 1, 2
_DATA_VERDICT, _VERDICT_CODE, _VERDICT_CHAIN = 2, 1, 2
_NESTED: Final = 0x8000
_MOST: Final = 2
"""Messages that are sent at once, at most."""


def _attribute(kind: int, content: bytes) -> bytes:
    length = 4 + len(content)
    return struct.pack("=HH", length, kind) + content + bytes(-length % 4)


def _text(kind: int, text: str) -> bytes:
    return _attribute(kind, text.encode() + b"\0")


def _number(kind: int, value: int) -> bytes:
    return _attribute(kind, struct.pack("!i", value))


def _nested(kind: int, *content: bytes) -> bytes:
    return _attribute(kind | _NESTED, b"".join(content))


def frame_filter(name: str, number: int) -> list[bytes]:
    """Return the messages that filter the frames of a TAP; their numbers begin with `number`."""
    chain = (
        _text(_CHAIN_TABLE, "hutch")
        + _text(_CHAIN_NAME, name)
        + _nested(
            _CHAIN_HOOK,
            _number(_HOOK_NUMBER, 0),
            _number(_HOOK_PRIORITY, 0),
            _text(_HOOK_DEVICE, name),
        )
        + _number(_CHAIN_POLICY, 0)
        + _text(_CHAIN_TYPE, "filter")
    )
    verdict = _nested(_DATA_VERDICT, _number(_VERDICT_CODE, _GOTO), _text(_VERDICT_CHAIN, "frames"))
    jump = _nested(
        _ELEMENT,
        _text(_EXPRESSION_NAME, "immediate"),
        _nested(
            _EXPRESSION_DATA,
            _number(_IMMEDIATE_REGISTER, 0),
            _nested(_IMMEDIATE_DATA, verdict),
        ),
    )
    rule = _text(_RULE_TABLE, "hutch") + _text(_RULE_CHAIN, name) + _nested(_RULE_EXPRESSIONS, jump)
    return [
        _message(_NFTABLES << 8 | _NEW_CHAIN, _CREATE | _ACK, number, chain),
        _message(_NFTABLES << 8 | _NEW_RULE, _CREATE | _APPEND | _ACK, number + 1, rule),
    ]


def frame_filter_removal(name: str, number: int) -> list[bytes]:
    """Return the messages that remove the filter of a TAP."""
    chain = _text(_CHAIN_TABLE, "hutch") + _text(_CHAIN_NAME, name)
    return [_message(_NFTABLES << 8 | _DELETE_CHAIN, _ACK, number, chain)]


def batch(messages: Sequence[bytes], number: int) -> bytes:
    """Return messages that are taken together or not at all. What is said against all is said
    against `number`.
    """
    begin, end = (
        _message(kind, 0, number, b"", family=0, resource=_NFTABLES)
        for kind in (_BATCH_BEGIN, _BATCH_END)
    )
    return begin + b"".join(messages) + end


def _message(
    kind: int, flags: int, number: int, body: bytes, *, family: int = _NETDEV, resource: int = 0
) -> bytes:
    head = struct.pack("!BBH", family, 0, resource)
    length = 16 + len(head) + len(body)
    return struct.pack("=IHHII", length, kind, flags | _REQUEST, number, 0) + head + body


def _refusals(data: bytes) -> Mapping[int, int]:
    """Return the error (0: none) that each message was answered with."""
    found, at = {}, 0
    while at + 20 <= len(data):
        length, kind, _, number = struct.unpack_from("=IHHI", data, at)
        if length < 16:
            break
        if kind == 2:
            found[number] = -int.from_bytes(data[at + 16 : at + 20], sys.byteorder, signed=True)
        at += length + -length % 4
    return found


class FrameFilter:
    """Filters the frames of TAPs, in the namespace in which it was made. Raises OSError."""

    def __init__(self) -> None:
        self._sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETFILTER)
        self._sock.settimeout(10)
        self._sock.bind((0, 0))
        self._numbers = itertools.count(1, _MOST + 1)

    def close(self) -> None:
        """Close the socket; chains stay."""
        self._sock.close()

    def add(self, name: str) -> None:
        """Filter the frames of a TAP. Raises OSError."""
        if code := self._refusal(frame_filter, name):
            raise OSError(code, f"the filter of {name}: {os.strerror(code)}")

    def remove(self, name: str) -> None:
        """Filter them no longer; older kernels did so by themselves when the TAP went.

        Raises OSError.
        """
        code = self._refusal(frame_filter_removal, name)
        if code not in (0, errno.ENOENT):
            raise OSError(code, f"the filter of {name}: {os.strerror(code)}")

    def _refusal(self, messages: Callable[[str, int], list[bytes]], name: str) -> int:
        """Have messages taken; return the first error that they were answered with, or 0.

        What answers one of before, for which nobody waited any more, is passed over.
        """
        first = next(self._numbers)
        sent = messages(name, first + 1)
        self._sock.send(batch(sent, first))
        awaited = set(range(first + 1, first + 1 + len(sent)))
        while awaited:
            for number, code in _refusals(self._sock.recv(1 << 16)).items():
                if code and (number == first or number in awaited):
                    return code
                awaited.discard(number)
        return 0

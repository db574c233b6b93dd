"""The addresses that a sandbox finds names at: a table of its own, in a file that only grows.

The gateway answers an allowed name with an address of SYNTHETIC_RANGE, and knows by it later what
is connected to. A guest keeps what it was told for as long as it likes, over snapshots, forks and a
gateway's death. So a pair is written before it is told, and stands for good: a fork or a restored
sandbox goes on with a copy of the file. It knows nothing of DNS or policies.
"""

import hashlib
import os
import secrets
from ipaddress import IPv4Address, IPv4Network
from typing import Final

from hutch.errors import error
from hutch.networking import SYNTHETIC_RANGE

NAMES_LIMIT: Final = 4096
NAME_LENGTH: Final = 253

_HEAD: Final = "hutch-names 1"
_FILE_LIMIT: Final = 2 * NAMES_LIMIT * (NAME_LENGTH + 17)
_RESERVED: Final = 256  # the first addresses of the range are ours


class TableFull(Exception):
    """A sandbox has as many names as it may have."""


class NameTable:
    """Which address stands for which name in one sandbox.

    Where a name comes to stand follows from a secret in the file's first line, so that addresses
    tell nothing of what was looked up when, here or in another sandbox. Each further line is an
    address and its name. For one process at a time.
    """

    def __init__(
        self, descriptor: int, *, network: str = SYNTHETIC_RANGE, limit: int = NAMES_LIMIT
    ) -> None:
        """Read the file behind `descriptor`, which is to be read and written, and is the caller's.

        An empty one is begun. What a crash left of a last line is cut off: that address was told
        to nobody. Raises network_failed for a file that is no table.
        """
        self._descriptor = descriptor
        self._limit = limit
        self._network = IPv4Network(network)
        self._names: dict[IPv4Address, str] = {}
        self._addresses: dict[str, IPv4Address] = {}
        self._end = 0
        self._key = self._read()

    @property
    def network(self) -> IPv4Network:
        """The range that its addresses are of."""
        return self._network

    def __len__(self) -> int:
        return len(self._names)

    def __contains__(self, name: str) -> bool:
        return name in self._addresses

    def name_of(self, address: IPv4Address) -> str | None:
        """Return the name that an address stands for, if it was ever told to the guest."""
        return self._names.get(address)

    def address_of(self, name: str) -> IPv4Address:
        """Return the address that stands for `name`, which is in its normal form.

        It is in the file when this returns. Raises TableFull, and OSError when it cannot be
        written: nothing may be answered then.
        """
        if (known := self._addresses.get(name)) is not None:
            return known
        if not _sound(name):
            raise ValueError(f"{name!r} is no name in its normal form")
        if len(self._names) >= self._limit:
            raise TableFull(name)
        address = self._place(name)
        self._append(f"{address} {name}\n")
        self._names[address] = name
        self._addresses[name] = address
        return address

    def _place(self, name: str) -> IPv4Address:
        """Return the first free address of those that the secret gives for a name.

        The table fills a small part of its range, so that the first or second is free.
        """
        blocks = (self._network.num_addresses - _RESERVED) // 256
        first = int(self._network.network_address) + _RESERVED
        for attempt in range(64 * self._limit):
            text = f"{attempt} {name}".encode()
            digest = hashlib.blake2s(text, key=self._key, digest_size=8).digest()
            # No address ends in 0 or 255: some programs take those for no host's.
            block, host = divmod(int.from_bytes(digest, "big") % (blocks * 254), 254)
            address = IPv4Address(first + block * 256 + host + 1)
            if address not in self._names:
                return address
        raise TableFull(name)

    def _append(self, line: str) -> None:
        data = line.encode("ascii")
        try:
            written = os.pwrite(self._descriptor, data, self._end)
            if written != len(data):
                raise OSError(f"{written} of {len(data)} bytes of a name were written")
        except OSError:
            os.ftruncate(self._descriptor, self._end)
            raise
        self._end += len(data)

    def _read(self) -> bytes:
        """Read the file, cut off what is broken at its end; return its secret."""
        data = _contents(self._descriptor)
        head, newline, rest = data.partition(b"\n")
        if not newline:  # nobody was told an address: the first line is written before any other
            key = secrets.token_bytes(16)
            os.ftruncate(self._descriptor, 0)
            self._append(f"{_HEAD} {self._network} {key.hex()}\n")
            return key
        try:
            text, network, secret = head.decode("ascii").rsplit(" ", 2)
            key = bytes.fromhex(secret)
            self._network = IPv4Network(network)
        except ValueError:
            text, key = "", b""
        if text != _HEAD or len(key) != 16:
            raise error("network_failed", "the file of a sandbox's names is broken, or none")
        self._end = len(head) + 1
        for line in rest.splitlines(keepends=True):
            if not self._take(line):
                os.ftruncate(self._descriptor, self._end)
                break
            self._end += len(line)
        return key

    def _take(self, line: bytes) -> bool:
        """Add what a line says; False for one that is not whole."""
        try:
            place, name = line.decode("ascii").split(" ")
            address = IPv4Address(place)
        except ValueError:
            return False
        if not name.endswith("\n") or not _sound(name := name[:-1]):
            return False
        if address not in self._network or address in self._names or name in self._addresses:
            return False
        self._names[address] = name
        self._addresses[name] = address
        return True


def _contents(descriptor: int) -> bytes:
    size = os.fstat(descriptor).st_size
    if size > _FILE_LIMIT:
        raise error("network_failed", "the file of a sandbox's names is larger than any")
    parts = []
    at = 0
    while at < size and (part := os.pread(descriptor, size - at, at)):
        parts.append(part)
        at += len(part)
    return b"".join(parts)


def _sound(name: str) -> bool:
    """Whether a name can stand in a line: printable ASCII without spaces."""
    return (
        0 < len(name) <= NAME_LENGTH and name.isascii() and name.isprintable() and " " not in name
    )

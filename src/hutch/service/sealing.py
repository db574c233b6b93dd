"""Streams under a key: encrypted in chunks of which none can be changed, moved, added or left out.

A header says how the key follows from the secret (scrypt) and proves that the secret is the right
one; after it come chunks under AES-256-GCM, each bound to the header, to its place, and to whether
it is the last one (the STREAM construction). What a file says of itself is bounded before it is
believed. It must not know what is in a stream, nor where secrets come from.
"""

import base64
import binascii
import hashlib
import hmac
import io
import os
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import BinaryIO, Final, cast

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from hutch.errors import HutchError, error

MAGIC: Final = b"hutch-sealed\n"
FORMAT: Final = 1

SECRET_MIN: Final = 8
SECRET_MAX: Final = 4096

_FIELDS: Final = struct.Struct(">13sBBBBB16s7s16s")
"""Magic, format; log2 of scrypt's n, r, p; log2 of a chunk; salt, nonce's prefix, proof."""

_DIGEST: Final = hashlib.sha256().digest_size
HEAD: Final = _FIELDS.size + _DIGEST
"""Bytes of the header: its fields and their SHA-256, which tells damage from a wrong key."""

_TAG: Final = 16
_NONCE: Final = struct.Struct(">7sI?")
_KEY: Final = 32
_PROOF: Final = 16
_CHUNKS_MAX: Final = 1 << 32
_CHUNK_LOGS: Final = range(4, 25)
_MEMORY_MAX: Final = 256 << 20
_WORK_MAX: Final = 1 << 22
"""Of n * r * p: about ten seconds of a slow CPU."""


class Key:
    """A secret of the user's, which is never shown: not in logs, messages or tracebacks."""

    __slots__ = ("_secret", "optional")

    def __init__(self, secret: bytes, *, optional: bool = False) -> None:
        """Take a secret of 8 to 4096 bytes. Raises bad_request for others.

        One that is `optional` was not given for this: it may be of no use.
        """
        if not SECRET_MIN <= len(secret) <= SECRET_MAX:
            raise error(
                "bad_request",
                f"a key has {SECRET_MIN} to {SECRET_MAX} bytes",
                hint="make one with `openssl rand -base64 32`",
            )
        self._secret = secret
        self.optional = optional

    @classmethod
    def from_text(cls, text: str, *, optional: bool = False) -> "Key":
        """Return the key that is given in base64. Raises bad_request."""
        try:
            secret = base64.b64decode(text, validate=True)
        except (binascii.Error, ValueError):
            secret = None
        if secret is None:  # outside of the handler: what was given is in no traceback
            raise error("bad_request", "a key is given in base64")
        return cls(secret, optional=optional)

    def __repr__(self) -> str:
        return "Key(...)"

    def derive(self, work: "Work", salt: bytes) -> tuple[bytes, bytes]:
        """Return the key of a stream, and the proof of it that is no secret. Blocking: slow."""
        kdf = Scrypt(salt=salt, length=_KEY + _PROOF, n=1 << work.log_n, r=work.r, p=work.p)
        derived = kdf.derive(self._secret)
        return derived[:_KEY], derived[_KEY:]


@dataclass(frozen=True, slots=True)
class Work:
    """What it takes to derive a key: scrypt's parameters; `log_n` is the logarithm of n."""

    log_n: int = 16
    r: int = 8
    p: int = 1

    def bearable(self) -> bool:
        """Tell whether a file may ask for it."""
        if not (0 < self.log_n < 32 and self.r and self.p):
            return False
        if self.log_n >= 16 * self.r:
            return False  # scrypt is not defined for it
        total = self.r << self.log_n
        return 128 * total <= _MEMORY_MAX and total * self.p <= _WORK_MAX


DEFAULT: Final = Work()


def seal(
    pieces: Iterable[bytes], key: Key, *, work: Work = DEFAULT, log_chunk: int = 20
) -> Iterator[bytes]:
    """Yield the sealed stream of these pieces, chunk by chunk. Blocking.

    Raises bad_request for more than 2**32 chunks.
    """
    salt, prefix = os.urandom(16), os.urandom(7)
    secret, proof = key.derive(work, salt)
    fields = _FIELDS.pack(MAGIC, FORMAT, work.log_n, work.r, work.p, log_chunk, salt, prefix, proof)
    head = fields + hashlib.sha256(fields).digest()
    cipher, size, number, rest = AESGCM(secret), 1 << log_chunk, 0, bytearray()
    yield head
    for piece in pieces:
        rest += piece
        # Not the last chunk before there is more: that one is marked.
        while len(rest) > size:
            chunk = bytes(rest[:size])
            del rest[:size]
            yield cipher.encrypt(_nonce(prefix, number, last=False), chunk, head)
            number += 1
    yield cipher.encrypt(_nonce(prefix, number, last=True), bytes(rest), head)


def _nonce(prefix: bytes, number: int, *, last: bool) -> bytes:
    if number >= _CHUNKS_MAX:
        raise error("bad_request", "that is too much to be encrypted as one")
    return _NONCE.pack(prefix, number, last)


def is_sealed(file: BinaryIO) -> bool:
    """Tell whether a file begins as a sealed stream; leaves it at its beginning."""
    file.seek(0)
    found = file.read(len(MAGIC)) == MAGIC
    file.seek(0)
    return found


def unseal(file: BinaryIO, key: Key | None, what: str) -> BinaryIO:
    """Return what is in a sealed file, to be read and sought in; `what` names it in messages.

    Each chunk is checked when it is read, and only what was checked is given. Blocking.

    Raises wrong_key, snapshot_damaged (so do reads), snapshot_incompatible, OSError.
    """
    return cast("BinaryIO", io.BufferedReader(_Unsealed(file, key, what), 1 << 16))


class _Unsealed(io.RawIOBase):
    """See `unseal`. Holds one chunk at a time."""

    def __init__(self, file: BinaryIO, key: Key | None, what: str) -> None:
        super().__init__()
        self._file = file
        self._what = what
        total = file.seek(0, os.SEEK_END) - HEAD
        file.seek(0)
        self._head = file.read(HEAD)
        if len(self._head) < HEAD or not self._head.startswith(MAGIC):
            raise self._damaged("it is no encrypted file")
        fields, digest = self._head[: _FIELDS.size], self._head[_FIELDS.size :]
        _, form, log_n, r, p, log_chunk, salt, self._prefix, proof = _FIELDS.unpack(fields)
        if hashlib.sha256(fields).digest() != digest:
            raise self._damaged("its header was changed")
        work = Work(log_n, r, p)
        if form != FORMAT or not work.bearable() or log_chunk not in _CHUNK_LOGS:
            raise error(
                "snapshot_incompatible",
                f"{what} is encrypted in a way that is not known here",
                hint="use it with the version of Hutch that made it",
            )
        self._step = (1 << log_chunk) + _TAG
        self._count = -(-total // self._step)
        tail = total - (self._count - 1) * self._step
        if not 0 < self._count <= _CHUNKS_MAX or tail < _TAG:
            raise self._damaged("it ends too early")
        self._size = total - self._count * _TAG
        self._cipher = AESGCM(_opened(key, work, salt, proof, what))
        self._at = 0
        self._number, self._chunk = -1, b""
        # What is cut off shows at the end, and what is empty shows nowhere else.
        self._load(self._count - 1)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = max(0, offset + {0: 0, 1: self._at, 2: self._size}[whence])
        return self._at

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        if self._at >= self._size:
            return 0
        number, start = divmod(self._at, self._step - _TAG)
        self._load(number)
        part = self._chunk[start : start + len(buffer)]
        buffer[: len(part)] = part
        self._at += len(part)
        return len(part)

    def _load(self, number: int) -> None:
        if number == self._number:
            return
        self._file.seek(HEAD + number * self._step)
        data = self._file.read(self._step)
        nonce = _nonce(self._prefix, number, last=number == self._count - 1)
        try:
            self._chunk = self._cipher.decrypt(nonce, data, self._head)
        except (InvalidTag, ValueError) as cause:
            raise self._damaged("it is not whole, or was changed") from cause
        self._number = number

    def _damaged(self, why: str) -> HutchError:
        return error("snapshot_damaged", f"{self._what} cannot be decrypted: {why}")


def _opened(key: Key | None, work: Work, salt: bytes, proof: bytes, what: str) -> bytes:
    if key is None:
        raise no_key(f"{what} is encrypted")
    secret, found = key.derive(work, salt)
    if not hmac.compare_digest(found, proof):
        raise error(
            "wrong_key",
            f"{what} was encrypted with another key",
            hint="set HUTCH_SNAPSHOT_KEY to that one, or name its file with --key-file",
        )
    return secret


def check_useful(key: Key | None, what: str) -> None:
    """Refuse a key that was given for something in the clear. Raises bad_request.

    Whoever has encrypted a thing, and is handed another, would not see it else.
    """
    if key is not None and not key.optional:
        raise error(
            "bad_request",
            f"{what} is not encrypted, and a key was given for it",
            hint="if it never was, use it without --key-file",
        )


def no_key(why: str) -> HutchError:
    """Return the error for something that needs a key, for that reason, where none was given."""
    return error(
        "wrong_key",
        f"{why}, and no key was given",
        hint="set HUTCH_SNAPSHOT_KEY, or name a file with the key: --key-file",
    )

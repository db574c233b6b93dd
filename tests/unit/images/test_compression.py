"""Decompressed streams: right bytes, bounded memory, no silent ends."""

import gzip
import hashlib
import os
import resource
from pathlib import Path

import pytest
import zstandard

from hutch.errors import HutchError
from hutch.images.compression import Decompressed, bomb_limit
from tests.unit.images.making import compress

BODY = os.urandom(300_000) + bytes(300_000)


def write(tmp_path: Path, body: bytes) -> Path:
    path = tmp_path / "file"
    path.write_bytes(body)
    return path


@pytest.mark.parametrize("how", ["", "gzip", "zstd"])
@pytest.mark.parametrize("step", [1000, 512, 1 << 20])
def test_reads_give_all_bytes(tmp_path: Path, how: str, step: int) -> None:
    path = write(tmp_path, compress(BODY, how))
    advanced: list[int] = []
    with Decompressed(path, limit=1 << 30, hashed=True, advance=advanced.append) as stream:
        pieces = []
        while piece := stream.read(step):
            assert len(piece) == step or not stream.read(1)
            pieces.append(piece)
        assert b"".join(pieces) == BODY
        assert stream.consumed == stream.total == len(BODY)
        assert stream.digest == hashlib.sha256(BODY).hexdigest()
    assert sum(advanced) == path.stat().st_size


@pytest.mark.parametrize("how", ["gzip", "zstd"])
def test_several_members_count_as_one(tmp_path: Path, how: str) -> None:
    path = write(tmp_path, compress(BODY, how) + compress(b"more", how))
    with Decompressed(path, limit=1 << 30) as stream:
        assert stream.read(1 << 30) == BODY + b"more"


def test_zeros_after_gzip_are_padding_and_other_bytes_are_not(tmp_path: Path) -> None:
    path = write(tmp_path, gzip.compress(b"x") + bytes(5000))
    with Decompressed(path, limit=1 << 30) as stream:
        assert stream.read(10) == b"x"
    path.write_bytes(gzip.compress(b"x") + b"junk")
    with Decompressed(path, limit=1 << 30) as stream, pytest.raises(HutchError):
        stream.read(10)


@pytest.mark.parametrize("how", ["gzip", "zstd"])
def test_damage_is_an_error_or_shows_in_the_digest(tmp_path: Path, how: str) -> None:
    body = bytearray(compress(BODY, how))
    body[len(body) // 2 : len(body) // 2 + 50] = bytes(50)
    with Decompressed(write(tmp_path, bytes(body)), limit=1 << 30, hashed=True) as stream:
        try:
            stream.drain()
        except HutchError as cause:
            code = cause.code
        else:  # zstd frames may come without a checksum
            code = "bad_image" if how == "zstd" else ""
        assert code == "bad_image"
        assert stream.digest != hashlib.sha256(BODY).hexdigest()


def test_truncated_gzip_is_an_error(tmp_path: Path) -> None:
    body = compress(BODY, "gzip")
    with Decompressed(write(tmp_path, body[:-9]), limit=1 << 30) as stream:
        with pytest.raises(HutchError, match="middle"):
            stream.drain()


@pytest.mark.parametrize("how", ["gzip", "zstd"])
def test_a_bomb_takes_little_memory(tmp_path: Path, how: str) -> None:
    if how == "gzip":
        part = gzip.compress(bytes(64 << 20), 9)
        body = part * 8
    else:
        body = zstandard.ZstdCompressor(level=19).compress(bytes(512 << 20))
    path = write(tmp_path, body)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with Decompressed(path, limit=256 << 20) as stream, pytest.raises(HutchError, match="bomb"):
        stream.drain()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 << 10


def test_the_limit_goes_with_ratio_and_space() -> None:
    tib = 1 << 40
    assert bomb_limit(1, tib) == 1 << 30
    assert bomb_limit(1 << 30, tib) == 400 << 30
    assert bomb_limit(1 << 30, 50 << 30) == 50 << 30

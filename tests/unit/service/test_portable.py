"""The file that a snapshot travels in: all of it comes back, and nothing else is believed."""

import hashlib
import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hutch.errors import HutchError
from hutch.service import portable
from hutch.service.portable import Member, Reader, member_of, write


def pack(files: Sequence[Path], manifest: Mapping[str, Any] | None = None) -> bytes:
    return b"".join(write(manifest or {}, [(member_of(path.name, path), path) for path in files]))


def unpack(data: bytes, target: Path) -> dict[str, Any]:
    reader = Reader(io.BytesIO(data))
    target.mkdir(exist_ok=True)
    for number, member in enumerate(reader.members):
        path = target / f"{number}"
        path.unlink(missing_ok=True)
        reader.extract(member, path, lambda: None)
    reader.finish()
    return dict(reader.manifest)


def forged(*parts: bytes) -> bytes:
    """Return a file that is sealed as it should be, with anything in it."""
    body = portable._HEAD.pack(portable.MAGIC, portable.FORMAT)
    body += zstandard.ZstdCompressor().compress(b"".join(parts))
    return body + hashlib.sha256(body).digest()


def manifest_of(text: bytes) -> bytes:
    return portable._LENGTH.pack(len(text)) + text


def member(size: int, name: str = "a") -> bytes:
    return manifest_of(
        b'{"members": [{"name": "%s", "size": %d, "digest": "x"}]}' % (name.encode(), size)
    )


def piece(offset: int, data: bytes) -> bytes:
    return portable._PIECE.pack(offset, len(data)) + data


def refused(data: bytes, target: Path) -> HutchError:
    with pytest.raises(HutchError) as caught:
        unpack(data, target)
    assert caught.value.code in ("snapshot_damaged", "snapshot_incompatible")
    return caught.value


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    plain, sparse, empty = (tmp_path / name for name in ("plain", "sparse", "empty"))
    plain.write_bytes(os.urandom(3 << 20) + b"end")
    with sparse.open("wb") as file:
        file.truncate(1 << 30)
        file.seek(900 << 20)
        file.write(b"far away")
    empty.write_bytes(b"")
    return [plain, sparse, empty]


def test_all_of_it_comes_back(files: list[Path], tmp_path: Path) -> None:
    data = pack(files, {"any": ["thing"]})
    assert len(data) < 4 << 20
    assert unpack(data, tmp_path / "out")["any"] == ["thing"]
    for number, path in enumerate(files):
        found = tmp_path / "out" / str(number)
        assert member_of(path.name, found) == member_of(path.name, path)
        assert found.stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "out/1").stat().st_blocks * 512 < 4 << 20


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(at=st.integers(0, 1 << 20), bit=st.integers(0, 7))
def test_a_flipped_bit_is_found_wherever_it_is(at: int, bit: int, tmp_path: Path) -> None:
    path = tmp_path / "small"
    path.write_bytes(b"some content " * 20)
    data = bytearray(pack([path]))
    data[at % len(data)] ^= 1 << bit
    refused(bytes(data), tmp_path / "out")


def test_a_part_of_it_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "small"
    path.write_bytes(b"some content")
    data = pack([path])
    for length in range(len(data)):
        refused(data[:length], tmp_path / "out")
    refused(data + b"more", tmp_path / "out")


def test_another_format_is_told(tmp_path: Path) -> None:
    data = portable._HEAD.pack(portable.MAGIC, portable.FORMAT + 1) + bytes(64)
    assert refused(data, tmp_path / "out").code == "snapshot_incompatible"


@pytest.mark.parametrize(
    "parts",
    [
        (b"",),
        (b"\xff\xff\xff\xff",),
        (manifest_of(b"not json"),),
        (manifest_of(b"[]"),),
        (manifest_of(b"[" * 100_000),),
        (manifest_of(b'{"members": [{"name": "a", "size": "1", "digest": ""}]}'),),
        (manifest_of(b'{"members": [{"name": "a", "size": -1, "digest": ""}]}'),),
        (member(5), piece(0, b"12345")),
        (member(5), piece(0, b"123456"), piece(5, b"")),
        (member(5), piece(4, b"5"), piece(0, b"1234"), piece(5, b"")),
        (member(5), piece(0, b"12345"), piece(5, b"")),
        (member(5), piece(3, b"")),
        (member(1 << 40), portable._PIECE.pack(0, 1 << 30)),
    ],
)
def test_what_is_not_as_declared_is_refused(parts: tuple[bytes, ...], tmp_path: Path) -> None:
    refused(forged(*parts), tmp_path / "out")


def test_members_are_named_once_and_end_it(files: list[Path], tmp_path: Path) -> None:
    described = member_of("plain", files[0])
    refused(b"".join(write({}, [(described, files[0])] * 2)), tmp_path / "twice")
    reader = Reader(io.BytesIO(pack(files[:1])))
    with pytest.raises(HutchError, match="goes on"):
        reader.finish()


def test_a_file_that_changed_while_it_was_written_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "small"
    path.write_bytes(b"now")
    described = Member("small", 3, "sha256:of-something-else")
    refused(b"".join(write({}, [(described, path)])), tmp_path / "out")


def test_it_stops_where_there_is_no_room(files: list[Path], tmp_path: Path) -> None:
    def room() -> None:
        raise OSError(28, "full")

    reader = Reader(io.BytesIO(pack(files)))
    with pytest.raises(OSError, match="full"):
        reader.extract(reader.members[0], tmp_path / "out", room)


def test_no_more_is_written_than_was_said(files: list[Path], tmp_path: Path) -> None:
    path = files[0]
    for most in (path.stat().st_size, path.stat().st_size - 1):
        reader = Reader(io.BytesIO(pack([path])))
        with open(tmp_path / f"copy-{most}", "w+b") as copy:
            if most == path.stat().st_size:
                reader.fill(reader.members[0], copy.fileno(), lambda: None, most=most)
                continue
            with pytest.raises(HutchError) as caught:
                reader.fill(reader.members[0], copy.fileno(), lambda: None, most=most)
            assert caught.value.code == "snapshot_damaged"
            assert os.fstat(copy.fileno()).st_blocks * 512 <= most + 4096


def test_members_may_be_files_without_names(files: list[Path]) -> None:
    plain, sparse, _ = files
    with plain.open("rb") as one, sparse.open("rb") as other:
        named = [(member_of(path.name, path), path) for path in (plain, sparse)]
        opened = [
            (member_of(path.name, file.fileno()), file.fileno())
            for path, file in ((plain, one), (sparse, other))
        ]
        assert [member for member, _ in opened] == [member for member, _ in named]
        data = b"".join(write({}, opened))
    assert data == b"".join(write({}, named))
    reader = Reader(io.BytesIO(data))
    reader.skip(reader.members[0])
    fd = os.memfd_create("test")
    try:
        reader.fill(reader.members[1], fd, lambda: None)
        assert os.fstat(fd).st_size == 1 << 30
        assert os.fstat(fd).st_blocks < 1 << 10
        assert os.pread(fd, 8, 900 << 20) == b"far away"
    finally:
        os.close(fd)
    reader.finish()


@pytest.mark.parametrize(("authentic", "times"), [(False, 2), (True, 1)])
def test_what_is_decrypted_is_read_once(tmp_path: Path, authentic: bool, times: int) -> None:
    path = tmp_path / "file"
    path.write_bytes(os.urandom(9 << 20))
    data, taken = pack([path]), 0

    class Counted(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            nonlocal taken
            found = super().read(size)
            taken += len(found)
            return found

        def readinto(self, buffer: Any) -> int:
            nonlocal taken
            count = super().readinto(buffer)
            taken += count
            return count

    reader = Reader(Counted(data), authentic=authentic)
    reader.extract(reader.members[0], tmp_path / "copy", lambda: None)
    reader.finish()
    assert (tmp_path / "copy").read_bytes() == path.read_bytes()
    assert round(taken / len(data)) == times


@pytest.mark.parametrize("data", [b"", b"x" * 100, portable.MAGIC + b"\xff" + bytes(99)])
def test_what_is_authentic_and_no_snapshot(data: bytes) -> None:
    with pytest.raises(HutchError):
        Reader(io.BytesIO(data), authentic=True)

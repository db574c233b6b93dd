"""Tar archives, against the standard library's reader and writer, and against damage."""

import contextlib
import io
import tarfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hutch.errors import HutchError, ImageError
from hutch.images import tar
from hutch.images.compression import Decompressed
from tests.unit.images.making import entry


def read(tmp_path: Path, body: bytes) -> list[tar.Member]:
    path = tmp_path / "archive"
    path.write_bytes(body)
    with Decompressed(path, limit=1 << 30) as stream:
        return list(tar.read_members(stream))


def archive(*entries: tuple[tarfile.TarInfo, bytes], format: int = tarfile.PAX_FORMAT) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=format) as target:
        for info, data in entries:
            target.addfile(info, io.BytesIO(data))
    return out.getvalue()


@pytest.mark.parametrize("format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
def test_all_formats_are_read(tmp_path: Path, format: int) -> None:
    long = "d" * 90 + "/" + "n" * 90
    found = read(
        tmp_path,
        archive(
            entry(long, data=b"content" * 100, uid=70_000, mtime=1_700_000_000),
            entry(
                "link", "symlink", linkname="t" * (90 if format == tarfile.USTAR_FORMAT else 300)
            ),
            format=format,
        ),
    )
    assert found[0].name == long.encode()
    assert (found[0].size, found[0].uid, found[0].mtime) == (700, 70_000, 1_700_000_000)
    assert len(found[1].link) in (90, 300)


def test_base_256_numbers(tmp_path: Path) -> None:
    found = read(
        tmp_path, archive(entry("a", uid=3_000_000_000, mtime=-5), format=tarfile.GNU_FORMAT)
    )
    assert found[0].uid == 3_000_000_000
    assert found[0].mtime == 0


@pytest.mark.parametrize(
    "member",
    [
        tar.Member(b"plain", tar.FILE, 0o644, 1, 2, 3),
        tar.Member(b"n" * 300 + b"\xff\n", tar.DIRECTORY, 0o1777),
        tar.Member(b"l", tar.SYMLINK, 0o777, link=b"\xfe" * 300),
        tar.Member(b"c", tar.CHAR, 0o600, major=4095, minor=1048575),
        tar.Member(b"i", tar.FILE, uid=0o7777777 + 1, gid=(1 << 32) - 1, mtime=(1 << 32) - 1),
        tar.Member(b"x", tar.FILE, xattrs={b"user.a": bytes(range(256)), b"user.b": b""}),
        tar.Member(b"y", tar.FILE, xattrs={b"user.c": b"z" * 90, b"user.d": b"z" * 980}),
    ],
)
def test_what_is_written_is_read_back(tmp_path: Path, member: tar.Member) -> None:
    assert read(tmp_path, tar.header(member) + bytes(1024)) == [member]


def test_large_files_have_their_size(tmp_path: Path) -> None:
    header = tar.header(tar.Member(b"big", tar.FILE, size=10 << 30))
    with tarfile.open(fileobj=io.BytesIO(header + bytes(1024)), ignore_zeros=True) as found:
        assert found.next().size == 10 << 30  # type: ignore[union-attr]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200)
@given(at=st.integers(0, 3000), value=st.integers(0, 255))
def test_a_changed_byte_is_refused_or_harmless(tmp_path: Path, at: int, value: int) -> None:
    body = bytearray(archive(entry("n" * 120, data=b"1" * 100), entry("b", data=b"2")))
    body[at % len(body)] = value
    with contextlib.suppress(ImageError):
        read(tmp_path, bytes(body))


@pytest.mark.parametrize("cut", [1, 100, 512, 600, 1024, 1100, 1500])
def test_a_cut_archive_is_refused(tmp_path: Path, cut: int) -> None:
    whole = archive(entry("n" * 120, data=b"1" * 600), entry("b", data=b"2" * 600))
    with pytest.raises(HutchError):
        read(tmp_path, whole[:cut])


def pax(records: bytes) -> bytes:
    extension = tar.Member(b"x", b"x", size=len(records))
    return tar._ustar(extension) + records + tar.padding(len(records))


@pytest.mark.parametrize(
    "body",
    [
        pax(b"nonsense"),
        pax(b"99 path=x\n"),
        pax(b"8 path=x"),
        pax(b"0 path=x\n"),
        pax(b"-5 path=x\n"),
        pax(b"99999999999999999999999999 path=x\n"),
        pax(b"12 size=-10\n") + tar.header(tar.Member(b"a", tar.FILE)),
        pax(b"14 uid=5000000000\n".replace(b"14", b"18")) + tar.header(tar.Member(b"a", tar.FILE)),
        pax(b"10 uid=xx\n") + tar.header(tar.Member(b"a", tar.FILE)),
        pax(b"22 GNU.sparse.major=1\n") + tar.header(tar.Member(b"a", tar.FILE)),
        pax(b"12 path=a\0b\n") + tar.header(tar.Member(b"a", tar.FILE)),
        pax(b"10 path=x\n"),
        tar._ustar(tar.Member(b"x", b"x", size=2 << 20)),
        tar._ustar(tar.Member(b"x", b"S")),
        tar._ustar(tar.Member(b"x", b"Z")),
        bytes(512) + b"x" * 512,
    ],
)
def test_malformed_archives(tmp_path: Path, body: bytes) -> None:
    with pytest.raises(HutchError) as caught:
        read(tmp_path, body + (bytes(1024) if body[:512] != bytes(512) else b""))
    assert caught.value.code == "bad_image"


def test_an_archive_may_end_without_its_end(tmp_path: Path) -> None:
    # As some tools write it; the layer's digest says that nothing is missing.
    assert len(read(tmp_path, tar.header(tar.Member(b"a", tar.FILE)))) == 1
    assert read(tmp_path, b"") == []

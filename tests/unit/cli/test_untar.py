"""The tar reader: honest archives of other writers, and everything that a hostile one may try."""

import contextlib
import io
import tarfile
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hutch.cli.untar import EntryType, TarReader
from hutch.errors import HutchError, ImageError


def archive(*members: tarfile.TarInfo, data: bytes = b"", form: int = tarfile.PAX_FORMAT) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form) as tar:
        for member in members:
            if member.isreg():
                member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return out.getvalue()


def member(name: str, kind: bytes = tarfile.REGTYPE, **fields: object) -> tarfile.TarInfo:
    made = tarfile.TarInfo(name)
    made.type = kind
    for key, value in fields.items():
        setattr(made, key, value)
    return made


def pieces(data: bytes, size: int) -> Iterator[bytes]:
    for at in range(0, len(data), size):
        yield data[at : at + size]


def drain(data: bytes, size: int = 700) -> list[tuple[bytes, bytes]]:
    reader = TarReader(pieces(data, size))
    return [(entry.name, b"".join(map(bytes, reader.data()))) for entry in reader]


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
@pytest.mark.parametrize("size", [1, 511, 512, 100_000])
def test_honest_archives(form: int, size: int) -> None:
    long = "d" * 90 + "/" + "f" * 60
    data = archive(member(long), member("short"), data=b"x" * 1000, form=form)
    assert drain(data, size) == [(long.encode(), b"x" * 1000), (b"short", b"x" * 1000)]


def test_fields() -> None:
    made = member("a/é", mode=0o4755, uid=1 << 30, gid=7, mtime=12.5)
    entry = next(iter(TarReader([archive(made, data=b"12")])))
    assert (entry.name, entry.mode, entry.uid, entry.gid) == ("a/é".encode(), 0o4755, 1 << 30, 7)
    assert (entry.size, entry.mtime_ns, entry.type) == (2, 12_500_000_000, EntryType.FILE)
    link = member("l", tarfile.SYMTYPE, linkname="../x" * 40)
    assert next(iter(TarReader([archive(link)]))).target == b"../x" * 40


def test_data_that_is_not_taken_is_skipped() -> None:
    names = [e.name for e in TarReader([archive(member("a"), member("b"), data=b"z" * 5000)])]
    assert names == [b"a", b"b"]


def header(**changes: bytes) -> bytes:
    block = bytearray(archive(member("x"))[:512])
    places = {"size": 124, "name": 0, "type": 156, "uid": 108}
    for key, value in changes.items():
        block[places[key] : places[key] + len(value)] = value
    total = sum(block[:148]) + 256 + sum(block[156:])
    block[148:156] = b"%06o\0 " % total
    return bytes(block)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"x" * 511,
        b"x" * 512,
        header(size=b"00000001000\0"),  # its data is missing
        header(size=b"\xff" * 12),
        header(size=b"99999999999\0"),
        header(type=b"x", size=b"77777777777\0"),  # a pax header of 8 GiB
        header(type=b"L", size=b"00010000000\0"),
        header(type=b"S"),
        header(uid=b"notanum\0"),
        header(type=b"x", size=b"00000000006\0") + b"999 a=b\n".ljust(512, b"\0"),
        header(type=b"x", size=b"00000000006\0") + b"0 a=b\n".ljust(512, b"\0"),
    ],
)
def test_broken_archives_are_refused(data: bytes) -> None:
    with pytest.raises(HutchError) as caught:
        drain(data)
    assert caught.value.code == "bad_image"


@pytest.mark.parametrize(
    "record", ["size=nan", "size=1e400", "uid=x", "mtime=inf", "path=" + "p" * 5000]
)
def test_hostile_pax_records(record: str) -> None:
    text = f" {record}\n"
    length = len(text) + len(str(len(text) + 4))
    body = f"{length}{text}".encode()
    body = f"{len(body)}{text}".encode()
    data = header(type=b"x", size=b"%011o\0" % len(body)) + body.ljust(
        -(-len(body) // 512) * 512, b"\0"
    )
    with pytest.raises(HutchError):
        drain(data + header())


def test_memory_stays_bounded_by_one_header() -> None:
    def endless() -> Iterator[bytes]:
        yield header(type=b"x", size=b"00004000000\0")  # exactly the limit: 1 MiB
        while True:
            yield bytes(1 << 16)

    with pytest.raises(HutchError):
        next(iter(TarReader(endless())))


@given(st.binary(max_size=3000), st.integers(0, 600))
def test_never_anything_but_our_errors(noise: bytes, at: int) -> None:
    whole = bytearray(archive(member("a"), member("b/c"), data=b"data"))
    whole[at : at + len(noise)] = noise
    with contextlib.suppress(ImageError):
        drain(bytes(whole))

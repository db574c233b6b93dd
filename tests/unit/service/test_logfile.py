"""Log files: binary-exact, capped, and exact again after a kill at any byte."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hutch.service import logfile
from hutch.service.logfile import (
    PIECE,
    LogReader,
    LogWriter,
    copy_logs,
    log_files,
    put_back_logs,
    tail_lines,
)

Entry = tuple[int, int, bytes, int]


def writer(directory: Path, *, size: int = 1 << 20, files: int = 2) -> LogWriter:
    made = LogWriter(directory, "main", size=size, files=files)
    made.open()
    return made


def read(reader: LogReader) -> list[Entry]:
    """Return (channel, offset, data, missing) for all that is there."""
    found: list[Entry] = []
    while batch := reader.batch():
        found += [(r.channel, offset, r.data, r.missing) for r, offset in batch]
    return found


def everything(directory: Path) -> list[Entry]:
    reader = LogReader(directory, "main")
    try:
        return read(reader)
    finally:
        reader.close()


def test_bytes_come_back(tmp_path: Path) -> None:
    log = writer(tmp_path)
    log.append(1, 0, b"a\0\xff", 5)
    log.append(2, 0, b"err", 6)
    log.append(1, 3, b"b" * (PIECE + 1), 7)
    log.close()
    assert everything(tmp_path) == [
        (1, 0, b"a\0\xff", 0),
        (2, 0, b"err", 0),
        (1, 3, b"b" * PIECE, 0),
        (1, 3 + PIECE, b"b", 0),
    ]


def test_what_is_on_record_is_not_written_again(tmp_path: Path) -> None:
    log = writer(tmp_path)
    log.append(1, 0, b"abc", 1)
    log.close()
    log = writer(tmp_path)
    assert log.ends == {1: 3, 2: 0}
    log.append(1, 1, b"bcde", 2)
    log.append(1, 0, b"ab", 3)
    log.close()
    assert everything(tmp_path) == [(1, 0, b"abc", 0), (1, 3, b"de", 0)]


def test_a_new_run_begins_at_zero(tmp_path: Path) -> None:
    log = writer(tmp_path)
    log.append(1, 0, b"first", 1)
    log.begin_run()
    assert log.ends == {1: 0, 2: 0}
    log.append(1, 0, b"second", 2)
    log.close()
    assert [data for _, _, data, _ in everything(tmp_path)] == [b"first", b"second"]
    reader = LogReader(tmp_path, "main")
    reader.seek_offset({1: 2, 2: 0})
    assert read(reader) == [(1, 2, b"cond", 0)]
    reader.close()


@given(cut=st.integers(0, 200))
def test_a_kill_at_any_byte(tmp_path_factory: pytest.TempPathFactory, cut: int) -> None:
    directory = tmp_path_factory.mktemp("log")
    log = writer(directory)
    for number in range(5):
        log.append(1, number * 10, b"0123456789", number)
    log.close()
    (_, path) = log_files(directory, "main")[0]
    os.truncate(path, max(0, path.stat().st_size - cut))
    log = writer(directory)
    end = log.ends[1]
    assert end % 10 == 0
    log.append(1, end, b"0123456789" * 5, 9)
    log.close()
    data = b"".join(entry[2] for entry in everything(directory))
    assert data == b"0123456789" * (end // 10 + 5)


def test_a_hole_shows(tmp_path: Path) -> None:
    log = writer(tmp_path)
    log.append(1, 0, b"abc", 1)
    log.append(1, 10, b"def", 2)
    log.close()
    assert everything(tmp_path) == [(1, 0, b"abc", 0), (1, 3, b"", 7), (1, 10, b"def", 0)]


def test_size_is_capped(tmp_path: Path) -> None:
    log = writer(tmp_path, size=2 * PIECE, files=2)
    for number in range(50):
        log.append(1, number * PIECE, b"x" * PIECE, number)
    log.close()
    files = log_files(tmp_path, "main")
    assert len(files) == 3
    assert sum(path.stat().st_size for _, path in files) <= 3 * (2 * PIECE + 100)
    entries = everything(tmp_path)
    assert entries[-1][1] == 49 * PIECE
    assert not any(missing for *_, missing in entries)


def test_a_reader_survives_rotation(tmp_path: Path) -> None:
    log = writer(tmp_path, size=2 * PIECE, files=1)
    reader = LogReader(tmp_path, "main")
    log.append(1, 0, b"a" * 100, 1)
    assert read(reader) == [(1, 0, b"a" * 100, 0)]
    for number in range(3):
        log.append(1, 100 + number * PIECE, b"b" * PIECE, 2)
        assert read(reader) == [(1, 100 + number * PIECE, b"b" * PIECE, 0)]
    # Now it falls behind by more than is kept, and is told how much it missed.
    for number in range(3, 20):
        log.append(1, 100 + number * PIECE, b"c" * PIECE, 3)
    found = read(reader)
    assert found[0][:2] == (1, 100 + 3 * PIECE)
    assert found[0][3] > 0
    assert found[0][3] + sum(len(data) for _, _, data, _ in found) == 17 * PIECE
    reader.close()
    log.close()


def test_reading_from_an_offset(tmp_path: Path) -> None:
    log = writer(tmp_path, size=2 * PIECE, files=3)
    for number in range(5):
        log.append(1, number * PIECE, b"x" * PIECE, number)
    log.close()
    reader = LogReader(tmp_path, "main")
    reader.seek_offset({1: PIECE + 5, 2: 0})
    found = read(reader)
    assert found[0][:2] == (1, PIECE + 5)
    assert sum(len(data) for _, _, data, _ in found) == 4 * PIECE - 5
    assert not any(missing for *_, missing in found)
    reader.close()


@pytest.mark.parametrize(
    ("lines", "expected"),
    [(0, b""), (1, b"four"), (2, b"three\nfour"), (4, b"one\ntwo\nthree\nfour"), (9, None)],
)
def test_tail(tmp_path: Path, lines: int, expected: bytes | None) -> None:
    log = writer(tmp_path)
    offset = 0
    for part in (b"one\ntw", b"o\nthree\n", b"four"):
        log.append(1, offset, part, 1)
        offset += len(part)
    log.close()
    reader = LogReader(tmp_path, "main")
    reader.seek_tail(lines)
    data = b"".join(entry[2] for entry in read(reader))
    assert data == (b"one\ntwo\nthree\nfour" if expected is None else expected)
    reader.close()


def test_tail_counts_the_newline_at_the_end_once(tmp_path: Path) -> None:
    log = writer(tmp_path)
    log.append(1, 0, b"one\ntwo\n", 1)
    log.close()
    reader = LogReader(tmp_path, "main")
    reader.seek_tail(1)
    assert [entry[2] for entry in read(reader)] == [b"two\n"]
    reader.close()


def test_a_disk_that_is_full_for_a_while(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = writer(tmp_path)
    log.append(1, 0, b"abc", 1)
    real = os.pwrite

    def short(fd: int, data: bytes, offset: int) -> int:
        real(fd, data[:10], offset)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(logfile.os, "pwrite", short)
    log.append(1, 3, b"def", 2)
    monkeypatch.undo()
    log.append(1, 6, b"ghi", 3)
    log.close()
    assert everything(tmp_path) == [(1, 0, b"abc", 0), (1, 3, b"", 3), (1, 6, b"ghi", 0)]


def test_foreign_files_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "main.000007.log").write_bytes(b"not ours")
    log = writer(tmp_path)
    log.append(1, 0, b"x", 1)
    log.close()
    assert everything(tmp_path) == [(1, 0, b"x", 0)]
    logfile.remove_log(tmp_path, "main")
    assert log_files(tmp_path, "main") == []


@pytest.mark.parametrize(
    ("data", "lines", "expected"),
    [
        (b"a\nb\n", 1, b"b\n"),
        (b"a\nb", 1, b"b"),
        (b"a\nb\n", 5, b"a\nb\n"),
        (b"a\nb\n", 0, b""),
        (b"", 1, b""),
    ],
)
def test_tail_lines(data: bytes, lines: int, expected: bytes) -> None:
    assert tail_lines(data, lines) == expected


def test_a_kill_while_a_file_is_begun(tmp_path: Path) -> None:
    log = writer(tmp_path)
    log.append(1, 0, b"abc", 1)
    log.close()
    (tmp_path / "main.000002.log").write_bytes(b"HUTCH")
    log = writer(tmp_path)
    assert log.ends == {1: 3, 2: 0}
    log.append(1, 3, b"def", 2)
    log.close()
    assert [entry[2] for entry in everything(tmp_path)] == [b"abc", b"def"]


def test_a_program_that_was_put_back_goes_on_where_it_was(tmp_path: Path) -> None:
    live, saved = tmp_path / "live", tmp_path / "saved"
    log = writer(live)
    log.append(1, 0, b"abc", 1)
    copy_logs(live, saved)
    log.append(1, 3, b"undone", 2)
    log.append(2, 0, b"!", 2)
    log.close()
    for _ in range(2):  # what is where it was already is left as it is
        put_back_logs(saved, live, size=1 << 20, files=2)
    log = writer(live)
    assert log.ends == {1: 3, 2: 0}
    log.append(1, 0, b"abcDE", 3)
    log.close()
    kept = [(1, 0, b"abc", 0), (1, 3, b"undone", 0), (2, 0, b"!", 0)]
    assert everything(live) == [*kept, (1, 3, b"DE", 0)]
    reader = LogReader(live, "main")
    reader.seek_offset({1: 3, 2: 0})
    assert read(reader) == [(1, 3, b"DE", 0)]
    reader.close()
    assert len(log_files(live, "main")) == 1


def test_a_log_that_is_gone_comes_back(tmp_path: Path) -> None:
    live, saved = tmp_path / "live", tmp_path / "saved"
    log = writer(live)
    log.append(1, 0, b"abc", 1)
    log.close()
    copy_logs(live, saved)
    logfile.remove_log(live, "main")
    put_back_logs(saved, live, size=1 << 20, files=2)
    put_back_logs(tmp_path / "none", live, size=1 << 20, files=2)
    assert everything(live) == [(1, 0, b"abc", 0)]

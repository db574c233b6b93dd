import os
from dataclasses import replace
from pathlib import Path

import pytest

from hutch.api.runtime import (
    SOCKET_PATH_LIMIT,
    DaemonRecord,
    LifeLock,
    is_locked,
    make_private,
    read_record,
    socket_directory,
)
from hutch.errors import DaemonError, InvalidInput
from hutch.settings import load_settings

RECORD = DaemonRecord(1, "0.1.0", "/run/x.sock")


def test_each_home_has_its_directory(short_tmp: Path) -> None:
    settings = load_settings()
    other = replace(settings, home=short_tmp / "other")
    assert socket_directory(settings) == socket_directory(settings)
    assert socket_directory(settings) != socket_directory(other)
    assert socket_directory(settings).parent == settings.runtime_dir


def test_the_limit_is_exact(short_tmp: Path) -> None:
    fixed = len(os.fsencode(socket_directory(load_settings()) / "api.sock"))
    fixed -= len(os.fsencode(load_settings().runtime_dir))
    room = SOCKET_PATH_LIMIT - fixed
    fits = Path("/" + "a" * (room - 1))
    socket_directory(replace(load_settings(), runtime_dir=fits))
    with pytest.raises(InvalidInput, match="too long"):
        socket_directory(replace(load_settings(), runtime_dir=Path(f"{fits}a")))


def test_a_private_directory(short_tmp: Path) -> None:
    path = short_tmp / "base/private"
    make_private(path)
    make_private(path)
    assert path.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("mode", [0o750, 0o701, 0o777])
def test_a_directory_that_others_may_enter(short_tmp: Path, mode: int) -> None:
    path = short_tmp / "open"
    path.mkdir()
    path.chmod(mode)
    with pytest.raises(DaemonError, match="open to other users"):
        make_private(path)


def test_a_link_is_no_directory(short_tmp: Path) -> None:
    (short_tmp / "real").mkdir(mode=0o700)
    (short_tmp / "link").symlink_to(short_tmp / "real")
    with pytest.raises(DaemonError):
        make_private(short_tmp / "link")


def test_a_base_in_which_others_can_write(short_tmp: Path) -> None:
    base = short_tmp / "base"
    base.mkdir()
    base.chmod(0o777)
    with pytest.raises(DaemonError, match="can replace"):
        make_private(base / "private")
    base.chmod(0o1777)  # as /tmp: nobody can rename what is ours
    make_private(base / "private")


def test_a_lock_is_held_once(short_tmp: Path) -> None:
    path = short_tmp / "lock"
    first, second = LifeLock(path), LifeLock(path)
    assert not is_locked(path)
    assert first.acquire()
    assert is_locked(path)
    assert not second.acquire()
    first.publish(RECORD)
    assert read_record(path) == RECORD
    first.clear()
    assert read_record(path) is None
    first.release()
    assert second.acquire()
    second.release()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"pid": 1}', '{"pid": "x", "version": 1}'])
def test_records_that_are_none(short_tmp: Path, text: str) -> None:
    path = short_tmp / "lock"
    path.write_text(text)
    assert read_record(path) is None


def test_a_record_behind_a_link_is_not_read(short_tmp: Path) -> None:
    (short_tmp / "real").write_text("{}")
    (short_tmp / "lock").symlink_to(short_tmp / "real")
    with pytest.raises(DaemonError, match="cannot be read"):
        read_record(short_tmp / "lock")

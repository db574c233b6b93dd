"""Sealed streams: all of them comes back, only with the key, and nothing else comes back."""

import base64
import hashlib
import io
import os
import traceback

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hutch.errors import HutchError
from hutch.service import sealing
from hutch.service.sealing import HEAD, Key, Work, is_sealed, no_key, seal, unseal

KEY = Key(b"correct horse battery")
CHEAP = Work(log_n=1, r=1, p=1)
CHUNK = 16
STEP = CHUNK + 16

quick = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def sealed(data: bytes, piece: int = 7) -> bytes:
    pieces = (data[at : at + piece] for at in range(0, len(data), piece))
    return b"".join(seal(pieces, KEY, work=CHEAP, log_chunk=4))


def unsealed(data: bytes, key: Key | None = KEY) -> bytes:
    return unseal(io.BytesIO(data), key, "it").read()


def refused(data: bytes, key: Key | None = KEY) -> str:
    with pytest.raises(HutchError) as caught:
        unsealed(data, key)
    return caught.value.code


@quick
@given(st.binary(max_size=100), st.integers(1, 40))
def test_all_of_it_comes_back(data: bytes, piece: int) -> None:
    stream = sealed(data, piece)
    assert unsealed(stream) == data
    assert len(stream) == HEAD + len(data) + 16 * max(1, -(-len(data) // CHUNK))


@quick
@given(st.integers(0, HEAD + 3 * STEP - 1), st.integers(1, 255))
def test_no_byte_can_be_changed(at: int, flip: int) -> None:
    stream = bytearray(sealed(os.urandom(3 * CHUNK)))
    stream[at] ^= flip
    assert refused(bytes(stream)) == "snapshot_damaged"


@quick
@given(st.integers(0, 3 * CHUNK), st.data())
def test_nothing_can_be_cut_off_or_added(size: int, data: st.DataObject) -> None:
    stream = sealed(os.urandom(size))
    cut = data.draw(st.integers(0, len(stream) - 1))
    assert refused(stream[:cut]) == "snapshot_damaged"
    more = data.draw(st.binary(min_size=1, max_size=2 * STEP))
    assert refused(stream + more) == "snapshot_damaged"
    assert refused(stream + stream[HEAD:]) == "snapshot_damaged"


@given(st.permutations(range(4)))
@quick
def test_chunks_keep_their_places(order: list[int]) -> None:
    data = os.urandom(4 * CHUNK)
    stream = sealed(data)
    chunks = [stream[at : at + STEP] for at in range(HEAD, len(stream), STEP)]
    moved = stream[:HEAD] + b"".join(chunks[number] for number in order)
    if order == [0, 1, 2, 3]:
        assert unsealed(moved) == data
    else:
        assert refused(moved) == "snapshot_damaged"
    assert refused(stream[:HEAD] + b"".join(chunks[:2] + chunks[3:])) == "snapshot_damaged"


def test_chunks_of_another_stream_do_not_pass() -> None:
    one, other = sealed(b"a" * 40), sealed(b"b" * 40)
    assert refused(one[:HEAD] + other[HEAD:]) == "snapshot_damaged"
    assert one[HEAD:] != sealed(b"a" * 40)[HEAD:]


def test_another_key_is_told_from_damage() -> None:
    stream = sealed(b"something")
    assert refused(stream, Key(b"another key")) == "wrong_key"
    assert refused(stream, None) == "wrong_key"
    changed = stream[:40] + bytes([stream[40] ^ 1]) + stream[41:]
    assert refused(changed, Key(b"another key")) == "snapshot_damaged"
    assert no_key("it").code == "wrong_key"


@pytest.mark.parametrize(
    ("offset", "value"), [(13, 9), (14, 0), (14, 31), (14, 40), (15, 0), (16, 255), (17, 40)]
)
def test_what_a_file_asks_for_is_bounded(offset: int, value: int) -> None:
    stream = bytearray(sealed(b"something"))
    stream[offset] = value
    fields = bytes(stream[: HEAD - 32])
    forged = fields + hashlib.sha256(fields).digest() + bytes(stream[HEAD:])
    if (offset, value) == (16, 255):  # bearable, as n and r are small: it is only not the key
        assert refused(forged) == "wrong_key"
    else:
        assert refused(forged) == "snapshot_incompatible"


def test_the_usual_work_is_dear_and_bearable() -> None:
    assert sealing.DEFAULT.bearable()
    assert (sealing.DEFAULT.log_n, sealing.DEFAULT.r) >= (15, 8)
    stream = b"".join(seal([b"x" * (3 << 20)], KEY))
    assert unsealed(stream) == b"x" * (3 << 20)
    assert not Work(log_n=20, r=8, p=1).bearable()
    assert not Work(log_n=14, r=8, p=255).bearable()
    assert not Work(log_n=16, r=1, p=1).bearable()
    for least in (Work(log_n=15, r=1, p=1), Work(log_n=1, r=1, p=1)):
        assert least.bearable()
        assert KEY.derive(least, bytes(16))


def test_it_can_be_sought_in() -> None:
    data = os.urandom(5 * CHUNK + 3)
    file = unseal(io.BytesIO(sealed(data)), KEY, "it")
    assert file.seek(0, os.SEEK_END) == len(data)
    for at in (70, 3, 16, 31, 82, 0):
        file.seek(at)
        assert (file.read(20), file.tell()) == (data[at : at + 20], min(at + 20, len(data)))
    file.seek(1000)
    assert file.read() == b""


def test_a_sealed_file_is_known_by_its_beginning() -> None:
    assert is_sealed(io.BytesIO(sealed(b"")))
    assert not is_sealed(io.BytesIO(b"hutch-snapshot\n"))
    assert refused(b"") == refused(b"else" * 100) == "snapshot_damaged"


@pytest.mark.parametrize("secret", [b"", b"7 bytes", b"x" * 4097])
def test_no_key_is_too_short_or_endless(secret: bytes) -> None:
    with pytest.raises(HutchError, match="8 to 4096 bytes"):
        Key(secret)


def test_a_key_is_never_shown() -> None:
    key = Key.from_text(base64.b64encode(b"secret of mine").decode())
    assert "secret" not in repr(key) + str(key) + f"{key!r}"
    assert unsealed(b"".join(seal([b"x"], key, work=CHEAP)), Key(b"secret of mine")) == b"x"
    for wrong in ("secret of mine", "c2VjcmV0\n", "\N{SNOWMAN}"):
        with pytest.raises(HutchError) as caught:
            Key.from_text(wrong)
        assert wrong not in "".join(traceback.format_exception(caught.value, chain=True))
        assert caught.value.code == "bad_request"

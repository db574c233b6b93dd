import pytest
from hypothesis import given
from hypothesis import strategies as st

from hutch.errors import HutchError
from hutch.guest import fields
from hutch.guest.messages import GuestProtocolError


@pytest.mark.parametrize("value", [None, "1", -1, 1 << 64, True, 1.0, b"1", [], {}])
def test_what_is_no_integer(value: object) -> None:
    with pytest.raises(GuestProtocolError):
        fields.integer({"n": value}, "n")


def test_integers() -> None:
    assert fields.integer({"n": fields.U64}, "n") == fields.U64
    assert fields.integer({}, "n", 7) == 7
    assert fields.integer({"n": None}, "n", 7) == 7
    assert fields.signed({"n": -5}, "n") == -5
    assert fields.optional({}, "n") is None
    with pytest.raises(GuestProtocolError):
        fields.integer({"n": 256}, "n", high=255)
    with pytest.raises(GuestProtocolError):
        fields.signed({"n": 1 << 63}, "n")


@pytest.mark.parametrize(
    ("read", "value"),
    [
        (fields.flag, 1),
        (fields.text, b"x"),
        (fields.text, "x" * 1025),
        (fields.octets, 5),
        (fields.table, []),
        (fields.items, {}),
        (fields.tables, [1]),
        (fields.numbers, [float("nan")]),
        (fields.numbers, [float("inf")]),
        (fields.numbers, ["1"]),
    ],
)
def test_wrong_types(read: object, value: object) -> None:
    with pytest.raises(GuestProtocolError):
        read({"k": value}, "k")  # type: ignore[operator]


def test_right_types() -> None:
    assert fields.flag({}, "k") is False
    assert fields.text({}, "k", "d") == "d"
    assert fields.octets({"k": "é"}, "k") == "é".encode()
    assert fields.numbers({"k": [1, 0.5]}, "k") == [1.0, 0.5]


@given(st.binary().filter(lambda raw: b"\0" not in raw))
def test_bytes_survive_as_text(raw: bytes) -> None:
    assert fields.to_bytes(fields.to_text(raw)) == raw


@pytest.mark.parametrize("path", ["", "a", "./a", "/a\0b", "/" + "x" * 4096, "/\ud800"])
def test_paths_that_cannot_be(path: str) -> None:
    with pytest.raises(HutchError) as caught:
        fields.path_bytes(path)
    assert caught.value.code == "bad_path"


@pytest.mark.parametrize("word", ["a\0b", "\ud800"])
def test_words_that_cannot_be(word: str) -> None:
    with pytest.raises(HutchError) as caught:
        fields.to_bytes(word)
    assert caught.value.code == "bad_request"

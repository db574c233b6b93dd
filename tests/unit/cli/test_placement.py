"""The rules of `cp`, as a table: what container tools do."""

import pytest

from hutch.cli.placement import Kind, Place, Target, parse_place, place_target
from hutch.errors import HutchError

FILE, DIR, MISSING = Kind.FILE, Kind.DIR, Kind.MISSING

TABLE = [
    # source, its kind, target, its kind, the result's path, merges
    ("a/f", FILE, "/d/new", MISSING, "/d/new", False),
    ("a/f", FILE, "/d/old", FILE, "/d/old", False),
    ("a/f", FILE, "/d", DIR, "/d/f", False),
    ("a/f", FILE, "/d/", DIR, "/d/f", False),
    ("a/f", FILE, "/", DIR, "/f", False),
    ("a/t", DIR, "/d/new", MISSING, "/d/new", False),
    ("a/t", DIR, "/d/new/", MISSING, "/d/new", False),
    ("a/t/.", DIR, "/d/new", MISSING, "/d/new", False),
    ("a/t", DIR, "/d", DIR, "/d/t", False),
    ("a/t/", DIR, "/d/.", DIR, "/d/t", False),
    ("a/t/.", DIR, "/d", DIR, "/d", True),
    (".", DIR, "/d", DIR, "/d", True),
    ("/", DIR, "/d", DIR, "/d", True),
    ("a/f", FILE, "new", MISSING, "./new", False),
    ("a/f", FILE, ".", DIR, "./f", False),
]

REFUSED = [
    ("a/f", MISSING, "/d", DIR, "path_not_found"),
    ("a/f/", FILE, "/d", DIR, "bad_path"),
    ("a/f/.", FILE, "/d", DIR, "bad_path"),
    ("a/f", FILE, "/d/new/", MISSING, "path_not_found"),
    ("a/f", FILE, "/d/old/", FILE, "bad_path"),
    ("a/t", DIR, "/d/old", FILE, "bad_path"),
]


@pytest.mark.parametrize(("source", "kind", "target", "there", "path", "merges"), TABLE)
def test_where_it_goes(
    source: str, kind: Kind, target: str, there: Kind, path: str, merges: bool
) -> None:
    found = place_target(Place(None, source), kind, Place("box", target), there)
    assert (found.path, found.merges) == (path, merges)


@pytest.mark.parametrize(("source", "kind", "target", "there", "code"), REFUSED)
def test_what_cannot_be(source: str, kind: Kind, target: str, there: Kind, code: str) -> None:
    with pytest.raises(HutchError) as caught:
        place_target(Place(None, source), kind, Place("box", target), there)
    assert caught.value.code == code


@pytest.mark.parametrize(
    ("text", "sandbox", "path"),
    [
        ("web:/srv", "web", "/srv"),
        ("web:srv", "web", "/srv"),
        ("web:", "web", "/"),
        ("./a:b", None, "./a:b"),
        ("/a:b", None, "/a:b"),
        ("d/a:b", None, "d/a:b"),
        ("file", None, "file"),
        (":x", None, ":x"),
    ],
)
def test_which_side_is_which(text: str, sandbox: str | None, path: str) -> None:
    assert parse_place(text) == Place(sandbox, path)


def test_target_at_the_root() -> None:
    assert Target("/", "f").path == "/f"

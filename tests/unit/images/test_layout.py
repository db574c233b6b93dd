"""The layout: atomic, counted, shared."""

import io
import json
import threading
from pathlib import Path

import pytest

from hutch.errors import HutchError
from hutch.images.config import OCI_MANIFEST, Descriptor
from hutch.images.layout import Layout, write_atomic
from tests.unit.images.making import sha256, simple_image


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    found = Layout(tmp_path / "oci")
    found.create()
    return found


def put_image(layout: Layout, text: bytes) -> Descriptor:
    made = simple_image(text)
    with layout.pins() as pins:
        for digest, body in made.blobs.items():
            layout.add_body(body, Descriptor("", digest, len(body)), pins)
    return Descriptor(OCI_MANIFEST, made.id, made.descriptor["size"])


def test_it_is_a_valid_layout(layout: Layout) -> None:
    assert json.loads((layout.root / "oci-layout").read_text()) == {"imageLayoutVersion": "1.0.0"}
    assert json.loads((layout.root / "index.json").read_text()) == {
        "schemaVersion": 2,
        "manifests": [],
    }
    layout.create()


@pytest.mark.parametrize(
    ("body", "code"), [(b"wrong", "digest_mismatch"), (b"longer", "bad_image"), (b"", "bad_image")]
)
def test_wrong_content_is_refused_and_not_kept(layout: Layout, body: bytes, code: str) -> None:
    with layout.pins() as pins, pytest.raises(HutchError) as caught:
        layout.add_stream(io.BytesIO(body), Descriptor("", sha256(b"right"), 5), pins)
    assert caught.value.code == code
    assert not list((layout.root / "tmp").iterdir())
    assert not list((layout.root / "blobs/sha256").iterdir())


def test_tags_move_and_leave_nameless_images(layout: Layout) -> None:
    one, two = put_image(layout, b"1"), put_image(layout, b"2")
    layout.tag(one, "a")
    layout.tag(one, "b")
    layout.tag(two, "a")
    assert {(e.reference, e.manifest.digest) for e in layout.entries()} == {
        ("b", one.digest), ("a", two.digest),
    }  # fmt: skip
    layout.untag("b")
    assert {(e.reference, e.manifest.digest) for e in layout.entries()} == {
        (None, one.digest), ("a", two.digest),
    }  # fmt: skip
    layout.tag(one, None)
    layout.tag(one, "c")
    assert [e.reference for e in layout.entries()] == ["a", "c"]


def test_gc_spares_what_is_named_and_what_is_pinned(layout: Layout) -> None:
    kept, gone = put_image(layout, b"1"), put_image(layout, b"2")
    layout.tag(kept, "a")
    with layout.pins() as pins:
        pinned = layout.add_bytes(b"coming", "x", pins)
        removed = {d.digest for d in layout.gc()}
        assert gone.digest in removed
        assert len(removed) == 3
        assert layout.has(pinned)
    assert [d.digest for d in layout.gc()] == [pinned.digest]
    assert layout.reachable(kept)
    assert all(layout.blob(digest).exists() for digest in layout.reachable(kept))


def test_many_writers_of_the_index_lose_nothing(layout: Layout) -> None:
    image = put_image(layout, b"1")
    other = Layout(layout.root)  # as another process would

    def tag(target: Layout, start: int) -> None:
        for number in range(start, start + 20):
            target.tag(image, f"r{number}")

    threads = [
        threading.Thread(target=tag, args=(layout, 0)),
        threading.Thread(target=tag, args=(other, 20)),
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {e.reference for e in layout.entries()} == {f"r{n}" for n in range(40)}


@pytest.mark.parametrize("text", ["", "[]", '{"manifests": 5}', '{"manifests": [{"digest": "x"}]}'])
def test_a_damaged_index_is_an_error(layout: Layout, text: str) -> None:
    (layout.root / "index.json").write_text(text)
    with pytest.raises(HutchError) as caught:
        layout.entries()
    assert caught.value.code == "bad_image"


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_atomic(path, b"old")
    with pytest.raises(TypeError):
        write_atomic(path, "no bytes")  # type: ignore[arg-type]
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]

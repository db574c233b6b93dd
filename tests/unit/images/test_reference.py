"""References, as container tools parse them."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hutch.errors import HutchError, InvalidInput
from hutch.images.reference import parse

D = "sha256:" + "a" * 64


@pytest.mark.parametrize(
    ("text", "full"),
    [
        ("busybox", "busybox"),
        ("debian", "debian"),
        ("busybox:latest", "docker.io/library/busybox:latest"),
        ("docker.io/busybox", "docker.io/library/busybox:latest"),
        ("index.docker.io/library/busybox", "docker.io/library/busybox:latest"),
        ("alpine", "docker.io/library/alpine:latest"),
        ("alpine:3.20", "docker.io/library/alpine:3.20"),
        ("team/app", "docker.io/team/app:latest"),
        ("localhost/app", "localhost/app:latest"),
        ("localhost:5000/app:1", "localhost:5000/app:1"),
        ("reg.example/app", "reg.example/app:latest"),
        ("reg.example:5000/a/b/c:T_1.x-y", "reg.example:5000/a/b/c:T_1.x-y"),
        ("UPPER/app", "UPPER/app:latest"),
        ("[::1]:5000/app", "[::1]:5000/app:latest"),
        ("127.0.0.1:80/x", "127.0.0.1:80/x:latest"),
        (f"app@{D}", f"docker.io/library/app@{D}"),
        (f"app:tag@{D}", f"docker.io/library/app@{D}"),
        (f"busybox@{D}", f"docker.io/library/busybox@{D}"),
        ("a__b/c-d--e.f_g", "docker.io/a__b/c-d--e.f_g:latest"),
        ("app:" + "t" * 128, "docker.io/library/app:" + "t" * 128),
    ],
)
def test_what_is_left_out_is_filled_in(text: str, full: str) -> None:
    found = parse(text)
    assert str(found) == full
    assert parse(full) == found
    assert found.builtin == (full in ("busybox", "debian"))


@pytest.mark.parametrize(
    "text",
    [
        "", " ", "Alpine", "a b", ":tag", "app:", "app:.tag", "app:t t", "app:" + "t" * 129, "/app",
        "app/", "a//b", "-app", "app-", "a..b", "a___b", "../etc", "app@", "app@sha256:abc",
        "app@md5:" + "a" * 32, f"@{D}", "reg.example:99999/app", "reg.example:port/app", "-r.x/app",
        "app\n", "app:tag\n", "café", "reg.example/" + "a" * 256, "http://reg.example/app", f"{D}",
        "reg_x.example/app:1/2",
    ],
)  # fmt: skip
def test_what_is_no_reference(text: str) -> None:
    with pytest.raises(HutchError) as caught:
        parse(text)
    assert caught.value.code == "bad_reference"
    assert caught.value.hint


def test_another_default_registry() -> None:
    assert str(parse("app", "reg.example")) == "reg.example/app:latest"
    assert str(parse("a/b", "reg.example")) == "reg.example/a/b:latest"
    assert str(parse("docker.io/app", "reg.example")) == "docker.io/library/app:latest"


@given(st.text(alphabet="aB0./:@-_ \n[]é", max_size=40))
def test_any_text_parses_to_itself_or_is_refused(text: str) -> None:
    found = None
    with contextlib.suppress(InvalidInput):
        found = parse(text)
    assert found is None or parse(str(found)) == found

"""Names: one spelling for each, and nothing that is an address."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hutch.network.names import (
    is_internal,
    is_registry_like,
    is_shared_hosting,
    normal,
    service_owner,
    suffixes,
)

LONGEST = ".".join(["a" * 63] * 3 + ["b" * 61])
LABELS = st.from_regex(r"[a-zA-Z_][a-zA-Z0-9_-]{0,20}[a-zA-Z]", fullmatch=True)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("example.com", "example.com"),
        ("EXAMPLE.Com.", "example.com"),
        ("_http._tcp.example.com", "_http._tcp.example.com"),
        ("a--b.example", "a--b.example"),
        ("1.2.3.example", "1.2.3.example"),
        ("4chan.example", "4chan.example"),
        ("localhost", "localhost"),
        ("bücher.example", "xn--bcher-kva.example"),
        ("BÜCHER.EXAMPLE", "xn--bcher-kva.example"),
        ("bu\u0308cher.example", "xn--bcher-kva.example"),
        ("XN--BCHER-KVA.example", "xn--bcher-kva.example"),
        ("straße.example", "xn--strae-oqa.example"),
        ("ｅｘａｍｐｌｅ.com", "example.com"),
        ("example。com", "example.com"),
        ("example．com｡", "example.com"),
        ("exam\u00adple.com", "example.com"),
        ("_dmarc.bücher.example", "_dmarc.xn--bcher-kva.example"),
        (LONGEST, LONGEST),
        (LONGEST + ".", LONGEST),
    ],
)
def test_each_name_has_one_spelling(text: str, name: str) -> None:
    assert normal(text) == name
    assert normal(name) == name


@pytest.mark.parametrize(
    "text",
    [
        "",
        ".",
        "..",
        "example.com..",
        ".example.com",
        "a..b",
        "。",
        "a" * 64 + ".example",
        LONGEST + "b",
        "ü" * 60 + ".example",
        "ü." * 126 + "com",
        "-a.example",
        "a-.example",
        "ex ample.com",
        "example.com\n",
        "example.com\0",
        "example.com:80",
        "user@example.com",
        "example.com/x",
        "*.example.com",
        "a%2eexample.com",
        "☃℀.example",
        "\ud800.example",
        "xn--\u00fc.example",
        "١٢٧.example",
        # addresses, as somebody may read them
        "127.0.0.1",
        "127.0.0.1.",
        "127.1",
        "2130706433",
        "0x7f000001",
        "0X7F.1",
        "0177.0.0.1",
        "127.0.0.0x1",
        "1.2.3.4.5",
        "example.1",
        "0x",
        "１２７.0.0.1",
        "①②⑦.0.0.①",
        "::1",
        "[::1]",
        "::ffff:127.0.0.1",
        "fe80::1%eth0",
    ],
)
def test_what_is_no_name(text: str) -> None:
    with pytest.raises(ValueError, match="it "):
        normal(text)


@given(st.text(max_size=300))
def test_whatever_comes_out_stays_as_it_is(text: str) -> None:
    try:
        name = normal(text)
    except ValueError:
        return
    assert normal(name) == normal(name + ".") == normal(name.upper()) == name
    assert name.isascii()
    assert name == name.lower()
    assert 0 < len(name) <= 253
    assert all(0 < len(label) < 64 for label in name.split("."))


@given(st.lists(LABELS, min_size=1, max_size=5), st.booleans())
def test_case_and_the_last_dot_make_no_difference(labels: list[str], dot: bool) -> None:
    text = ".".join(labels)
    assert normal(text + "." * dot) == text.lower()


def test_what_a_name_lies_under() -> None:
    assert list(suffixes("a.b.example.com")) == ["b.example.com", "example.com", "com"]
    assert list(suffixes("com")) == []


@pytest.mark.parametrize(
    "name",
    [
        "intranet",
        "localhost",
        "a.localhost",
        "printer.local",
        "metadata.google.internal",
        "router.lan",
        "x.home.arpa",
        "_dns.resolver.arpa",
        "git.corp",
        "nas.home",
        "a.test",
        "a.invalid",
        "abc.onion",
        "host.hutch",
        "corp.example.com",
        "a.b.corp.example.com",
    ],
)
def test_names_of_private_networks(name: str) -> None:
    assert is_internal(name, {"corp.example.com"})


@pytest.mark.parametrize("name", ["example.com", "local.example.com", "notcorp.example.com"])
def test_names_that_anybody_may_know(name: str) -> None:
    assert not is_internal(name, {"corp.example.com"})


@pytest.mark.parametrize(
    ("name", "owner"),
    [
        ("_http._tcp.example.com", "example.com"),
        ("_dmarc.example.com", "example.com"),
        ("example.com", "example.com"),
        ("_a._b._c.example.com", "_c.example.com"),
        ("_com", "_com"),
        ("_aaaaaaaaaaaaaaaaaaaaaaaa.example.com", "_aaaaaaaaaaaaaaaaaaaaaaaa.example.com"),
        ("a._tcp.example.com", "a._tcp.example.com"),
    ],
)
def test_whose_service_a_name_is_for(name: str, owner: str) -> None:
    assert service_owner(name) == owner


def test_shared_hosting() -> None:
    assert is_shared_hosting("d111.cloudfront.net")
    assert is_shared_hosting("bucket.s3.amazonaws.com")
    assert is_shared_hosting("someone.github.io")
    assert not is_shared_hosting("example.com")
    assert not is_shared_hosting("notcloudfront.net")


def test_names_below_which_are_strangers() -> None:
    for name in ("com", "co.uk", "com.au", "github.io", "pages.dev"):
        assert is_registry_like(name), name
    for name in ("example.com", "example.co.uk", "x.io"):
        assert not is_registry_like(name), name

"""The host's package sources for its own release."""

from pathlib import Path

from hutch.images.aptsources import host_sources

DEB822 = """\
# a comment
Types: deb deb-src
URIs: http://mirror.example/debian
Suites: bookworm bookworm-updates bookworm-backports
Components: main contrib
Signed-By: /usr/share/keyrings/k.gpg

Types: deb
URIs: http://sec.example/a http://sec.example/b
Suites: bookworm-security
Components: main
Signed-By:
 -----BEGIN PGP PUBLIC KEY BLOCK-----
 .
 abc

Types: deb
URIs: http://third.example/
Suites: nodistro
Components: main

Enabled: no
Types: deb
URIs: http://off.example/
Suites: bookworm
Components: main
"""


def test_both_formats_third_parties_left_out(tmp_path: Path) -> None:
    (tmp_path / "sources.list.d").mkdir()
    (tmp_path / "sources.list").write_text(
        "# deb http://no.example/ bookworm main\n"
        "deb [arch=amd64 signed-by=/k] http://one.example/debian bookworm main non-free # note\n"
        "deb-src http://one.example/debian bookworm main\n"
    )
    (tmp_path / "sources.list.d/x.list").write_text(
        "deb http://cloud.example/ cloud-bookworm main\n"
    )
    (tmp_path / "sources.list.d/d.sources").write_text(DEB822)
    signed = "[signed-by=/usr/share/keyrings/k.gpg] "
    assert host_sources("bookworm", tmp_path) == [
        "deb [arch=amd64 signed-by=/k] http://one.example/debian bookworm main non-free",
        f"deb {signed}http://mirror.example/debian bookworm main contrib",
        f"deb {signed}http://mirror.example/debian bookworm-updates main contrib",
        "deb http://sec.example/a bookworm-security main",
        "deb http://sec.example/b bookworm-security main",
    ]


def test_a_host_without_sources(tmp_path: Path) -> None:
    assert host_sources("bookworm", tmp_path) == []

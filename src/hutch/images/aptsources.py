"""The host's package sources, as far as they serve its own release: `debian` is made from them.

Pure but for reading the files: one-line and deb822 sources become one-line entries; third-party
sources (other suites) are left out.
"""

import re
from collections.abc import Iterator
from pathlib import Path

_POCKETS = ("", "-updates", "-security")
_LINE = re.compile(r"deb\s+(?:\[([^\]]*)\]\s+)?(\S+)\s+(\S+)\s+(\S.*)")


def host_sources(suite: str, directory: Path = Path("/etc/apt")) -> list[str]:
    """Return one-line entries for `suite` and its updates, from the host's configuration; maybe
    none.
    """
    entries: list[str] = []
    single = [directory / "sources.list", *sorted((directory / "sources.list.d").glob("*.list"))]
    for path in single:
        if path.is_file():
            entries += _one_line(path.read_text("utf-8", "replace"), suite)
    for path in sorted((directory / "sources.list.d").glob("*.sources")):
        entries += _deb822(path.read_text("utf-8", "replace"), suite)
    return list(dict.fromkeys(entries))


def _wanted(suite: str, release: str) -> bool:
    return suite.rstrip("/") in {release + pocket for pocket in _POCKETS} | {f"{release}/updates"}


def _one_line(text: str, release: str) -> Iterator[str]:
    for line in text.splitlines():
        match = _LINE.fullmatch(line.partition("#")[0].strip())
        if match and _wanted(match[3], release):
            options = f"[{match[1]}] " if match[1] else ""
            yield f"deb {options}{match[2]} {match[3]} {match[4]}"


def _deb822(text: str, release: str) -> Iterator[str]:
    text = "\n".join(line for line in text.splitlines() if not line.startswith("#"))
    for stanza in re.split(r"\n\s*\n", text):
        fields: dict[str, str] = {}
        for match in re.finditer(r"^([A-Za-z-]+):((?:.*(?:\n[ \t].*)*))", stanza, re.MULTILINE):
            fields[match[1].lower()] = match[2].strip()
        types = fields.get("types", "deb").split()
        if fields.get("enabled", "yes").lower() in ("no", "false") or "deb" not in types:
            continue
        signed = fields.get("signed-by", "")
        # A key inside the file cannot be said on one line; the keyring of the host then has to do.
        options = f"[signed-by={signed}] " if signed.startswith("/") and "\n" not in signed else ""
        for uri in fields.get("uris", "").split():
            for suite in fields.get("suites", "").split():
                if _wanted(suite, release):
                    yield f"deb {options}{uri} {suite} {fields.get('components', '')}".rstrip()

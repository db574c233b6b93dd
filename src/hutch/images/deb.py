"""Debian packages: asked of apt, downloaded without being installed, and read in Python. Works
without root.

apt runs with the host's own sources; when its package lists are missing or out of date, lists of
our own are fetched into the working directory, which needs no root either.
"""

import gzip
import lzma
import re
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any, cast

import zstandard

from hutch import process
from hutch.errors import HutchError, error
from hutch.images.config import bad_image
from hutch.tasks import in_thread

_QUERY_TIMEOUT = 60.0
_UPDATE_TIMEOUT = 300.0
_DOWNLOAD_TIMEOUT = 900.0
_AR_MAGIC = b"!<arch>\n"
_PART = re.compile(r"linux-(?:image|modules|binary)-[a-z0-9.+~-]+")
_NOT_WANTED = re.compile(r"-(?:dbg|extra|headers)\b")
_PACKAGES_LIMIT = 8


async def download_kernel(package: str, directory: Path) -> list[Path]:
    """Download a kernel package and the kernel packages that it depends on into `directory`.

    Raises ImageError (registry_failed) when apt cannot get them, Missing (tool_missing).
    """
    process.require("apt-get", "apt")
    try:
        return await _download(package, directory, ())
    except HutchError as first:
        options = await _own_lists(directory, first)
        return await _download(package, directory, options)


async def _download(package: str, directory: Path, options: Sequence[str]) -> list[Path]:
    names = [package]
    for name in names:
        for needed in await _depends(name, options):
            if needed not in names and len(names) < _PACKAGES_LIMIT:
                names.append(needed)
    await process.run(
        ["apt-get", *options, "--quiet", "download", *names],
        timeout=_DOWNLOAD_TIMEOUT,
        cwd=directory,
        code="registry_failed",
    )
    return await in_thread(lambda: sorted(directory.glob("*.deb")))


async def _depends(package: str, options: Sequence[str]) -> list[str]:
    """Return the kernel packages that a package depends on. Raises ImageError (registry_failed)."""
    shown = await process.run(
        ["apt-cache", *options, "show", "--no-all-versions", package],
        timeout=_QUERY_TIMEOUT,
        check=False,
    )
    text = shown.stdout.decode(errors="replace")
    if shown.code != 0 or not text.strip():
        raise error("registry_failed", f"apt knows no package {package}")
    fields = re.findall(r"^(?:Pre-)?Depends: (.*)$", text, re.MULTILINE)
    found = (item.split("|")[0].split()[0] for line in fields for item in line.split(","))
    return [name for name in found if _PART.fullmatch(name) and not _NOT_WANTED.search(name)]


async def _own_lists(directory: Path, first: HutchError) -> list[str]:
    """Fetch package lists into the working directory and return the apt options that use them."""
    state = directory / "apt"
    (state / "lists/partial").mkdir(parents=True)
    (state / "cache/archives/partial").mkdir(parents=True)
    options = ["-o", f"Dir::State::lists={state / 'lists'}", "-o", f"Dir::Cache={state / 'cache'}"]
    try:
        await process.run(
            ["apt-get", *options, "--quiet", "update"],
            timeout=_UPDATE_TIMEOUT,
            code="registry_failed",
        )
    except HutchError:
        raise first from None
    return options


def unpack(package: Path, target: Path, wanted: re.Pattern[str]) -> list[str]:
    """Write the regular files of a package whose names match `wanted` below `target`; return their
    names.

    Names are relative, without `./`. Raises ImageError (bad_image).
    """
    names: list[str] = []
    try:
        with open(package, "rb") as file:
            with tarfile.open(fileobj=_data(file), mode="r|") as archive:
                for member in archive:
                    name = member.name.removeprefix("./")
                    if not member.isfile() or not wanted.fullmatch(name) or ".." in name.split("/"):
                        continue
                    source = archive.extractfile(member)
                    assert source is not None
                    path = target / name
                    path.parent.mkdir(parents=True, exist_ok=True)
                    with open(path, "wb") as out:
                        while chunk := source.read(1 << 20):
                            out.write(chunk)
                    names.append(name)
    except (tarfile.TarError, lzma.LZMAError, zlib.error, zstandard.ZstdError, EOFError) as cause:
        raise bad_image(f"the package {package.name} is damaged: {cause}") from cause
    return names


def _data(file: IO[bytes]) -> IO[bytes]:
    """Return the decompressed data.tar of a package as a stream."""
    if file.read(len(_AR_MAGIC)) != _AR_MAGIC:
        raise bad_image(f"{file.name} is no Debian package")
    for name, size in _ar_members(file):
        if name.startswith("data.tar"):
            # data.tar is a package's last member, and each decompressor stops at the end of its
            # stream.
            opened: Any = file
            if name.endswith(".xz"):
                opened = lzma.open(file)  # noqa: SIM115 - the caller closes the file
            elif name.endswith(".gz"):
                opened = gzip.open(file)  # noqa: SIM115
            elif name.endswith(".zst"):
                opened = zstandard.ZstdDecompressor().stream_reader(file)
            return cast(IO[bytes], opened)
        file.seek(size + size % 2, 1)
    raise bad_image(f"{file.name} has no data.tar")


def _ar_members(file: IO[bytes]) -> Iterator[tuple[str, int]]:
    while len(header := file.read(60)) == 60:
        if header[58:] != b"`\n" or not header[48:58].strip().isdigit():
            raise bad_image(f"{file.name} is a damaged archive")
        yield header[:16].decode("ascii", "replace").strip().rstrip("/"), int(header[48:58])

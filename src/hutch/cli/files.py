"""`hutch cp`, `upload` and `download`: files and trees between this host and sandboxes.

Both ends are looked at, placement.py says where things go, and a tar stream carries them: made here
by pack.py, written here by extract.py, which trusts nothing that a guest sends.
"""

import os
import posixpath
import stat
import sys
from collections.abc import Iterable, Iterator
from typing import Any

import click

from hutch.cli.app import App
from hutch.cli.client import Client, sandbox_path
from hutch.cli.extract import Extractor
from hutch.cli.failures import warn
from hutch.cli.options import command, pass_app, sandbox_argument
from hutch.cli.pack import PIECE, Packer
from hutch.cli.placement import Kind, Place, parse_place, place_target, trimmed
from hutch.cli.progress import Transfer
from hutch.cli.render import print_json
from hutch.cli.terminal import is_tty
from hutch.cli.untar import TarReader
from hutch.errors import HutchError, error

_LINK_LIMIT = 40


@command(
    "cp",
    examples=[
        "hutch cp app.py web:/srv/",
        "hutch cp web:/var/log ./logs",
        "hutch cp -a src/. web:/srv",
        "tar c . | hutch cp - web:/srv",
        "hutch cp web:/srv - | tar t",
    ],
)
@click.option("-a", "--archive", is_flag=True, help="Keep owners and setuid bits.")
@click.option("-L", "--follow-link", "follow", is_flag=True, help="Copy what symlinks point to.")
@click.argument("source", metavar="SRC", type=click.Path())
@click.argument("target", metavar="DST", type=click.Path())
@pass_app
def copy(app: App, /, source: str, target: str, archive: bool, follow: bool) -> None:
    """Copy files and trees; SRC or DST, or both, are NAME:PATH.

    A directory goes into DST if DST is a directory, else becomes DST; SRC/. means its contents.
    The parent of DST must exist. `-` is a tar stream on stdin or stdout.
    """
    if source == "-" or target == "-":
        _copy_stream(app, source, target, follow=follow)
        return
    here, there = parse_place(source), parse_place(target)
    if here.sandbox is None and there.sandbox is None:
        raise error("bad_path", "neither side names a sandbox", hint="write NAME:PATH for one")
    if here.sandbox is None:
        done = _upload(app, here, there, archive=archive, follow=follow)
    elif there.sandbox is None:
        done = _download(app, here, there, archive=archive, follow=follow)
    else:
        done = _across(app, here, there, archive=archive, follow=follow)
    if app.json:
        print_json(done)


def _copy_stream(app: App, source: str, target: str, *, follow: bool) -> None:
    """Carry a tar stream between a sandbox and our stdin or stdout."""
    place = parse_place(target if source == "-" else source)
    if place.sandbox is None:
        raise error("bad_path", "the other side of `-` must be a sandbox", hint="write NAME:PATH")
    path = sandbox_path(place.sandbox, "archive")
    if source == "-":
        place, kind = resolve_guest(app.client, place)
        if kind is not Kind.DIR:
            raise error("bad_path", f"{place}: it must be a directory for a tar stream")
        response = app.client.send("PUT", path, {"path": place.path}, body=_stdin_pieces())
        entries = response.json()["entries"]
        if app.json:
            print_json({"source": "-", "target": str(place), "entries": entries})
        return
    if is_tty(1):
        raise error("bad_path", "a tar stream is not for a terminal", hint="redirect stdout")
    sys.stdout.flush()
    for piece in app.client.send("GET", path, {"path": place.path, "follow": follow}):
        view = memoryview(piece)
        while len(view):
            view = view[os.write(1, view) :]


def _stdin_pieces() -> Iterator[bytes]:
    while piece := os.read(0, PIECE):
        yield piece


def _stat_guest(client: Client, place: Place) -> dict[str, Any] | None:
    assert place.sandbox is not None
    path = sandbox_path(place.sandbox, "files", "stat")
    try:
        found: dict[str, Any] = client.call("GET", path, {"path": place.path, "follow": False})
    except HutchError as failure:
        if failure.code == "path_not_found":
            return None
        raise
    return found


def resolve_guest(client: Client, place: Place) -> tuple[Place, Kind]:
    """Return a path in a sandbox with its last symlinks followed, and what is there."""
    for _ in range(_LINK_LIMIT):
        found = _stat_guest(client, place)
        if found is None:
            return place, Kind.MISSING
        if found["type"] != "symlink":
            return place, Kind.DIR if found["type"] == "dir" else Kind.FILE
        base = posixpath.dirname(place.path.rstrip("/"))
        place = Place(place.sandbox, posixpath.join(base, found["target"]))
    raise error("bad_path", f"{place}: too many symlinks")


def local_kind(path: str, *, follow: bool) -> Kind:
    """Return what is at a path of this host."""
    try:
        found = os.stat(path) if follow else os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return Kind.MISSING
    return Kind.DIR if stat.S_ISDIR(found.st_mode) else Kind.FILE


def _upload(
    app: App, source: Place, target: Place, *, archive: bool, follow: bool, parents: bool = False
) -> dict[str, Any]:
    """Copy from this host into a sandbox."""
    assert target.sandbox is not None
    resolved, kind = resolve_guest(app.client, target)
    written = Place(resolved.sandbox, resolved.path + ("/" if target.path.endswith("/") else ""))
    # A path with a slash at its end is the directory behind a symlink.
    source_kind = local_kind(trimmed(source.path), follow=follow or source.wants_directory)
    where = place_target(source, source_kind, written, kind)
    query: dict[str, Any] = {"path": where.directory, "parents": parents}
    if not archive:
        query |= {"uid": 0, "gid": 0}
    with Transfer(str(target), _local_size(source.path), enabled=not app.json) as transfer:
        packer = Packer(
            source.path,
            None if where.merges else where.name,
            follow=follow,
            count=transfer.add,
        )
        if where.merges:
            query["path"] = where.path
        path = sandbox_path(target.sandbox, "archive")
        response = app.client.send("PUT", path, query, body=packer.pieces())
        entries = response.json()["entries"]
        return _done(source, Place(target.sandbox, where.path), entries, transfer)


def _local_size(path: str) -> int | None:
    try:
        found = os.lstat(path)
    except OSError:
        return None
    return found.st_size if stat.S_ISREG(found.st_mode) else None


def _done(source: Place, target: Place, entries: int, transfer: Transfer) -> dict[str, Any]:
    return {
        "source": str(source),
        "target": str(target),
        "entries": entries,
        "bytes": transfer.done,
    }


def _source_in_guest(client: Client, place: Place, *, follow: bool) -> tuple[str, Kind, int]:
    """Return what to read in a sandbox: the path, its kind, and the size of a file."""
    wants_directory = place.wants_directory
    path = place.path.removesuffix("/.") if place.contents_only else place.path
    place = Place(place.sandbox, path.rstrip("/") or "/")
    if follow or wants_directory:
        resolved, kind = resolve_guest(client, place)
        return resolved.path, kind, 0
    found = _stat_guest(client, place)
    if found is None:
        return place.path, Kind.MISSING, 0
    return place.path, Kind.DIR if found["type"] == "dir" else Kind.FILE, int(found["size"])


def _download(
    app: App, source: Place, target: Place, *, archive: bool, follow: bool
) -> dict[str, Any]:
    """Copy from a sandbox to this host."""
    assert source.sandbox is not None
    read, kind, size = _source_in_guest(app.client, source, follow=follow)
    # The name of the copy is the one that was asked for, not where a symlink led.
    where = place_target(source, kind, target, local_kind(target.path, follow=True))
    directory, name = where.directory, where.name
    if where.merges:
        directory, name = where.path, "."
    elif os.path.islink(where.path) and kind is Kind.FILE:
        directory, name = os.path.split(os.path.realpath(where.path))
    query = {"path": read, "follow": follow}
    response = app.client.send("GET", sandbox_path(source.sandbox, "archive"), query)
    with Transfer(str(source), size or None, enabled=not app.json) as transfer:
        extractor = Extractor(
            directory, name, archive=archive, count=transfer.add, warn=transfer.warn(warn)
        )
        entries = extractor.run(TarReader(response))
        return _done(source, Place(None, where.path), entries, transfer)


def _across(
    app: App, source: Place, target: Place, *, archive: bool, follow: bool
) -> dict[str, Any]:
    """Copy from one sandbox to another, through this process."""
    assert source.sandbox is not None
    assert target.sandbox is not None
    read, kind, _ = _source_in_guest(app.client, source, follow=follow)
    resolved, target_kind = resolve_guest(app.client, target)
    written = Place(resolved.sandbox, resolved.path + ("/" if target.path.endswith("/") else ""))
    where = place_target(source, kind, written, target_kind)
    query: dict[str, Any] = {"path": where.directory}
    if not archive:
        query |= {"uid": 0, "gid": 0}
    other = Client(app)
    try:
        response = other.send(
            "GET",
            sandbox_path(source.sandbox, "archive"),
            {"path": read, "name": where.name, "follow": follow},
        )
        with Transfer(str(target), None, enabled=not app.json) as transfer:
            answer = app.client.send(
                "PUT",
                sandbox_path(target.sandbox, "archive"),
                query,
                body=_counted(response, transfer),
            )
            entries = answer.json()["entries"]
            return _done(source, Place(target.sandbox, where.path), entries, transfer)
    finally:
        other.close()


def _counted(pieces: Iterable[bytes], transfer: Transfer) -> Iterator[bytes]:
    for piece in pieces:
        transfer.add(len(piece))
        yield piece


@command("upload", examples=["hutch upload web app.py lib", "hutch upload -d /srv web ."])
@click.option("-d", "--dir", "directory", metavar="DIR", help="Where to (its working directory).")
@click.option("-a", "--archive", is_flag=True, help="Keep owners and setuid bits.")
@sandbox_argument()
@click.argument("paths", nargs=-1, required=True, metavar="PATH...", type=click.Path())
@pass_app
def upload(
    app: App, /, name: str, paths: tuple[str, ...], directory: str | None, archive: bool
) -> None:
    """Copy files and directories into a sandbox.

    They go into DIR, which is made if missing.
    """
    if directory is None:
        directory = app.client.call("GET", sandbox_path(name))["workdir"]
    target = parse_place(f"{name}:{directory}")
    body = {"path": target.path, "parents": True}
    app.client.call("POST", sandbox_path(name, "files", "mkdir"), json=body)
    done = [_upload(app, Place(None, p), target, archive=archive, follow=False) for p in paths]
    if app.json:
        print_json(done)


@command("download", examples=["hutch download web /srv/out.csv", "hutch download -d out web /srv"])
@click.option("-d", "--dir", "directory", default=".", metavar="DIR", help="Where to (here).")
@click.option("-a", "--archive", is_flag=True, help="Keep owners and setuid bits.")
@sandbox_argument()
@click.argument("paths", nargs=-1, required=True, metavar="PATH...")
@pass_app
def download(app: App, /, name: str, paths: tuple[str, ...], directory: str, archive: bool) -> None:
    """Copy files and directories out of a sandbox.

    They go into DIR, which is made if missing.
    """
    os.makedirs(directory, exist_ok=True)
    target = Place(None, directory)
    done = [
        _download(app, parse_place(f"{name}:{path}"), target, archive=archive, follow=False)
        for path in paths
    ]
    if app.json:
        print_json(done)

"""`hutch snapshot` (create, ls, inspect, rm, gc, export, import), `hutch restore`, `hutch fork`."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from hutch.cli.app import App
from hutch.cli.client import sandbox_path
from hutch.cli.failures import write_failure
from hutch.cli.keys import key_headers, key_option
from hutch.cli.options import Group, command, example_text, pass_app, sandbox_argument
from hutch.cli.render import print_json, size, table
from hutch.cli.sandboxes import for_each
from hutch.cli.terminal import is_tty
from hutch.errors import HutchError, error
from hutch.errors import from_json as error_from
from hutch.models import SnapshotInfo, from_json
from hutch.sdk.http1 import quote

_PIECE = 256 << 10


def snapshot_path(ref: str, verb: str = "") -> str:
    """Return the path of a snapshot in the API."""
    return f"/v1/snapshots/{quote(ref)}" + (f"/{verb}" if verb else "")


@click.group(
    "snapshot",
    cls=Group,
    aliases={"list": "ls", "take": "create", "remove": "rm", "delete": "rm", "prune": "gc"},
    epilog=example_text(
        ["hutch snapshot create web", "hutch snapshot ls", "hutch restore web-1 w2"]
    ),
)
def snapshot() -> None:
    """Points in time of sandboxes: memory, disk and settings.

    `hutch restore` makes sandboxes that go on from one, any number of times.
    """


@command(
    "create",
    examples=[
        "hutch snapshot create web",
        "hutch snapshot create --disk-only --name base web",
        "hutch snapshot create --encrypt --key-file key web",
    ],
)
@click.option("--name", "title", metavar="NAME", help="Name of the snapshot (NAME-1, ...).")
@click.option("--disk-only", is_flag=True, help="Without the memory: what is restored boots.")
@click.option(
    "--no-freeze", is_flag=True, help="With --disk-only: do not stop its programs for a moment."
)
@click.option("--encrypt", is_flag=True, help="Encrypt it; `restore` needs the same key.")
@key_option()
@sandbox_argument()
@pass_app
def create(
    app: App,
    /,
    name: str,
    title: str | None,
    disk_only: bool,
    no_freeze: bool,
    encrypt: bool,
    key_file: str | None,
) -> None:
    """Take a snapshot of a sandbox, which goes on; print its name.

    One that is stopped has only its disk to take.
    """
    headers = _encryption(key_file, encrypt)
    body = {"sandbox": name, "name": title, "disk_only": disk_only, "freeze": not no_freeze}
    if encrypt:
        body["encrypt"] = True
    info = app.client.send("POST", "/v1/snapshots", json=body, headers=headers).json()
    if app.json:
        print_json(info)
    else:
        click.echo(info["name"])


@command("ls", examples=["hutch snapshot ls", "hutch snapshot ls web"])
@click.option("--checkpoints", is_flag=True, help="Checkpoints, too (see `hutch checkpoints`).")
@click.argument("sandbox", required=False)
@pass_app
def list_snapshots(app: App, /, sandbox: str | None, checkpoints: bool) -> None:
    """List snapshots, oldest first.

    With SANDBOX those of one sandbox, also when it is gone.
    """
    query = {"sandbox": sandbox, "checkpoints": checkpoints}
    answer = app.client.call("GET", "/v1/snapshots", query)
    if app.json:
        print_json(answer)
        return
    infos = [from_json(SnapshotInfo, item) for item in answer]
    table(
        ["NAME", "ID", "SANDBOX", "IMAGE", "KIND", "ENCRYPTED", "CREATED", "DISK USE"],
        [
            (
                info.name,
                info.id,
                info.sandbox_name,
                info.image,
                info.kind.value,
                "yes" if info.encrypted else "no",
                info.created_at[:19].replace("T", " "),
                size(info.disk_bytes),
            )
            for info in infos
        ],
    )


@command("inspect", examples=["hutch snapshot inspect web-1"])
@click.argument("names", nargs=-1, required=True, metavar="SNAPSHOT...")
@pass_app
def inspect(app: App, /, names: tuple[str, ...]) -> None:
    """Show all that is known of snapshots, as JSON."""
    print_json([app.client.call("GET", snapshot_path(name)) for name in names])


@command("rm", examples=["hutch snapshot rm web-1 web-2"])
@click.argument("names", nargs=-1, required=True, metavar="SNAPSHOT...")
@pass_app
def remove(app: App, /, names: tuple[str, ...]) -> int:
    """Remove snapshots; what was restored from them goes on."""
    return for_each(app, names, lambda name: app.client.call("DELETE", snapshot_path(name)))


@command("gc", examples=["hutch snapshot gc --keep 5", "hutch snapshot gc --keep 1 --sandbox web"])
@click.option("--keep", type=int, required=True, metavar="N", help="How many stay, the newest.")
@click.option("--sandbox", metavar="NAME", help="Only those of this sandbox.")
@pass_app
def collect(app: App, /, keep: int, sandbox: str | None) -> None:
    """Remove all but the newest snapshots of each sandbox."""
    body = {"keep": keep, "sandbox": sandbox}
    answer = app.client.call("POST", "/v1/snapshots/gc", json=body)
    if app.json:
        print_json(answer)
        return
    for ref in answer["removed"]:
        click.echo(ref)
    click.echo(f"freed {size(answer['bytes'])}")


@command(
    "export",
    examples=[
        "hutch snapshot export web-1 web.hutch",
        "hutch snapshot export --encrypt --key-file key web-1 web.hutch",
        "hutch snapshot export web-1 - | wc -c",
    ],
)
@click.option("--encrypt", is_flag=True, help="Encrypt it; `import` needs the same key.")
@key_option()
@click.argument("name", metavar="SNAPSHOT")
@click.argument("file", type=click.Path())
@pass_app
def export(app: App, /, name: str, file: str, encrypt: bool, key_file: str | None) -> None:
    """Write a snapshot into one file, to be restored on another host.

    Memory, disk and root file system are in it, and nobody but you may read it. `-` is stdout.
    """
    headers = _encryption(key_file, encrypt)
    if file == "-" and is_tty(1):
        raise error("bad_path", "a snapshot is not for a terminal", hint="redirect stdout")
    path, query = snapshot_path(name, "export"), {"encrypt": True} if encrypt else None
    pieces = iter(app.client.send("GET", path, query, headers=headers))
    if file == "-":
        sys.stdout.flush()
        for piece in pieces:
            _write_all(1, piece)
        return
    size_of_file = _write_private(Path(file), pieces)
    if app.json:
        print_json({"snapshot": name, "file": file, "bytes": size_of_file})


@command(
    "import",
    examples=["hutch snapshot import web.hutch", "hutch snapshot import --name base web.hutch"],
)
@click.option("--name", "title", metavar="NAME", help="Name of the snapshot (its own).")
@key_option()
@click.argument("file", type=click.Path())
@pass_app
def load(app: App, /, file: str, title: str | None, key_file: str | None) -> None:
    """Take in a snapshot from a file that `export` wrote; print its name.

    It is checked as a whole first. `-` is stdin. Take only files from where you trust: what is
    restored goes on as it was. An encrypted one needs its key.
    """
    headers = key_headers(key_file)
    try:
        fd = 0 if file == "-" else os.open(file, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as cause:
        raise error("path_not_found", f"{file}: {cause.strerror}") from cause
    body = _pieces(fd)
    path, query = "/v1/snapshots/import", {"name": title}
    info = app.client.send("POST", path, query, body=body, headers=headers).json()
    if app.json:
        print_json(info)
    else:
        click.echo(info["name"])


def _encryption(key_file: str | None, encrypt: bool) -> dict[str, str]:
    if key_file is not None and not encrypt:
        raise error("bad_request", "--key-file is of no use without --encrypt")
    return key_headers(key_file, needed=True) if encrypt else {}


def _pieces(fd: int) -> Iterator[bytes]:
    with open(fd, "rb", buffering=0, closefd=fd != 0) as file:
        while piece := file.read(_PIECE):
            yield piece


def _write_private(target: Path, pieces: Iterator[bytes]) -> int:
    """Write a new file beside its place, for its owner alone, and rename it; return its bytes."""
    part = target.with_name(f".{target.name}.{os.urandom(8).hex()}.part")
    written = 0
    try:
        fd = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            for piece in pieces:
                _write_all(fd, piece)
                written += len(piece)
            os.fsync(fd)
        finally:
            os.close(fd)
        part.replace(target)
    except OSError as cause:
        raise error("bad_path", f"{target} cannot be written: {cause.strerror}") from cause
    finally:
        part.unlink(missing_ok=True)
    return written


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while len(view):
        view = view[os.write(fd, view) :]


@command("restore", examples=["hutch restore web-1 web2", "hutch restore --disk-only web-1 fresh"])
@click.option("--disk-only", is_flag=True, help="Boot from its disk, without its memory.")
@key_option()
@click.argument("snapshot_name", metavar="SNAPSHOT")
@click.argument("name", required=False, metavar="[NEW]")
@pass_app
def restore(
    app: App, /, snapshot_name: str, name: str | None, disk_only: bool, key_file: str | None
) -> None:
    """Make a sandbox that goes on from a snapshot; print its name.

    Its programs run on where they were. It has the settings of then, and its own identity. An
    encrypted one needs its key.
    """
    path, body = snapshot_path(snapshot_name, "restore"), {"name": name, "disk_only": disk_only}
    info = app.client.send("POST", path, json=body, headers=key_headers(key_file)).json()
    if app.json:
        print_json(info)
    else:
        click.echo(info["name"])


@command(
    "fork", examples=["hutch fork web", "hutch fork web left right", "hutch fork --count 8 web"]
)
@click.option("--count", type=int, metavar="N", help="How many children (as many as names, or 1).")
@sandbox_argument()
@click.argument("children", nargs=-1, metavar="[CHILD]...")
@pass_app
def fork(app: App, /, name: str, children: tuple[str, ...], count: int | None) -> int:
    """Make running children of a sandbox; print their names.

    All are from one moment of it: their programs run on where its own were. Each has memory, disk
    and identity of its own.
    """
    body: dict[str, Any] = {"names": list(children), "count": count}
    answer = app.client.call("POST", sandbox_path(name, "fork"), json=body)
    if app.json:
        print_json(answer)
    else:
        for child in answer["children"]:
            click.echo(child["name"])
        for failed in answer["failed"]:
            write_failure(error_from(failed["error"]))
    return HutchError.exit_code if answer["failed"] else 0


for _verb in (create, list_snapshots, inspect, remove, collect, export, load):
    snapshot.add_command(_verb)

"""`hutch image`: ls, pull, import, build, inspect, rm, prune."""

import os
from typing import Any

import click

from hutch.cli.app import App
from hutch.cli.options import Group, command, example_text, pass_app
from hutch.cli.progress import Progress
from hutch.cli.render import age, print_json, size, table
from hutch.cli.sandboxes import for_each
from hutch.content import ImageInfo
from hutch.errors import error
from hutch.models import from_json

_SHORT_ID = 12


@click.group(
    "image",
    cls=Group,
    aliases={"list": "ls", "load": "import", "remove": "rm", "delete": "rm"},
    epilog=example_text(["hutch image pull debian:12", "hutch image build -t app ."]),
)
def image() -> None:
    """Images of the local store."""


@command("ls", examples=["hutch image ls", "hutch image ls -q"])
@click.option("-q", "--quiet", is_flag=True, help="Print ids only.")
@click.option("--no-trunc", is_flag=True, help="Print whole ids.")
@pass_app
def list_images(app: App, /, quiet: bool, no_trunc: bool) -> None:
    """List images."""
    answer = app.client.call("GET", "/v1/images")
    if app.json:
        print_json([info["id"] for info in answer] if quiet else answer)
        return
    infos = [from_json(ImageInfo, item) for item in answer]
    if quiet:
        for info in infos:
            click.echo(info.id)
        return
    rows = []
    for info in infos:
        short = info.id if no_trunc else info.id.removeprefix("sha256:")[:_SHORT_ID]
        for reference in info.references or ["(none)"]:
            disk = size(info.rootfs_size)
            rows.append((reference, short, age(info.created_at), size(info.size), disk))
    table(["REFERENCE", "ID", "CREATED", "SIZE", "ROOTFS"], rows, flexible=0)


def _print_images(app: App, answer: Any) -> None:
    if app.json:
        print_json(answer)
        return
    for item in answer if isinstance(answer, list) else [answer]:
        info = from_json(ImageInfo, item)
        click.echo(info.references[0] if info.references else info.id)


@command("pull", examples=["hutch image pull debian:12", "hutch image pull localhost:5000/app"])
@click.argument("references", nargs=-1, required=True, metavar="REFERENCE...")
@pass_app
def pull(app: App, /, references: tuple[str, ...]) -> int:
    """Fetch images from their registries."""

    def act(reference: str) -> Any:
        with Progress(enabled=not app.json) as progress:
            return app.client.work("/v1/images/pull", {"reference": reference}, progress)

    return for_each(app, references, act)


@command(
    "import",
    examples=["hutch image import app.tar", "hutch image import -t app:1 ./oci-layout"],
)
@click.option("-t", "--tag", metavar="REFERENCE", help="Name for it.")
@click.argument("path", type=click.Path())
@pass_app
def import_image(app: App, /, path: str, tag: str | None) -> None:
    """Import a `docker save` or OCI archive, or an OCI layout directory."""
    body = {"path": _existing(path), "tag": tag}
    with Progress(enabled=not app.json) as progress:
        answer = app.client.work("/v1/images/load", body, progress)
    _print_images(app, answer)


@command("build", examples=["hutch image build -t app .", "hutch image build -t app -f Dev.df ."])
@click.option("-t", "--tag", required=True, metavar="REFERENCE", help="Name for it.")
@click.option(
    "-f",
    "--file",
    "dockerfile",
    type=click.Path(),
    metavar="FILE",
    help="Dockerfile (DIR/Dockerfile).",
)
@click.option("--build-arg", multiple=True, metavar="K=V", help="Build argument.")
@click.argument("directory", metavar="DIR", type=click.Path())
@pass_app
def build(
    app: App,
    /,
    directory: str,
    tag: str,
    dockerfile: str | None,
    build_arg: tuple[str, ...],
) -> None:
    """Build an image from a Dockerfile, through buildah."""
    args = {}
    for text in build_arg:
        key, equals, value = text.partition("=")
        if not key or not equals:
            raise error("bad_request", f"--build-arg: {text!r} is not K=V")
        args[key] = value
    body = {
        "context": _existing(directory),
        "dockerfile": _existing(dockerfile) if dockerfile else None,
        "tag": tag,
        "args": args,
    }
    with Progress(enabled=not app.json) as progress:
        answer = app.client.work("/v1/images/build", body, progress)
    _print_images(app, answer)


def _existing(path: str) -> str:
    """Return an absolute path: the daemon has another working directory. Raises bad_path."""
    if not os.path.exists(path):
        raise error("bad_path", f"{path}: no such file or directory")
    return os.path.abspath(path)


@command("inspect", examples=["hutch image inspect debian:12"])
@click.argument("references", nargs=-1, required=True, metavar="REFERENCE...")
@pass_app
def inspect(app: App, /, references: tuple[str, ...]) -> None:
    """Print all about images, as a JSON list."""
    print_json([app.client.call("GET", "/v1/images/inspect", {"ref": r}) for r in references])


@command("rm", examples=["hutch image rm debian:12"])
@click.option("-f", "--force", is_flag=True, help="Also when sandboxes use it.")
@click.argument("references", nargs=-1, required=True, metavar="REFERENCE...")
@pass_app
def remove(app: App, /, references: tuple[str, ...], force: bool) -> int:
    """Remove images."""
    return for_each(
        app,
        references,
        lambda r: app.client.call("DELETE", "/v1/images", {"ref": r, "force": force}),
    )


@command("prune", examples=["hutch image prune", "hutch image prune --all"])
@click.option("-a", "--all", "everything", is_flag=True, help="Also those with a name.")
@pass_app
def prune(app: App, /, everything: bool) -> None:
    """Remove what no name points to and no sandbox uses."""
    answer = app.client.call("POST", "/v1/images/prune", json={"all": everything})
    if app.json:
        print_json(answer)
        return
    for name in answer["removed"]:
        click.echo(name)
    click.echo(f"freed {size(answer['bytes'])}")


for _verb in (list_images, pull, import_image, build, inspect, remove, prune):
    image.add_command(_verb)

"""`hutch kernel`: ls, pull, import, use, rm."""

import os

import click

from hutch.cli.app import App
from hutch.cli.options import Group, command, example_text, pass_app
from hutch.cli.progress import Progress
from hutch.cli.render import print_json, size, table
from hutch.cli.sandboxes import for_each
from hutch.content import KernelInfo
from hutch.errors import error
from hutch.models import from_json


@click.group(
    "kernel",
    cls=Group,
    aliases={"list": "ls", "load": "import", "remove": "rm", "delete": "rm"},
    epilog=example_text(["hutch kernel pull", "hutch kernel ls"]),
)
def kernel() -> None:
    """Kernels that sandboxes boot."""


@command("ls", examples=["hutch kernel ls"])
@pass_app
def list_kernels(app: App) -> None:
    """List kernels; the one in use is marked."""
    answer = app.client.call("GET", "/v1/kernels")
    if app.json:
        print_json(answer)
        return
    table(
        ["", "NAME", "VERSION", "SOURCE", "SIZE"],
        [
            ("*" if info.active else "", info.name, info.version, info.source, size(info.size))
            for info in (from_json(KernelInfo, item) for item in answer)
        ],
    )


@command("pull", examples=["hutch kernel pull", "hutch kernel pull linux-image-cloud-amd64"])
@click.argument("package", required=False)
@pass_app
def pull(app: App, /, package: str | None) -> None:
    """Fetch a kernel package of the distribution."""
    with Progress(enabled=not app.json) as progress:
        answer = app.client.work("/v1/kernels/pull", {"package": package}, progress)
    _print(app, answer)


@command(
    "import", examples=["hutch kernel import --modules /lib/modules/6.1.0 /boot/vmlinuz-6.1.0"]
)
@click.option("--modules", type=click.Path(), metavar="DIR", help="Directory of its modules.")
@click.option("--name", metavar="NAME", help="Name for it.")
@click.argument("path", type=click.Path())
@pass_app
def import_kernel(app: App, /, path: str, modules: str | None, name: str | None) -> None:
    """Import a kernel file."""
    for given in (path, modules):
        if given is not None and not os.path.exists(given):
            raise error("bad_path", f"{given}: no such file or directory")
    body = {
        "path": os.path.abspath(path),
        "modules": os.path.abspath(modules) if modules else None,
        "name": name,
    }
    _print(app, app.client.call("POST", "/v1/kernels/load", json=body))


@command("use", examples=["hutch kernel use 6.1.0-cloud-amd64"])
@click.argument("name")
@pass_app
def use(app: App, /, name: str) -> None:
    """Choose the kernel that sandboxes boot from now on."""
    _print(app, app.client.call("POST", "/v1/kernels/use", json={"name": name}))


@command("rm", examples=["hutch kernel rm 6.1.0-cloud-amd64"])
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@pass_app
def remove(app: App, /, names: tuple[str, ...]) -> int:
    """Remove kernels."""
    return for_each(
        app, names, lambda name: app.client.call("DELETE", "/v1/kernels", {"name": name})
    )


def _print(app: App, answer: dict[str, object]) -> None:
    if app.json:
        print_json(answer)
    else:
        click.echo(answer["name"])


for _verb in (list_kernels, pull, import_kernel, use, remove):
    kernel.add_command(_verb)

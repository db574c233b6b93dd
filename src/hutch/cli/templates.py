"""`hutch template`: ls, build, rm, prune."""

import click

from hutch.cli.app import App
from hutch.cli.options import SIZE, Group, command, example_text, pass_app
from hutch.cli.progress import Progress
from hutch.cli.render import print_json, size, table
from hutch.cli.sandboxes import for_each
from hutch.models import TemplateInfo, from_json


@click.group(
    "template",
    cls=Group,
    aliases={"list": "ls", "remove": "rm", "delete": "rm"},
    epilog=example_text(["hutch template ls", "hutch template build -m 1g debian"]),
)
def template() -> None:
    """Frozen machines that sandboxes begin as clones of.

    The first start of an image makes two: a fresh one, for new sandboxes with a disk of the usual
    size, and a bare one, for other sizes and for what was stopped. They are dropped when their
    space is used up.
    """


@command("ls", examples=["hutch template ls"])
@pass_app
def list_templates(app: App) -> None:
    """List templates; the most recently used first."""
    answer = app.client.call("GET", "/v1/templates")
    if app.json:
        print_json(answer)
        return
    table(
        [
            "ID",
            "IMAGE",
            "POINT",
            "CPUS",
            "MEMORY",
            "RUNNING",
            "SANDBOXES",
            "DISK USE",
            "MEMORY USE",
        ],
        [
            (
                info.id,
                info.image,
                info.point,
                str(info.cpus),
                size(info.memory),
                str(info.running),
                str(info.sandboxes),
                size(info.disk_bytes),
                size(info.memory_bytes),
            )
            for info in (from_json(TemplateInfo, item) for item in answer)
        ],
    )


@command(
    "build", examples=["hutch template build busybox", "hutch template build -m 1g --cpus 2 debian"]
)
@click.option("--cpus", type=int, metavar="N", help="CPUs of the sandboxes it is for.")
@click.option("-m", "--memory", type=SIZE, metavar="SIZE", help="Memory of the sandboxes.")
@click.option("--kernel", metavar="NAME", help="Kernel to boot, of `hutch kernel ls`.")
@click.argument("image")
@pass_app
def build(
    app: App, /, image: str, cpus: int | None, memory: int | None, kernel: str | None
) -> None:
    """Make the templates of an image now, so that the first start need not.

    Only sandboxes of that size begin as its clones.
    """
    body = {"image": image, "cpus": cpus, "memory": memory, "kernel": kernel}
    with Progress(enabled=not app.json) as progress:
        answer = app.client.work("/v1/templates/build", body, progress)
    if app.json:
        print_json(answer)
    else:
        click.echo(answer["id"])


@command("rm", examples=["hutch template rm 3f2a91c04b7e-a1b2c3"])
@click.argument("ids", nargs=-1, required=True, metavar="ID...")
@pass_app
def remove(app: App, /, ids: tuple[str, ...]) -> int:
    """Remove templates; their sandboxes go on.

    A template is named by its id or the beginning of it.
    """
    return for_each(app, ids, lambda ref: app.client.call("DELETE", "/v1/templates", {"ref": ref}))


@command("prune", examples=["hutch template prune"])
@pass_app
def prune(app: App) -> None:
    """Remove the templates that no sandbox is based on."""
    answer = app.client.call("POST", "/v1/templates/prune")
    if app.json:
        print_json(answer)
        return
    for ref in answer["removed"]:
        click.echo(ref)
    click.echo(f"freed {size(answer['bytes'])}")


for _verb in (list_templates, build, remove, prune):
    template.add_command(_verb)

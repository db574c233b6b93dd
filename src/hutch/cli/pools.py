"""`hutch pool`: warm, status, drain."""

import click

from hutch.cli.app import App
from hutch.cli.options import SIZE, Group, command, example_text, pass_app
from hutch.cli.progress import Progress
from hutch.cli.render import print_json, size, table
from hutch.errors import error
from hutch.models import PoolInfo, from_json


@click.group(
    "pool",
    cls=Group,
    aliases={"ls": "status", "list": "status", "rm": "drain"},
    epilog=example_text(["hutch pool warm --size 3 busybox", "hutch pool status"]),
)
def pool() -> None:
    """Clones that are started and warm before anybody asks for them.

    A new sandbox of that image and size takes one over, and runs at once.
    """


@command(
    "warm",
    examples=["hutch pool warm busybox", "hutch pool warm --size 4 -m 1g --cpus 2 debian"],
)
@click.option("--size", "count", type=int, default=1, metavar="N", help="How many (1).")
@click.option("--cpus", type=int, metavar="N", help="CPUs of the sandboxes it is for.")
@click.option("-m", "--memory", type=SIZE, metavar="SIZE", help="Memory of the sandboxes.")
@click.option("--no-wait", is_flag=True, help="Do not wait until the pool is filled.")
@click.argument("image")
@pass_app
def warm(
    app: App, /, image: str, count: int, cpus: int | None, memory: int | None, no_wait: bool
) -> None:
    """Keep clones of an image ready, from now on.

    They are made again after each restart of the daemon, and take memory while they wait. A pool
    that is there already gets the new size.
    """
    body = {"image": image, "size": count, "cpus": cpus, "memory": memory, "wait": not no_wait}
    with Progress(enabled=not app.json) as progress:
        answer = app.client.work("/v1/pools/warm", body, progress)
    if app.json:
        print_json(answer)
    else:
        click.echo(answer["id"])


@command("status", examples=["hutch pool status"])
@pass_app
def status(app: App) -> None:
    """List pools: how many clones are ready, and how many were claimed."""
    answer = app.client.call("GET", "/v1/pools")
    if app.json:
        print_json(answer)
        return
    infos = [from_json(PoolInfo, item) for item in answer]
    table(
        ["ID", "IMAGE", "CPUS", "MEMORY", "SIZE", "READY", "FILLING", "CLAIMED", "MEMORY USE"],
        [
            (
                info.id,
                info.image,
                str(info.cpus),
                size(info.memory),
                str(info.size),
                str(info.ready),
                str(info.filling),
                str(info.claimed),
                size(info.memory_bytes),
            )
            for info in infos
        ],
    )
    for info in infos:
        if info.error is not None:
            click.echo(f"{info.id}: {info.error.message} ({info.error.code})", err=True)


@command("drain", examples=["hutch pool drain busybox", "hutch pool drain --all"])
@click.option("-a", "--all", "everything", is_flag=True, help="End all pools.")
@click.argument("image", required=False)
@pass_app
def drain(app: App, /, image: str | None, everything: bool) -> None:
    """End the pools of an image with the clones that wait in them. Sandboxes go on."""
    if (image is None) != everything:
        raise error("bad_request", "give either an image or --all")
    answer = app.client.call("DELETE", "/v1/pools", {} if image is None else {"image": image})
    if app.json:
        print_json(answer)
        return
    for pool_id in answer["removed"]:
        click.echo(pool_id)


for _verb in (warm, status, drain):
    pool.add_command(_verb)

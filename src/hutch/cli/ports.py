"""`hutch port`: ls, publish, unpublish. `hutch port NAME` is ls, as container tools have it."""

import click

from hutch.cli.app import App
from hutch.cli.client import sandbox_path
from hutch.cli.options import Group, command, example_text, pass_app, sandbox_argument
from hutch.cli.render import print_json
from hutch.errors import error
from hutch.models import from_json, to_json
from hutch.networking import PublishedPort
from hutch.portspec import parse_host_port, port_list, show_address, show_port


class PortGroup(Group):
    """The noun, whose first word may be a sandbox's name instead of a verb."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Take what is no verb for a name."""
        known = self.get_command(ctx, args[0]) is not None or args[0].startswith("-")
        return super().resolve_command(ctx, args if known else ["ls", *args])


@click.group(
    "port",
    cls=PortGroup,
    aliases={"list": "ls", "add": "publish", "rm": "unpublish", "remove": "unpublish"},
    epilog=example_text(
        ["hutch port web", "hutch port web 80", "hutch port publish web 8080:80"],
    ),
)
def port() -> None:
    """Ports of the host that lead into sandboxes.

    They are open from the start of a sandbox to its stop, also while it is paused or parked: a
    connection wakes it. `hutch port NAME` is `hutch port ls NAME`.
    """


@command("ls", examples=["hutch port ls web", "hutch port ls web 80"])
@sandbox_argument()
@click.argument("guest_port", type=int, required=False)
@pass_app
def list_ports(app: App, name: str, guest_port: int | None) -> None:
    """List what a sandbox publishes.

    With a port of the sandbox, only where on the host that is.
    """
    answer = app.client.call("GET", sandbox_path(name, "ports"))
    ports = [from_json(PublishedPort, item) for item in answer]
    if guest_port is not None:
        ports = [each for each in ports if each.guest_port == guest_port]
        if not ports:
            raise error(
                "port_not_found",
                f"sandbox {name} does not publish its port {guest_port}",
                hint=f"publish it with `hutch port publish {name} {guest_port}`",
            )
    if app.json:
        print_json(to_json(ports))
        return
    for each in ports:
        click.echo(show_port(each) if guest_port is None else show_address(each))
    for each in ports:
        if each.error is not None:
            click.echo(f"{show_address(each)}: {each.error}", err=True)


@command(
    "publish",
    examples=[
        "hutch port publish web 8080:80",
        "hutch port publish web 3000",
        "hutch port publish web 0.0.0.0:8443:443 8000-8009:8000-8009",
    ],
)
@sandbox_argument()
@click.argument("ports", nargs=-1, required=True, metavar="[[IP:]HOST:]GUEST...")
@pass_app
def publish(app: App, name: str, ports: tuple[str, ...]) -> None:
    """Publish more ports of a sandbox.

    At once if it runs, else from its next start on. GUEST alone means any free port of the host,
    which is printed. Without an IP it is the host's loopback.
    """
    body = {"ports": to_json(port_list(ports))}
    answer = app.client.call("POST", sandbox_path(name, "ports"), json=body)
    _print(app, answer)


@command("unpublish", examples=["hutch port unpublish web 8080"])
@sandbox_argument()
@click.argument("ports", nargs=-1, required=True, metavar="[IP:]HOST...")
@pass_app
def unpublish(app: App, name: str, ports: tuple[str, ...]) -> None:
    """Give ports of the host up; connections to them are broken off."""
    gone = []
    for number, address in map(parse_host_port, ports):
        path = sandbox_path(name, f"ports/{number}")
        gone += app.client.call("DELETE", path, {"address": address})
    _print(app, gone)


def _print(app: App, answer: list[object]) -> None:
    if app.json:
        print_json(answer)
        return
    for item in answer:
        click.echo(show_port(from_json(PublishedPort, item)))


for _verb in (list_ports, publish, unpublish):
    port.add_command(_verb)

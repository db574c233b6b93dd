"""`hutch network`: what sandboxes may reach, changed while they run, and what became of it."""

import sys
from typing import Any

import click

from hutch.cli.app import App
from hutch.cli.client import sandbox_path
from hutch.cli.escape import escape
from hutch.cli.grammar import NETWORK
from hutch.cli.netflags import policy_of, rules_of
from hutch.cli.options import Group, command, example_text, pass_app, rows, sandbox_argument
from hutch.cli.render import age, pairs, print_json, print_json_line, size, table
from hutch.errors import error
from hutch.models import from_json, to_json
from hutch.networking import (
    Connection,
    NetworkChange,
    NetworkInfo,
    NetworkMode,
    NetworkPolicy,
    NetworkRecord,
)


@click.group(
    "network",
    cls=Group,
    aliases={"inspect": "show", "logs": "log"},
    epilog=example_text(
        ["hutch network update web --allow db.example.com:5432", "hutch network log -f web"]
    ),
)
def network() -> None:
    """What sandboxes may reach, and what they tried."""


@command("show", examples=["hutch network show web", "hutch network show --json web"])
@sandbox_argument()
@pass_app
def show(app: App, /, name: str) -> None:
    """Show the policy of a sandbox's network, and what it has done so far."""
    answer = app.client.call("GET", sandbox_path(name, "network"))
    if app.json:
        print_json(answer)
    else:
        _print(from_json(NetworkInfo, answer))


def _print(info: NetworkInfo) -> None:
    policy = info.policy
    told = [
        ("sandbox", f"{info.name} ({info.sandbox_id})"),
        ("mode", policy.mode.value + (f" (of {policy.preset})" if policy.preset else "")),
        *(("allow", rule) for rule in policy.allow),
        *(("deny", rule) for rule in policy.deny),
        *(("host port", str(port)) for port in policy.allow_host),
        ("LAN", "yes" if policy.allow_lan else "no"),
        ("attached", "yes" if info.attached else "no"),
    ]
    if info.attached:
        told += [
            ("connections", f"{info.connections} open, {info.connections_total} in all"),
            ("denied", str(info.denied_total)),
            ("look-ups", f"{info.lookups_total}, {info.names} names"),
            ("sent", size(info.sent)),
            ("received", size(info.received)),
        ]
    pairs(told)
    for warning in info.warnings:
        click.echo(escape(f"warning: {warning}"), err=True)


@command(
    "update",
    examples=[
        "hutch network update web --net deny --allow '*.example.com'",
        "hutch network update web --allow db.example.com:5432 --remove api.example.com",
        "hutch network update web --policy ci.toml",
    ],
)
@rows(NETWORK)
@click.option("--remove", multiple=True, metavar="RULE", help="Take a rule out of either list.")
@click.option("--close-host", multiple=True, type=int, metavar="PORT", help="As --allow-host, out.")
@click.option("--no-allow-lan", is_flag=True, help="Close the networks that this host is on.")
@sandbox_argument()
@pass_app
def update(
    app: App,
    /,
    name: str,
    remove: tuple[str, ...],
    close_host: tuple[int, ...],
    no_allow_lan: bool,
    **options: Any,
) -> None:
    """Change what a sandbox may reach, at once, also for what it has open.

    Rules are added to those that it has; only --net changes the mode, and --policy begins anew.
    It holds from then on, over restarts, snapshots and forks.
    """
    change = _change(app, options, remove, close_host, no_allow_lan)
    if change == NetworkChange():
        raise error("bad_request", "nothing is to change", hint="see `hutch network update --help`")
    path = sandbox_path(name, "network")
    answer = app.client.call("PATCH", path, json=to_json(change))
    if app.json:
        print_json(answer)
        return
    _print(from_json(NetworkInfo, answer["network"]))
    if answer["ended"]:
        click.echo(f"{answer['ended']} connections were ended", err=True)


def _change(
    app: App,
    options: dict[str, Any],
    remove: tuple[str, ...],
    close_host: tuple[int, ...],
    no_allow_lan: bool,
) -> NetworkChange:
    if no_allow_lan and options["allow_lan"]:
        raise error("bad_request", "--allow-lan and --no-allow-lan exclude each other")
    lan = True if options["allow_lan"] else False if no_allow_lan else None
    if options["policy"]:
        policy = from_json(NetworkPolicy, policy_of(app, options))
        return NetworkChange(policy, remove=[*remove], close_host=[*close_host], allow_lan=lan)
    rules = rules_of(options)
    return NetworkChange(
        mode=None if rules["mode"] is None else NetworkMode(rules["mode"]),
        allow=rules["allow"],
        deny=rules["deny"],
        allow_host=rules["allow_host"],
        remove=[*remove],
        close_host=[*close_host],
        allow_lan=lan,
    )


@command("log", examples=["hutch network log web", "hutch network log -f --denied web"])
@click.option("-f", "--follow", is_flag=True, help="Go on with what comes.")
@click.option("-n", "--tail", type=click.IntRange(0), metavar="N", help="The last N only.")
@click.option("--since", type=int, metavar="NUMBER", help="From that number on.")
@click.option("--denied", is_flag=True, help="Only what was denied.")
@sandbox_argument()
@pass_app
def log(
    app: App, /, name: str, follow: bool, tail: int | None, since: int | None, denied: bool
) -> None:
    """Show what a sandbox tried to reach, and what became of it.

    With --json, one object a line.
    """
    query = {"follow": follow, "tail": tail, "since": since}
    for line in app.client.lines(sandbox_path(name, "network", "log"), query):
        if denied and line["record"]["allowed"]:
            continue
        if app.json:
            print_json_line(line["record"])
        else:
            click.echo(escape(_line(from_json(NetworkRecord, line["record"]))))
        sys.stdout.flush()


def _line(record: NetworkRecord) -> str:
    target = record.name or record.address or "-"
    if record.name and record.address:
        target = f"{record.name} ({record.address})"
    if record.port is not None:
        target += f":{record.port}"
    words = [
        str(record.number),
        record.at,
        "allowed" if record.allowed else "DENIED ",
        record.layer.value,
        target,
        record.reason.value,
        f"rule={record.rule}" if record.rule else "",
        record.detail,
        record.text,
    ]
    return " ".join(word for word in words if word)


@command("connections", examples=["hutch network connections web"])
@sandbox_argument()
@pass_app
def connections(app: App, /, name: str) -> None:
    """List what a sandbox has open."""
    answer = app.client.call("GET", sandbox_path(name, "network", "connections"))
    if app.json:
        print_json(answer)
        return
    found = [from_json(Connection, item) for item in answer]
    table(
        ["ID", "STATE", "TO", "ADDRESS", "AGE", "SENT", "RECEIVED", "RULE"],
        [
            (
                str(each.id),
                each.state,
                f"{each.name or each.address}:{each.port}",
                each.address,
                age(each.opened_at),
                size(each.sent),
                size(each.received),
                each.rule or "-",
            )
            for each in found
        ],
    )


for _verb in (show, update, log, connections):
    network.add_command(_verb)

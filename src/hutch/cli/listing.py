"""`hutch ps` and `hutch inspect`: what sandboxes there are."""

import shlex
import time
from typing import Any

import click

from hutch.cli.app import App
from hutch.cli.client import sandbox_path
from hutch.cli.failures import write_failure
from hutch.cli.options import command, pass_app, sandbox_argument
from hutch.cli.render import age, duration, print_json, size, table
from hutch.errors import HutchError, error
from hutch.models import SandboxInfo, SandboxState, from_json, parse_timestamp, to_json
from hutch.networking import NetworkPolicy
from hutch.portspec import show_ports
from hutch.reports import HostUsage, SandboxUsage

_FILTERS = {"status": "state", "state": "state", "label": "label", "name": "name", "image": "image"}
_SHORT_ID = 15


def parse_filters(filters: tuple[str, ...]) -> dict[str, Any]:
    """Return `--filter key=value` texts as the query of the list route.

    Raises InvalidInput (bad_request).
    """
    query: dict[str, Any] = {}
    for text in filters:
        key, equals, value = text.partition("=")
        if key not in _FILTERS or not equals or not value:
            known = ", ".join(_FILTERS)
            raise error(
                "bad_request", f"{text!r} is no filter", hint=f"write KEY=VALUE; keys are {known}"
            )
        field = _FILTERS[key]
        if field == "state" and value not in set(SandboxState):
            states = ", ".join(SandboxState)
            raise error("bad_request", f"{value!r} is no status", hint=f"it is one of {states}")
        if field in ("state", "label"):
            query.setdefault(field, []).append(value)
        elif field in query:
            raise error("bad_request", f"the filter {key} may be given once")
        else:
            query[field] = value
    if "state" in query:
        query["all"] = True
    return query


@command(
    "ps",
    examples=[
        "hutch ps -a",
        "hutch ps -s",
        "hutch ps -q --filter label=team=web",
        "hutch rm -f $(hutch ps -aq)",
    ],
)
@click.option("-a", "--all", "everything", is_flag=True, help="Stopped ones too.")
@click.option("-q", "--quiet", is_flag=True, help="Print ids only.")
@click.option("-s", "--size", "sizes", is_flag=True, help="What each takes of memory and disk.")
@click.option(
    "-f",
    "--filter",
    "filters",
    multiple=True,
    metavar="KEY=VALUE",
    help="status, label, name or image; may be repeated.",
)
@click.option("--no-trunc", is_flag=True, help="Print whole ids and commands.")
@pass_app
def ps(
    app: App,
    everything: bool,
    quiet: bool,
    sizes: bool,
    filters: tuple[str, ...],
    no_trunc: bool,
) -> None:
    """List sandboxes; the stopped ones too with -a."""
    query = parse_filters(filters)
    query["all"] = everything or query.get("all", False)
    answer = app.client.call("GET", "/v1/sandboxes", query)
    usage = _usage(app) if sizes and not quiet else {}
    if app.json:
        for info in answer if usage else ():
            info["usage"] = to_json(usage.get(info["id"]))
        print_json([info["id"] for info in answer] if quiet else answer)
        return
    infos = [from_json(SandboxInfo, item) for item in answer]
    if quiet:
        for info in infos:
            click.echo(info.id)
        return
    headers = ["ID", "NAME", "IMAGE", "STATUS", "LIMITS", "CPUS", "MEMORY", "CREATED", "COMMAND"]
    if sizes:
        headers[-1:-1] = ["MEM", "ON DISK"]
    ports = any(info.ports for info in infos)
    if ports:
        headers[-1:-1] = ["PORTS"]
    # What all have unless they were asked for something else is not worth a column.
    networks = any(info.network != NetworkPolicy() for info in infos)
    if networks:
        headers[5:5] = ["NETWORK"]
    table(
        headers,
        [
            (
                info.id if no_trunc else info.id[:_SHORT_ID],
                info.name,
                info.image,
                status(info),
                limits(info),
                *((_network(info.network),) if networks else ()),
                str(info.cpus),
                size(info.memory),
                age(info.created_at),
                *(_taken(usage.get(info.id)) if sizes else ()),
                *((show_ports(info.ports) or "-",) if ports else ()),
                _command(info),
            )
            for info in infos
        ],
        flexible=None if no_trunc else len(headers) - 1,
    )


def _usage(app: App) -> dict[str, SandboxUsage]:
    usage = from_json(HostUsage, app.client.call("GET", "/v1/usage"))
    return {each.id: each for each in usage.sandboxes}


def _taken(usage: SandboxUsage | None) -> tuple[str, str]:
    # None: it was removed while we looked.
    return ("-", "-") if usage is None else (size(usage.memory or None), size(usage.disk))


def _network(policy: NetworkPolicy) -> str:
    rules = len(policy.allow) + len(policy.deny) + len(policy.allow_host) + policy.allow_lan
    name = policy.preset or policy.mode.value
    return f"{name} + {rules} rules" if rules and not policy.preset else name


def _command(info: SandboxInfo) -> str:
    return "(idle)" if info.idle else shlex.join(info.command)


def status(info: SandboxInfo) -> str:
    """Return the state with what matters about it: since when, or how it ended."""
    if info.state is SandboxState.RUNNING:
        return f"running {age(info.started_at)}"
    if info.state is SandboxState.FAILED and info.error is not None:
        return f"failed ({info.error.code})"
    if info.exit is None:
        return info.state.value
    reason = info.exit.reason.value
    code = "" if info.exit.code is None else f" {info.exit.code}"
    return f"{info.state.value} ({reason}{code}) {age(info.ended_at)}"


def limits(info: SandboxInfo) -> str:
    """Return when it will end by itself, and what is done with it when nobody uses it."""
    parts = []
    if info.timeout_at is not None:
        left = max(0.0, parse_timestamp(info.timeout_at) - time.time())
        parts.append(f"stop in {duration(left)}")
    if info.idle_timeout > 0:
        parts.append(f"{info.idle_action} if idle {duration(info.idle_timeout)}")
    return ", ".join(parts) or "-"


@command("inspect", examples=["hutch inspect web", "hutch inspect web db | jq '.[].state'"])
@sandbox_argument("names", nargs=-1, required=True, metavar="NAME...")
@pass_app
def inspect(app: App, names: tuple[str, ...]) -> int:
    """Print all about sandboxes, as a JSON list."""
    infos: list[Any] = []
    failures: list[HutchError] = []
    for name in names:
        try:
            infos.append(app.client.call("GET", sandbox_path(name)))
        except HutchError as cause:
            failures.append(app.explain(cause))
    if failures and app.json:
        raise failures[0]
    print_json(infos)
    for failure in failures:
        write_failure(failure)
    return HutchError.exit_code if failures else 0

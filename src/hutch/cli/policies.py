"""`hutch policy`: ls, show, check. All of it is done here: no daemon is asked."""

from ipaddress import ip_network
from pathlib import Path
from typing import Any

import click

from hutch.cli.app import App
from hutch.cli.escape import escape
from hutch.cli.grammar import NETWORK
from hutch.cli.netflags import POLICY_DIRECTORY, policy_of
from hutch.cli.options import Group, command, example_text, pass_app, rows
from hutch.cli.render import pairs, print_json, table
from hutch.models import from_json, to_json
from hutch.network.dns.client import host_domains
from hutch.network.policy import Rules
from hutch.network.presets import BUILT_IN, Preset, is_reference, known, load
from hutch.network.routes import Routes
from hutch.network.targets import Target, judge, parse_target
from hutch.networking import Decision, NetworkMode, NetworkPolicy


@click.group(
    "policy",
    cls=Group,
    aliases={"list": "ls", "inspect": "show", "test": "check"},
    epilog=example_text(
        ["hutch policy ls", "hutch policy check ci.toml https://example.com/ 10.0.0.1:22"]
    ),
)
def policy() -> None:
    """Network policies: those that have a name, and what they would decide."""


@command("ls", examples=["hutch policy ls"])
@pass_app
def list_policies(app: App) -> None:
    """List the policies that have a name: built in, or in files.

    Files are those of the directory `policies` in the home.
    """
    found = known(_directory(app))
    if app.json:
        print_json(found)
        return
    table(
        ["NAME", "MODE", "ALLOW", "DENY", "HOST PORTS", "LAN", "ORIGIN"],
        [_row(preset) for preset in found],
        flexible=6,
    )
    for preset in found:
        if preset.error is not None:
            click.echo(escape(f"{preset.reference}: {preset.error}"), err=True)


def _row(preset: Preset) -> tuple[str, ...]:
    known_policy = preset.policy
    if known_policy is None:
        return (preset.reference, "broken", "-", "-", "-", "-", preset.origin)
    return (
        preset.reference,
        known_policy.mode.value,
        str(len(known_policy.allow)),
        str(len(known_policy.deny)),
        ", ".join(map(str, known_policy.allow_host)) or "-",
        "yes" if known_policy.allow_lan else "no",
        preset.origin,
    )


@command("show", examples=["hutch policy show public", "hutch policy show --json ./ci.toml#tests"])
@click.argument("reference", metavar="NAME|FILE[#PRESET]")
@pass_app
def show(app: App, /, reference: str) -> None:
    """Show a policy, with all that it extends."""
    found = load(reference, _directory(app))
    if app.json:
        print_json(found)
        return
    pairs(
        [
            ("mode", found.mode.value),
            *(("allow", rule) for rule in found.allow),
            *(("deny", rule) for rule in found.deny),
            *(("host port", str(port)) for port in found.allow_host),
            ("LAN", "yes" if found.allow_lan else "no"),
        ]
    )
    _warn(Rules.of(found))


@command(
    "check",
    examples=[
        "hutch policy check example.com 10.0.0.1:22",
        "hutch policy check ./ci.toml https://example.com/ db.example.com:5432",
        "hutch policy check --allow '*.example.com' www.example.com",
    ],
)
@rows(NETWORK)
@click.argument("words", nargs=-1, metavar="[NAME|FILE] [TARGET]...")
@pass_app
def check(app: App, /, words: tuple[str, ...], **options: Any) -> int:
    """Tell what a policy decides, and why.

    Targets are NAME[:PORT], IP[:PORT] or URLs; the exit code is 1 if one is denied. A first word
    that is a path, or has no dot, is the policy; otherwise it is that of a sandbox without flags.
    Names are not looked up: one that is allowed still has to have an address that is.
    """
    if options["policy"] is None and words and _is_policy(words[0]):
        options["policy"], words = words[0], words[1:]
    asked = policy_of(app, options)
    found = (
        NetworkPolicy(NetworkMode(app.settings.network))
        if asked is None
        else from_json(NetworkPolicy, asked)
    )
    rules = Rules.of(found, host_domains())
    targets = [parse_target(word) for word in words]
    routes = Routes([ip_network(text) for text in app.settings.network_public_routes])
    verdicts = [(target, judge(rules, routes, target)) for target in targets]
    if app.json:
        print_json(
            {
                "policy": to_json(found),
                "warnings": rules.warnings(),
                "targets": [_verdict(*pair) for pair in verdicts],
            }
        )
    else:
        _print(found, verdicts)
        _warn(rules)
    return 0 if all(decision.allowed for _, decision in verdicts) else 1


def _is_policy(word: str) -> bool:
    """Return whether a first word names a policy; names without a dot can, being no targets."""
    return word in BUILT_IN or is_reference(word) or not set(word) & set(".:[")


def _verdict(target: Target, decision: Decision) -> dict[str, Any]:
    return {
        "target": target.text,
        "name": target.name,
        "address": None if target.address is None else str(target.address),
        "port": target.port,
        **to_json(decision),
    }


def _print(found: NetworkPolicy, verdicts: list[tuple[Target, Decision]]) -> None:
    if not verdicts:
        rules = f"{len(found.allow)} rules allow, {len(found.deny)} deny"
        click.echo(escape(f"{found.preset or 'the policy'} is right: {found.mode}, {rules}"))
        return
    table(
        ["TARGET", "PORT", "VERDICT", "REASON", "RULE", "WHY"],
        [
            (
                target.text,
                str(target.port),
                "allowed" if decision.allowed else "denied",
                decision.reason.value,
                decision.rule or "-",
                decision.text,
            )
            for target, decision in verdicts
        ],
    )
    for target, decision in verdicts:
        if decision.hint is not None and not decision.allowed:
            click.echo(escape(f"{target.text}: {decision.hint}"), err=True)


def _warn(rules: Rules) -> None:
    for warning in rules.warnings():
        click.echo(escape(f"warning: {warning}"), err=True)


def _directory(app: App) -> Path:
    directory: Path = app.settings.home / POLICY_DIRECTORY
    return directory


for _verb in (list_policies, show, check):
    policy.add_command(_verb)

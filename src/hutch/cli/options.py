"""What click commands share: the command class with --json, value types, rows made options.

Values are checked here, before the daemon hears of them. Knows no command.
"""

from collections.abc import Callable, Sequence
from typing import Any

import click

from hutch.cli.app import App
from hutch.cli.grammar import JSON, Option, Verb
from hutch.errors import InvalidInput, error
from hutch.settings import parse_duration, parse_size

pass_app = click.make_pass_decorator(App, ensure=True)


def _use_json(ctx: click.Context, _param: click.Parameter, value: bool) -> None:
    if value:
        ctx.ensure_object(App).json = True


def json_option(help_text: str = JSON.help) -> click.Option:
    """Return the option --json, which sets the App's mode."""
    return click.Option(
        ["--json"],
        is_flag=True,
        expose_value=False,
        is_eager=True,
        callback=_use_json,
        help=help_text,
    )


class Command(click.Command):
    """A command that has --json."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.params.append(json_option())


class Group(click.Group):
    """A noun with verbs; its commands have --json, and its aliases stay out of the help."""

    command_class = Command

    def __init__(self, *args: Any, aliases: dict[str, str] | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.params.append(json_option())
        self.aliases = aliases or {}

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return a verb by its name or alias."""
        return super().get_command(ctx, self.aliases.get(cmd_name, cmd_name))


def command(
    name: str, *, examples: Sequence[str] = (), verbatim: bool = False
) -> Callable[[Callable[..., Any]], Command]:
    """Declare a command.

    `examples` are command lines for the help. `verbatim` ends options at the first argument: what
    follows belongs to the program in the sandbox.
    """
    return click.command(
        name,
        cls=Command,
        epilog=example_text(examples),
        context_settings={"allow_interspersed_args": False} if verbatim else None,
    )


def example_text(examples: Sequence[str]) -> str | None:
    """Return the part of a help text that shows command lines."""
    if not examples:
        return None
    return "\b\nExamples:\n" + "\n".join(f"  {line}" for line in examples)


class _Parsed(click.ParamType[Any]):
    def __init__(self, name: str, parse: Callable[[str], Any]) -> None:
        self.name = name
        self._parse = parse

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str):
            return value
        try:
            return self._parse(value)
        except InvalidInput as cause:
            flag = param.opts[-1] if param is not None and param.opts else self.name
            raise error(
                cause.code, f"{flag}: {cause.message}", hint=cause.hint, details=cause.details
            ) from None


SIZE = _Parsed("size", parse_size)
DURATION = _Parsed("duration", parse_duration)
_TYPES: dict[str, Any] = {"text": str, "int": int, "size": SIZE, "duration": DURATION}


def complete_sandboxes(ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[str]:
    """Return the sandbox names that begin so; none where no daemon runs."""
    from hutch.cli.quick import running_daemon

    home = ctx.find_root().ensure_object(App).flags.get("home")
    connection = running_daemon(home)
    if connection is None:
        return []
    with connection:
        infos = connection.request("GET", "/v1/sandboxes", {"all": True}, timeout=2).json()
    return [info["name"] for info in infos if info["name"].startswith(incomplete)]


def sandbox_argument(name: str = "name", **attributes: Any) -> Callable[[Any], Any]:
    """Declare an argument that names sandboxes, which shells can complete."""
    return click.argument(name, shell_complete=complete_sandboxes, **attributes)


def click_option(row: Option) -> click.Option:
    """Return a row of grammar.py as an option of click."""
    if row.metavar is None:
        return click.Option([*row.flags, row.dest], is_flag=True, help=row.help)
    return click.Option(
        [*row.flags, row.dest],
        type=click.Choice(row.choices) if row.choices else _TYPES[row.kind],
        multiple=row.multiple,
        metavar=row.metavar,
        help=row.help,
    )


def rows(*groups: Sequence[Option]) -> Callable[[Any], Any]:
    """Return a decorator that adds rows of grammar.py to a command."""

    def add(function: Any) -> Any:
        wanted = [row for group in groups for row in group]
        for row in reversed(wanted):
            function.__dict__.setdefault("__click_params__", []).append(click_option(row))
        return function

    return add


def verb_command(verb: Verb) -> Command:
    """Return a verb of grammar.py as a command of click."""

    def callback(**values: Any) -> int:
        app = click.get_current_context().ensure_object(App)
        positional, words = values.pop(verb.positional), values.pop("words")
        return verb.handler(app, values, positional, words)

    words = verb.words if verb.needs_words else f"[{verb.words}]"
    return Command(
        verb.name,
        callback=callback,
        help=verb.handler.__doc__,
        epilog=example_text(verb.examples),
        context_settings={"allow_interspersed_args": False},
        params=[
            *(click_option(row) for row in verb.options),
            click.Argument(
                [verb.positional],
                shell_complete=complete_sandboxes if verb.positional == "name" else None,
            ),
            click.Argument(
                ["words"],
                nargs=-1,
                required=verb.needs_words,
                type=click.UNPROCESSED,
                metavar=words,
            ),
        ],
    )

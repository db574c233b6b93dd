"""What commands share in parsing: the command class with --json, value types, common options.

Values are checked here, before the daemon hears of them. Knows no command.
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import click

from hutch.cli.app import App
from hutch.errors import InvalidInput, error
from hutch.settings import parse_duration, parse_size

F = TypeVar("F", bound=Callable[..., Any])


def _use_json(ctx: click.Context, _param: click.Parameter, value: bool) -> None:
    if value:
        ctx.ensure_object(App).json = True


class Command(click.Command):
    """A command that has --json."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.params.append(
            click.Option(
                ["--json"],
                is_flag=True,
                expose_value=False,
                is_eager=True,
                callback=_use_json,
                help="Print JSON.",
            )
        )


class Group(click.Group):
    """A noun with verbs; its commands have --json, and its aliases stay out of the help."""

    command_class = Command

    def __init__(self, *args: Any, aliases: dict[str, str] | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
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


def parse_env(text: str) -> tuple[str, str | None]:
    """Return the name and value of `K=V`; of `K` alone, None: the value is this process's own.

    Raises InvalidInput (bad_request).
    """
    name, equals, value = text.partition("=")
    if not name or "\0" in text or any(c.isspace() for c in name):
        raise error("bad_request", f"{text!r} is no variable", hint="write it like NAME=VALUE")
    return name, value if equals else None


def collect_env(variables: Sequence[str], files: Sequence[str]) -> dict[str, str]:
    """Return the variables of `--env-file`s, then of `-e`s; later ones win.

    A name without a value takes it from this process, and is left out where it has none. Lines
    of a file that are empty or begin with # are skipped. Raises InvalidInput (bad_request).
    """
    out: dict[str, str] = {}
    texts: list[str] = []
    for path in files:
        texts += _env_lines(path)
    import os

    for text in [*texts, *variables]:
        name, value = parse_env(text)
        value = os.environ.get(name) if value is None else value
        if value is not None:
            out[name] = value
    return out


def _env_lines(path: str) -> list[str]:
    try:
        with open(path, encoding="utf-8-sig") as file:
            lines = file.read().splitlines()
    except (OSError, UnicodeDecodeError) as cause:
        reason = cause.strerror if isinstance(cause, OSError) else "it is not UTF-8"
        raise error("bad_request", f"--env-file {path}: {reason}") from cause
    stripped = (line.lstrip() for line in lines)
    return [line for line in stripped if line and not line.startswith("#")]


def parse_labels(labels: Sequence[str]) -> dict[str, str]:
    """Return labels given as `k=v` or `k`. Raises InvalidInput (bad_request)."""
    out = {}
    for text in labels:
        name, _, value = text.partition("=")
        if not name:
            raise error("bad_request", f"{text!r} is no label", hint="write it like KEY=VALUE")
        out[name] = value
    return out


def env_options(function: F) -> F:
    """Add -e and --env-file; the command gets `env` and `env_file`, for `collect_env`."""
    function = click.option(
        "--env-file", multiple=True, metavar="FILE", help="Read variables from a file of lines K=V."
    )(function)
    return click.option(
        "-e",
        "--env",
        multiple=True,
        metavar="K=V",
        help="Set a variable; K alone passes this shell's own on.",
    )(function)


def user_options(function: F) -> F:
    """Add -w and -u; the command gets `workdir` and `user`."""
    function = click.option(
        "-u", "--user", metavar="USER[:GROUP]", help="User, by name or number."
    )(function)
    return click.option("-w", "--workdir", metavar="DIR", help="Working directory.")(function)

"""`hutch config`: the settings in force, where each comes from, and writing the file."""

import os
import tempfile
from pathlib import Path
from typing import Any

import click

from hutch.cli.app import App
from hutch.cli.options import Group, command, example_text, pass_app
from hutch.cli.render import print_json, table
from hutch.errors import error
from hutch.settings import SETTINGS, Setting, config_path, resolve_settings


@click.group(
    "config",
    cls=Group,
    invoke_without_command=True,
    epilog=example_text(["hutch config", "hutch config get memory", "hutch config set memory 1g"]),
)
@click.pass_context
def config(ctx: click.Context) -> None:
    """Settings in force, and the file that holds them.

    A value comes from a flag, a HUTCH_* variable, the file, or the default, in this order.
    """
    if ctx.invoked_subcommand is None:
        ctx.invoke(show)


def _plain(value: Any) -> Any:
    """Return a setting's value as JSON."""
    if isinstance(value, Path):
        return str(value)
    return list(value) if isinstance(value, tuple) else value


def _text(value: Any) -> str:
    plain = _plain(value)
    if isinstance(plain, bool):
        return "true" if plain else "false"
    return ",".join(plain) if isinstance(plain, list) else str(plain)


@command("show", examples=["hutch config show"])
@pass_app
def show(app: App) -> None:
    """Print every setting, its value, and where that comes from."""
    found = resolve_settings(app.parsed_flags())
    if app.json:
        print_json({k: {"value": _plain(v), "origin": origin} for k, (v, origin) in found.items()})
        return
    rows = [(row.key, _text(found[row.key][0]), found[row.key][1], row.help) for row in SETTINGS]
    table(["SETTING", "VALUE", "FROM", "MEANING"], rows, flexible=3)


@command("path", examples=["hutch config path"])
@pass_app
def path(app: App) -> None:
    """Print the path of the file, whether or not it exists."""
    if app.json:
        print_json({"path": str(config_path()), "exists": config_path().is_file()})
    else:
        click.echo(config_path())


def _row(key: str) -> Setting:
    row = next((row for row in SETTINGS if row.key == key.replace("-", "_")), None)
    if row is None:
        raise error("bad_setting", f"there is no setting {key!r}", hint="see `hutch config`")
    return row


@command("get", examples=["hutch config get memory"])
@click.argument("key")
@pass_app
def get(app: App, /, key: str) -> None:
    """Print the value of a setting."""
    row = _row(key)
    value, origin = resolve_settings(app.parsed_flags())[row.key]
    if app.json:
        print_json({"key": row.key, "value": _plain(value), "origin": origin})
    else:
        click.echo(_text(value))


@command(
    "set", examples=["hutch config set memory 1g", "hutch config set registry_mirrors a=b,c=d"]
)
@click.argument("key")
@click.argument("value")
@pass_app
def set_value(app: App, /, key: str, value: str) -> None:
    """Write a setting to the file.

    A running daemon takes it at its next start.
    """
    row = _row(key)
    target = config_path()
    parsed = row.read(value, row.key)
    try:
        text = target.read_text("utf-8") if target.is_file() else ""
        target.parent.mkdir(parents=True, exist_ok=True)
        _replace(target, with_setting(text, row.key, _toml(parsed, value)))
    except OSError as cause:
        raise error("bad_setting", f"{target} cannot be written: {cause.strerror}") from cause
    if app.json:
        print_json({"key": row.key, "value": _plain(parsed), "path": str(target)})


def _toml(parsed: Any, text: str) -> str:
    """Return a value as TOML; sizes and durations stay as they were written."""
    import json

    if isinstance(parsed, bool):
        return "true" if parsed else "false"
    if isinstance(parsed, tuple):
        return json.dumps(list(parsed), ensure_ascii=False)
    if isinstance(parsed, int) and text.strip().isdigit():
        return text.strip()
    # A JSON string is a TOML basic string, but for DEL, which neither key nor value has.
    return json.dumps(text, ensure_ascii=False)


def with_setting(text: str, key: str, value: str) -> str:
    """Return the file's text with one key set, all else (comments too) as it was."""
    lines = text.splitlines()
    line = f"{key} = {value}"
    for at, old in enumerate(lines):
        if old.split("=")[0].strip() == key:
            lines[at] = line
            break
    else:
        lines.append(line)
    return "\n".join(lines) + "\n"


def _replace(target: Path, text: str) -> None:
    """Write a file whole or not at all, and only if it is still valid TOML."""
    import tomllib

    try:
        tomllib.loads(text)
    except tomllib.TOMLDecodeError as cause:
        raise error(
            "bad_setting", f"{target} is no valid TOML: {cause}", hint="mend or remove it first"
        ) from cause
    fd, temporary = tempfile.mkstemp(dir=target.parent, prefix=".config-")
    try:
        with os.fdopen(fd, "w", encoding="utf-8") as file:
            file.write(text)
        os.replace(temporary, target)
    except OSError:
        os.unlink(temporary)
        raise


for _verb in (show, path, get, set_value):
    config.add_command(_verb)

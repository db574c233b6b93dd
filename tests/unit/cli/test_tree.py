"""The tree of commands as a whole: every one loads, has its help, its JSON, and its place."""

import json

import click
import pytest

from hutch.cli.main import execute
from hutch.cli.tree import ALIASES, SECTIONS, cli
from hutch.errors import EXIT_HUTCH

NAMES = [name for section in SECTIONS.values() for name in section]


def walk(command: click.Command, path: str) -> list[tuple[str, click.Command]]:
    context = click.Context(command, info_name=path)
    found = [(path, command)]
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            inner = command.get_command(context, name)
            assert inner is not None
            found += walk(inner, f"{path} {name}")
    return found


ALL = walk(cli, "hutch")
LEAVES = [(path, found) for path, found in ALL if not isinstance(found, click.Group)]


def test_the_commands_of_the_issue() -> None:
    asked = """run create start stop restart pause park resume kill rm ps exec shell attach logs cp
        upload download inspect stats top wait rename snapshot restore fork checkpoint
        checkpoints undo image kernel template pool doctor daemon config events version
        completion diff network policy port"""
    assert set(asked.split()) == set(NAMES)
    assert {"list", "ls", "connect", "delete", "remove", "images"} <= set(ALIASES)


@pytest.mark.parametrize(("path", "found"), ALL, ids=[path for path, _ in ALL])
def test_help(path: str, found: click.Command, capsys: pytest.CaptureFixture[str]) -> None:
    assert execute([*path.split()[1:], "--help"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith(f"Usage: {path}")
    assert found.help
    assert "..." not in found.get_short_help_str(70), "its first sentence is too long"


@pytest.mark.parametrize(("path", "found"), LEAVES, ids=[path for path, _ in LEAVES])
def test_every_command_has_json_and_examples(path: str, found: click.Command) -> None:
    flags = {flag for param in found.params for flag in param.opts}
    assert "--json" in flags
    assert "Examples:" in (found.epilog or "")
    assert f"{path} " in f"{found.epilog} ".replace("\n", " ")


@pytest.mark.parametrize("alias", ALIASES)
def test_aliases(alias: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert execute([alias, "--help"]) == 0
    assert capsys.readouterr().out.startswith(f"Usage: hutch {alias}")


def test_unknown_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert execute(["exce"]) == EXIT_HUTCH
    assert capsys.readouterr().err == (
        "hutch: there is no command 'exce' (bad_request)\nhint: did you mean `hutch exec`?\n"
    )


def test_mistakes_with_json_wherever_it_stands(capsys: pytest.CaptureFixture[str]) -> None:
    for args in (["--json", "ps", "-x"], ["ps", "-x", "--json"], ["image", "pull", "--json"]):
        assert execute(args) == EXIT_HUTCH
        out, err = capsys.readouterr()
        assert json.loads(out)["error"]["code"] == "bad_request"
        assert err == ""


def test_nothing_is_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert execute([]) == 0
    assert capsys.readouterr().out.startswith("Usage: hutch")
    assert execute(["image"]) == 0

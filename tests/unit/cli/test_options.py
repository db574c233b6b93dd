"""Shared parts of click commands."""

import click
import pytest

from hutch.cli.grammar import Option
from hutch.cli.options import DURATION, SIZE, click_option, command, example_text
from hutch.errors import InvalidInput


def test_values_of_types() -> None:
    assert SIZE.convert("1g", None, None) == 1 << 30
    assert DURATION.convert("1m", None, None) == 60
    assert SIZE.convert(5, None, None) == 5


def test_wrong_values_name_their_flag() -> None:
    option = click.Option(["-m", "--memory"])
    with pytest.raises(InvalidInput, match="--memory: 'much'") as caught:
        SIZE.convert("much", option, None)
    assert caught.value.code == "bad_size"


def test_rows_become_options() -> None:
    flag = click_option(Option(("-i", "--in"), "inner", "Help."))
    assert (flag.name, flag.is_flag, flag.opts) == ("inner", True, ["-i", "--in"])
    many = click_option(Option(("-e",), "env", "Help.", "K=V", multiple=True))
    assert (many.multiple, many.metavar) == (True, "K=V")


def test_commands_have_json_and_examples() -> None:
    @command("do", examples=["hutch do"], verbatim=True)
    def do() -> None:
        """Do it."""

    assert [param.name for param in do.params] == ["json"]
    assert do.context_settings == {"allow_interspersed_args": False}
    assert do.epilog == example_text(["hutch do"]) == "\b\nExamples:\n  hutch do"
    assert example_text([]) is None

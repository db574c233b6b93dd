"""The quick reader against click: what one understands, the other understands alike."""

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hutch.cli.exec import EXEC
from hutch.cli.grammar import Verb, read
from hutch.cli.options import verb_command
from hutch.cli.run import RUN
from hutch.errors import HutchError

WORDS = st.sampled_from(
    ["-i", "-t", "-it", "-d", "-e", "A=1", "-eA=2", "--env", "--env=B=", "--timeout", "5s",
     "--json", "--timeout=1m", "-w/x", "-u", "root", "box", "ls", "-x", "--", "-", "", "--nope",
     "--rm", "-m", "1g", "--pull", "never", "--cpus", "2", "x", "-h", "-tie", "--memory=9q",
     "--tty=1"]
)  # fmt: skip


def by_click(verb: Verb, args: list[str]) -> dict[str, object] | None:
    seen: dict[str, object] = {}

    def handler(app: object, values: dict[str, object], first: str, words: object) -> int:
        seen.update(values | {"first": first, "words": words})
        return 0

    found = verb_command(verb._replace(handler=handler))
    try:
        with found.make_context(verb.name, list(args)) as ctx:
            found.invoke(ctx)
            seen["json"] = ctx.obj is not None and ctx.obj.json
    except (click.ClickException, click.exceptions.Exit, HutchError):
        return None
    return seen


@pytest.mark.parametrize("verb", [EXEC, RUN], ids=["exec", "run"])
@given(args=st.lists(WORDS, max_size=8))
def test_both_readers_agree(verb: Verb, args: list[str]) -> None:
    line = read(verb, args)
    if line is not None:
        mine = line.values | {"first": line.positional, "words": line.words}
        assert by_click(verb, args) == mine


@pytest.mark.parametrize("verb", [EXEC, RUN], ids=["exec", "run"])
def test_the_quick_reader_leaves_nothing_usual_to_click(verb: Verb) -> None:
    for option in verb.options:
        value = {"int": "2", "size": "1g", "duration": "5s"}.get(option.kind, "a=b")
        value = option.choices[0] if option.choices else value
        for flag in option.flags:
            args = [flag, *([value] if option.metavar else []), "box", "true"]
            assert read(verb, args) is not None, args


@pytest.mark.parametrize("args", [[], ["box"], ["-e"], ["--timeout", "soon", "box", "true"]])
def test_mistakes_are_left_to_click(args: list[str]) -> None:
    assert read(EXEC, args) is None

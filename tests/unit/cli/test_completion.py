"""Completion: scripts for each shell, and what they ask."""

import pytest

from tests.unit.cli.conftest import Cli


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_scripts(hutch: Cli, shell: str) -> None:
    assert b"_HUTCH_COMPLETE" in hutch("completion", shell).stdout


def ask(hutch: Cli, words: str) -> list[str]:
    env = hutch.env | {"_HUTCH_COMPLETE": "bash_complete", "COMP_WORDS": words}
    env["COMP_CWORD"] = str(len(words.split(" ")) - 1)
    lines = hutch(env=env).stdout.decode().splitlines()
    return [line.partition(",")[2] for line in lines]


def test_answers(hutch: Cli) -> None:
    assert ask(hutch, "hutch ex") == ["exec"]
    assert ask(hutch, "hutch image p") == ["prune", "pull"]
    assert "--timeout" in ask(hutch, "hutch exec --t")
    assert ask(hutch, "hutch run --pull n") == ["never"]


def test_answers_names_of_sandboxes(hutch: Cli) -> None:
    assert ask(hutch, "hutch exec b") == ["box"]
    assert ask(hutch, "hutch stop bo") == ["box"]

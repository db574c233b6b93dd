"""Completion: scripts for each shell, and what they ask."""

import os
import shlex
import subprocess
from pathlib import Path

import pytest

from tests.unit.cli.conftest import HUTCH, Cli


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_scripts(hutch: Cli, shell: str) -> None:
    assert b"_HUTCH_COMPLETE" in hutch("completion", shell).stdout


@pytest.fixture
def env(hutch: Cli, tmp_path: Path) -> dict[str, str]:
    """An environment with `hutch` on its PATH, and no shell's own files."""
    program = tmp_path / "hutch"
    program.write_text(f'#!/bin/sh\nexec {shlex.join(HUTCH)} "$@"\n')
    program.chmod(0o755)
    return hutch.env | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "HOME": str(tmp_path)}


def test_fish_completes_with_it(env: dict[str, str]) -> None:
    argv = ["fish", "-c", "hutch completion fish | source; complete -C 'hutch exec bo'"]
    done = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split() == ["box"], done.stderr


def test_zsh_takes_it(env: dict[str, str], tmp_path: Path) -> None:
    script = f"""
        autoload -U compinit && compinit -u -d {tmp_path}/dump
        eval "$(hutch completion zsh)" && print $_comps[hutch] && whence -w $_comps[hutch]
    """
    argv = ["zsh", "-fec", script]
    done = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=60, check=True)
    name, kind = done.stdout.splitlines()
    assert kind == f"{name}: function", done.stderr


def test_bash_completes_with_it(env: dict[str, str]) -> None:
    script = """
        eval "$(hutch completion bash)" && complete -p hutch
        COMP_WORDS=(hutch exec bo) COMP_CWORD=2
        _hutch_completion hutch && printf '%s\n' "${COMPREPLY[@]}"
    """
    argv = ["bash", "--norc", "-euc", script]
    done = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.splitlines() == ["complete -o nosort -F _hutch_completion hutch", "box"]
    assert done.stderr == ""


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
    assert ask(hutch, "hutch cp some") == ["some"]  # of the kind `file`: the shell's own business


def test_answers_names_of_sandboxes(hutch: Cli) -> None:
    assert ask(hutch, "hutch exec b") == ["box"]
    assert ask(hutch, "hutch stop bo") == ["box"]

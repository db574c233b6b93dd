"""Options of the hot commands as plain rows, and a parser for command lines without mistakes.

One declaration, two readers: `read` here, for speed, and options.py, which makes click commands of
the same rows for help, completion and every error. What `read` does not understand is None, and
click then says what is wrong with it. Imports nothing of click, which costs 24 ms.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from hutch.errors import InvalidInput


class Option(NamedTuple):
    """One option: `flags` like ("-e", "--env"), `dest` its key among the values.

    `metavar` None makes it a flag; `kind` is text, int, size or duration; `choices` limits text.
    """

    flags: tuple[str, ...]
    dest: str
    help: str
    metavar: str | None = None
    multiple: bool = False
    kind: str = "text"
    choices: tuple[str, ...] = ()


class Verb(NamedTuple):
    """A command: options, one positional argument, then words that are taken verbatim.

    `handler` gets the App, the values by `dest`, the positional and the words; its docstring is
    the help. `words` is the metavar of the words, which may be none unless `needs_words`.
    """

    name: str
    handler: Callable[..., int]
    options: tuple[Option, ...]
    positional: str
    words: str
    needs_words: bool
    examples: tuple[str, ...]


JSON = Option(("--json",), "json", "Print JSON.")

ENVIRONMENT = (
    Option(
        ("-e", "--env"),
        "env",
        "Set a variable; K alone passes this shell's own on.",
        "K=V",
        multiple=True,
    ),
    Option(
        ("--env-file",),
        "env_file",
        "Read variables from a file of lines K=V.",
        "FILE",
        multiple=True,
    ),
)

USER = (
    Option(("-w", "--workdir"), "workdir", "Working directory.", "DIR"),
    Option(("-u", "--user"), "user", "User, by name or number.", "USER[:GROUP]"),
)


NETWORK = (
    Option(
        ("--net",),
        "net",
        "What it reaches of what no rule names: public (default), deny, open or none.",
        "MODE",
        choices=("public", "deny", "open", "none"),
    ),
    Option(
        ("--allow",),
        "allow",
        "What it may reach: a name (*.NAME: those below), an IP or a CIDR. In a new sandbox all"
        " else is denied then, unless --net is given.",
        "RULE[:PORT]",
        multiple=True,
    ),
    Option(("--deny",), "deny", "What it may not reach, in any case.", "RULE", multiple=True),
    Option(
        ("--allow-host",),
        "allow_host",
        "A port of this host's loopback, reached at host.hutch.",
        "PORT",
        multiple=True,
        kind="int",
    ),
    Option(("--allow-lan",), "allow_lan", "Let it reach the networks that this host is on."),
    Option(("--policy",), "policy", "A policy of `hutch policy ls`, or a file.", "NAME|FILE"),
    Option(("--net-policy",), "net_policy", "deny, or allow:NAME,NAME.", "POLICY"),
    Option(("--allowed-domain",), "allowed_domain", "As --allow.", "NAME", multiple=True),
    Option(("--allowed-cidr",), "allowed_cidr", "As --allow.", "CIDR", multiple=True),
    Option(("--denied-cidr",), "denied_cidr", "As --deny.", "CIDR", multiple=True),
)
"""What a sandbox may reach; `netflags.policy_of` takes the values."""


class Command(NamedTuple):
    """A command line that was understood."""

    values: dict[str, Any]
    positional: str
    words: tuple[str, ...]


def read(verb: Verb, arguments: Sequence[str]) -> Command | None:
    """Return what a command line says, or None where it needs a closer look."""
    table = {flag: option for option in (*verb.options, JSON) for flag in option.flags}
    values: dict[str, Any] = {
        option.dest: () if option.multiple else (None if option.metavar else False)
        for option in (*verb.options, JSON)
    }
    rest = list(arguments)
    while rest and rest[0].startswith("-") and rest[0] not in ("-", "--"):
        word = rest.pop(0)
        if not _take(word, rest, table, values):
            return None
    if rest[:1] == ["--"]:
        rest.pop(0)
    if not rest or (verb.needs_words and len(rest) < 2):
        return None
    return Command(values, rest[0], tuple(rest[1:]))


def _take(word: str, rest: list[str], table: dict[str, Option], values: dict[str, Any]) -> bool:
    """Take one word of options; False where it is not understood."""
    if word.startswith("--"):
        flag, equals, text = word.partition("=")
        option = table.get(flag)
        if option is None or (equals and option.metavar is None):
            return False
        return _set(option, text if equals else None, rest, values)
    letters = word[1:]
    while letters:
        option = table.get(f"-{letters[0]}")
        if option is None:
            return False
        letters = letters[1:]
        if option.metavar is not None:
            return _set(option, letters or None, rest, values)
        values[option.dest] = True
    return True


def _set(option: Option, text: str | None, rest: list[str], values: dict[str, Any]) -> bool:
    if option.metavar is None:
        values[option.dest] = True
        return True
    if text is None:
        if not rest:
            return False
        text = rest.pop(0)
    if option.choices and text not in option.choices:
        return False
    try:
        value = convert(option.kind, text)
    except (ValueError, InvalidInput):
        return False
    if option.multiple:
        values[option.dest] += (value,)
    else:
        values[option.dest] = value
    return True


def convert(kind: str, text: str) -> Any:
    """Return the value of an option's text. Raises ValueError and InvalidInput."""
    if kind == "int":
        return int(text)
    if kind in ("size", "duration"):
        from hutch.settings import parse_duration, parse_size

        return parse_size(text) if kind == "size" else parse_duration(text)
    return text

"""Names and ids: the rules for those that users choose, and friendly ones made for the rest.

Pure but for the random choice. It must not know what names are taken: callers ask again.
"""

import itertools
import secrets
from collections.abc import Container

from hutch.errors import error
from hutch.models import NAME_PATTERN

ID_PREFIX = "sb_"
EXEC_PREFIX = "ex_"
SNAPSHOT_PREFIX = "sn_"
NAME_MAX = 63

_TRAITS = (  # noqa: SIM905 - a list would take a hundred lines
    "agile amber ample apt bold brave bright brisk calm candid civil clear clever cosy crisp daring"
    " deft eager early exact fair fleet fond frank fresh gentle glad grand hardy honest ideal"
    " jolly keen kind lively loyal lucid lucky mellow merry mild modest neat nimble noble placid"
    " plucky polite prime proud quick quiet ready robust sharp sleek smart snug solid spry stable"
    " steady stout sunny swift tidy tough trusty vivid warm wise witty zesty"
).split()

_ANIMALS = (  # noqa: SIM905
    "badger beaver bison bobcat camel caribou cheetah civet cougar coyote crane dingo dolphin"
    " donkey eagle egret falcon ferret finch fox gazelle gecko gibbon goose hamster hare hedgehog"
    " heron hyrax ibex ibis impala jackal jaguar jerboa kestrel koala lark lemur leopard lion llama"
    " lynx magpie marmot marten mole moose mouse newt ocelot okapi orca osprey otter owl panda"
    " panther pika puffin puma quail quokka rabbit raven robin seal serval shrew skunk"
    " sloth stoat stork swan tapir tiger turtle vole walrus weasel wolf wombat wren yak zebra"
).split()


def new_id(prefix: str) -> str:
    """Return a fresh id: the prefix and 48 random bits in hex."""
    return prefix + secrets.token_hex(6)


def check_name(name: str, what: str = "sandbox", prefix: str = ID_PREFIX) -> str:
    """Return the name if a sandbox, or `what` else, may have it. Raises InvalidInput (bad_name).

    `prefix` is what its ids begin with.
    """
    if NAME_PATTERN.fullmatch(name) is None:
        raise error(
            "bad_name",
            f"{name!r} cannot be the name of a {what}",
            hint="use 1 to 63 letters, digits, dots, dashes, underscores; the first no mark",
        )
    if name.startswith(prefix):
        raise error(
            "bad_name",
            f"{name!r} cannot be the name of a {what}: {prefix} begins ids",
            hint="choose a name that does not look like an id",
        )
    return name


def numbered_name(stem: str, taken: Container[str]) -> str:
    """Return a name such as `web-1` that is not in `taken`."""
    for number in itertools.count(1):
        end = f"-{number}"
        name = stem[: NAME_MAX - len(end)] + end
        if name not in taken:
            return name
    raise AssertionError("there is an end of numbers")


def friendly_name(taken: Container[str]) -> str:
    """Return a name such as `brisk-otter` that is not in `taken`."""
    for _ in range(20):
        name = f"{secrets.choice(_TRAITS)}-{secrets.choice(_ANIMALS)}"
        if name not in taken:
            return name
    while True:
        name = f"{secrets.choice(_TRAITS)}-{secrets.choice(_ANIMALS)}-{secrets.token_hex(3)}"
        if name not in taken:
            return name

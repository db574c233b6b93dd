"""Claims from the pool: what waits there is warm, so it is resumed, named, and runs its command."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from hutch.models import PoolInfo
from hutch.sdk import AsyncClient
from tests.bench.boots import cold
from tests.bench.lab import IMAGE, Lab, Session, pause
from tests.bench.lives import Begun, begin
from tests.bench.samples import Measured, Series, part_of

_PART = 80
_SIZE = 2
_REFILL_LIMIT = 60.0


def pool_claims(lab: Lab) -> Measured:
    """Measure sandboxes that are claimed from a pool against cold boots."""
    with lab.sandbox(template=True) as like:
        recipe = lab.recipe(like)
    boots = cold(lab, recipe)
    warm, rounds = lab.rounds(2, 1), lab.rounds(25, 3)
    with lab.session() as session, pool(session):
        begun = [_claim(lab, session) for _ in range(warm + rounds)][warm:]
    reply = Series("hutch, request to reply", "s", [it.reply for it in begun])
    output = Series("hutch, request to a first command's output", "s", [it.output for it in begun])
    return Measured(
        "Claim from the pool",
        [boots, reply, output],
        [part_of("pool claim to a first output, of a cold boot", output, boots, _PART)],
        "The identity is in it. The pool was full at each request.",
    )


@contextmanager
def pool(session: Session) -> Iterator[None]:
    """Have a full pool of the benchmark's image for the length of the block."""
    session(lambda client: client.pools.warm(IMAGE, _SIZE))
    try:
        yield
    finally:
        session(lambda client: client.pools.drain())


def wait_full(session: Session) -> PoolInfo:
    """Wait until nothing of the pool is being made."""
    deadline = time.monotonic() + _REFILL_LIMIT
    while True:
        (found,) = session(_pools)
        if found.ready == found.size and not found.filling:
            return found
        assert time.monotonic() < deadline, found
        pause()


async def _pools(client: AsyncClient) -> list[PoolInfo]:
    return await client.pools.list()


def _claim(lab: Lab, session: Session) -> Begun:
    before = wait_full(session).claimed
    begun = begin(session, lab.spec(template=True))
    (after,) = session(_pools)
    assert after.claimed == before + 1, "the sandbox was not claimed from the pool"
    return begun

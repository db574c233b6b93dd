"""A guest's resolver before a real server on loopback."""

import tempfile
from collections.abc import AsyncIterator, Iterator

import pytest

from hutch.network.dns.client import Limits, Resolver
from hutch.network.synthetic import NameTable
from tests.unit.network.dns.desk import ZONE, Desk, Rules
from tests.unit.network.dns.nameserver import Clock, NameServer, serving


@pytest.fixture
def names() -> Iterator[NameTable]:
    with tempfile.TemporaryFile() as file:
        yield NameTable(file.fileno())


@pytest.fixture
async def desk(names: NameTable) -> AsyncIterator[Desk]:
    clock = Clock()
    async with serving(NameServer(ZONE)) as server:
        upstream = Resolver([server.place], Limits(attempt=20, total=40, other_family=20), clock)
        yield Desk(server, Rules(), names, clock, upstream)
        await upstream.close()

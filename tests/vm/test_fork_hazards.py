"""What two machines that were one must not have in common: looked for by the same commands in two
clones, two forks and two restores of one moment.

The service runs in this process, so that a test can keep a copy's identity from it: the same look
must then find everything that the identity is there to prevent, or it would prove nothing.
"""

import os
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from hutch.guest.base import Channel, Guest, GuestExec, Identity, Output
from hutch.guest.session import connect_guest
from hutch.images.base import no_report
from hutch.models import SandboxSpec
from hutch.service.host import HostService
from tests.harness.service import serving
from tests.harness.stores import SharedStore
from tests.waiting import until

CLOCK = 0.02
"""Seconds that a clock may be off."""
NEVER = 1e9
"""A tolerance with which `keep_clock` only looks."""
ASKED = 5
DAY = 86400
ATTEMPTS = 12
"""Pairs of copies of which one must be as it should: a busy host may be late in telling the time,
and a kernel that is read renews its random numbers by itself now and then, which hides a fault."""

LOOK = (
    "head -c 32 /dev/urandom | sha256sum; cat /proc/sys/kernel/random/uuid; mktemp -u XXXXXXXXXXXX;"
    " cat /etc/machine-id; hostname"
)
WORDS = ("urandom", "uuid", "getrandom", "machine-id", "hostname")
"""What `LOOK` prints. The C library's mktemp(3) takes its letters from getrandom(2)."""

PEER = "0A00000A"
"""10.0.0.10, as /proc/net/tcp writes the peer."""
SYN_SENT = "02"
LEAVING = (
    "ip link set eth0 up; ip addr add 10.0.0.2/24 dev eth0;"
    " arp -s 10.0.0.10 52:54:00:00:00:99; echo 30 >/proc/sys/net/ipv4/tcp_syn_retries;"
    " nc 10.0.0.10 80; exec sleep 1000"
)
"""A program with a connection that leaves the machine, as far as it is concerned."""


@dataclass
class Deceiver:
    """Connects to agents. While it `lies`, they learn neither who they are nor the time, and are
    believed to have taken their identity all the same.
    """

    lies: bool = False

    async def connect(self, path: Path, *, timeout: float) -> Guest:
        guest: Any = await connect_guest(path, timeout=timeout)
        identify, keep_clock = guest.identify, guest.keep_clock

        async def maybe_identify(identity: Identity) -> bool:
            return True if self.lies else bool(await identify(identity))

        async def maybe_keep_clock(tolerance: float = 0.01) -> float:
            return float(await keep_clock(NEVER if self.lies else tolerance))

        guest.identify, guest.keep_clock = maybe_identify, maybe_keep_clock
        return guest  # type: ignore[no-any-return]


@dataclass(frozen=True, slots=True)
class Seen:
    """What a look into a machine finds: `clock` is how far it is off, in seconds."""

    words: dict[str, str]
    clock: float
    leaving: int
    generation: int


async def sh(guest: Guest, script: str) -> str:
    """Run a script in a machine, with nothing of the daemon between; return its stdout."""
    request = GuestExec(f"look-{os.urandom(4).hex()}", ["sh", "-c", script])
    output = b""
    async for event in await guest.start_exec(request):
        if isinstance(event, Output) and event.channel is Channel.STDOUT:
            output += event.data
    return output.decode()


async def guest_of(service: HostService, ref: str) -> Guest:
    return await service._registry.find(ref).running().connection.get()


async def clock_of(guest: Guest) -> float:
    """Return how far a clock is off: what the answer that came soonest has said."""
    answers = []
    for _ in range(ASKED):
        began = time.monotonic()
        off = await guest.keep_clock(NEVER)
        answers.append((time.monotonic() - began, off))
    return min(answers)[1]


async def look(service: HostService, ref: str) -> Seen:
    guest = await guest_of(service, ref)
    clock = await clock_of(guest)  # first what others put right sooner or later
    words = dict(zip(WORDS, (await sh(guest, LOOK)).splitlines(), strict=True))
    rows = [row.split() for row in (await sh(guest, "cat /proc/net/tcp")).splitlines()]
    leaving = sum(PEER in row[2] and row[3] == SYN_SENT for row in rows)
    return Seen(words, clock, leaving, guest.info.generation)


async def begin(service: HostService) -> str:
    spec = SandboxSpec("busybox", command=["sh", "-c", LEAVING])
    info = await service.sandboxes.create(spec, no_report)
    return (await service.sandboxes.start(info.id)).id


async def started(service: HostService) -> str:
    """Return a source that has its connection, and has been looked at."""
    source = await begin(service)

    async def leaving() -> bool:
        return (await look(service, source)).leaving == 1

    await until(leaving, what="the connection is under way")
    return source


async def two_clones(service: HostService, source: str) -> list[str]:
    return [await begin(service), await begin(service)]


async def two_forks(service: HostService, source: str) -> list[str]:
    return [child.id for child in (await service.forks.fork(source, count=2)).children]


async def two_restores(service: HostService, source: str) -> list[str]:
    snapshot = await service.snapshots.create(source)
    made = [(await service.snapshots.restore(snapshot.id)).id for _ in range(2)]
    await service.snapshots.remove(snapshot.id)
    return made


Copy = Callable[[HostService, str], Awaitable[list[str]]]
WAYS: tuple[Copy, ...] = (two_clones, two_forks, two_restores)


async def looks(service: HostService, source: str, copy: Copy) -> list[Seen]:
    """Make two copies, and do the same in both."""
    copies = await copy(service, source)
    seen = [await look(service, each) for each in copies]
    for each in copies:
        await service.sandboxes.remove(each, force=True)
    return seen


async def test_copies_have_nothing_in_common(shared_store: SharedStore, short_tmp: Path) -> None:
    async with serving(shared_store, short_tmp / "r", Deceiver().connect) as service:
        source = await started(service)
        origin = await look(service, source)
        for copy in WAYS:
            for _ in range(ATTEMPTS):
                copies = await looks(service, source, copy)
                for word in WORDS:
                    values = [each.words[word] for each in (origin, *copies)]
                    assert len(set(values)) == 3, (word, values)
                if copy is not two_clones:
                    assert [each.leaving for each in copies] == [0, 0]
                    assert origin.generation not in [each.generation for each in copies]
                clocks = [each.clock for each in copies]
                if copy is not two_clones:
                    clocks.append(await clock_of(await guest_of(service, source)))
                if max(map(abs, clocks)) < CLOCK:
                    break
            else:
                pytest.fail(f"the clocks of {copy.__name__} are wrong: {clocks}")
        # The source has kept what is its own.
        assert (await look(service, source)).leaving == 1


@dataclass
class Common:
    """What two machines had in common that never learned who they are."""

    words: set[str] = field(default_factory=set)
    rest: set[str] = field(default_factory=set)

    def add(self, one: Seen, two: Seen, source: Seen) -> None:
        self.words |= {word for word in WORDS if one.words[word] == two.words[word]}
        if min(abs(one.clock), abs(two.clock)) > CLOCK:
            self.rest.add("clock")
        if one.leaving == two.leaving == 1:
            self.rest.add("leaving")
        if one.generation == two.generation == source.generation:
            self.rest.add("generation")


async def test_without_their_identity_they_would(
    shared_store: SharedStore, short_tmp: Path
) -> None:
    deceiver = Deceiver()
    async with serving(shared_store, short_tmp / "r", deceiver.connect) as service:
        source = await started(service)
        for copy in WAYS:
            everything = {"clock"} if copy is two_clones else {"clock", "leaving", "generation"}
            common = Common()
            for _ in range(ATTEMPTS):
                deceiver.lies = False
                seen = await look(service, source)
                deceiver.lies = True
                common.add(*await looks(service, source, copy), seen)
                if common.words == set(WORDS):
                    break
            assert common.words == set(WORDS), copy
            assert common.rest >= everything, copy


async def test_a_day_in_park(shared_store: SharedStore, short_tmp: Path) -> None:
    deceiver = Deceiver()

    async def park_for_a_day(source: str, *, lies: bool) -> float:
        """Return how far its clock is off afterwards."""
        guest = await guest_of(service, source)
        deceiver.lies = True  # or somebody may put it right before it is parked
        await sh(guest, f"date -s @$(($(date +%s) - {DAY}))")
        await service.sandboxes.park(source)
        deceiver.lies = lies
        await service.sandboxes.resume(source)
        off = await clock_of(await guest_of(service, source))
        deceiver.lies = False
        return off

    async with serving(shared_store, short_tmp / "r", deceiver.connect) as service:
        source = await begin(service)
        assert abs(await park_for_a_day(source, lies=True) + DAY) < DAY / 24
        for _ in range(ATTEMPTS):
            off = await park_for_a_day(source, lies=False)
            if abs(off) < CLOCK:
                break
        else:
            pytest.fail(f"the clock is off by {off} s")
        await service.sandboxes.remove(source, force=True)

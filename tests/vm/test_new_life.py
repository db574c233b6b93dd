"""What the agent makes of a machine that becomes another while programs run in it.

The test is the host: it freezes the workloads, gives the machine another identity, as a fork or a
restore does in the child, and thaws them.
"""

import asyncio
import shlex
from collections.abc import AsyncIterator

import pytest

from hutch.guest.base import Channel, ExecResult, Guest, GuestExec, Identity, Output
from hutch.guest.session import connect_guest
from tests.harness.hutch import Hutch
from tests.waiting import until

ENV = ["PATH=/usr/sbin:/usr/bin:/sbin:/bin"]
ESTABLISHED, SYN_SENT = "01", "02"
OUTSIDE = "0A00000A"
"""10.0.0.10, as /proc/net/tcp writes the peer."""

PREPARE = """
ip link set eth0 up
ip addr add 10.0.0.2/24 dev eth0
arp -s 10.0.0.10 52:54:00:00:00:99
mkdir -p /etc/hutch/generation.d /var/lib/dbus
printf '%s\\n' old >/var/lib/dbus/machine-id
printf '10.1.1.1\\tdb\\n' >>/etc/hosts
hook=/etc/hutch/generation.d/10-tell
printf '#!/bin/sh\\necho $1 >/run/told\\ncut -d/ -f2 /proc/self/cgroup >>/run/told\\n' >$hook
chmod +x $hook
"""


class Life:
    """A machine in which programs run."""

    def __init__(self, guest: Guest) -> None:
        self.guest = guest
        self._execs = 0

    async def sh(self, script: str) -> str:
        """Run a script to its end; return its stdout."""
        self._execs += 1
        request = GuestExec(f"sh-{self._execs}", ["sh", "-c", script], env=ENV)
        output = b""
        async for event in await self.guest.start_exec(request):
            if isinstance(event, Output) and event.channel is Channel.STDOUT:
                output += event.data
        return output.decode()

    async def start(self, exec_id: str, script: str) -> None:
        """Start a script that goes on."""
        await self.guest.spawn_exec(GuestExec(exec_id, ["sh", "-c", script], env=ENV))

    async def is_running(self, exec_id: str) -> bool:
        return next(it.running for it in await self.guest.list_execs() if it.id == exec_id)

    async def connections(self, state: str, peer: str = "") -> int:
        """Count the TCP connections in a state, of IPv4 and IPv6, to a peer."""
        rows = (await self.sh("cat /proc/net/tcp /proc/net/tcp6")).splitlines()
        fields = [row.split() for row in rows]
        return sum(len(it) > 3 and it[3] == state and peer in it[2] for it in fields)

    async def become(self, digit: str, count: int) -> int:
        """Give the machine another identity; return the generation that its programs see."""
        identity = Identity(
            hostname=f"life-{digit}",
            machine_id=digit * 32,
            entropy=bytes(32),
            nonce=digit.encode() * 16,
            generation=count,
            hosts=[("127.0.1.1", f"life-{digit}")],
        )
        assert await self.guest.identify(identity)
        return self.guest.info.generation


@pytest.fixture
async def life(hutch: Hutch) -> AsyncIterator[Life]:
    """A running sandbox whose agent listens to the test instead of the daemon."""
    hutch.run("run", "-d", "--idle", "--name", "source", "busybox")
    hutch.run("daemon", "stop")  # an agent has one host at a time
    (path,) = hutch.runtime.rglob("agent.sock")
    life = Life(await connect_guest(path, timeout=60))
    try:
        await life.sh(PREPARE)
        yield life
    finally:
        await life.guest.close()
        # In a thread: the loop is still to let go of the agent's socket.
        await asyncio.to_thread(hutch.run, "exec", "source", "true")


async def test_inherited_connections_end_and_those_within_stay(life: Life) -> None:
    await life.start("server", "nc -ll -p 81 -e cat")
    await until(lambda: listens(life, 81), what="the server listens")
    await life.start("within", "(echo ping; sleep 100) | nc 127.0.0.1 81 >/run/echo")
    await life.start("own", "sleep 100 | nc 10.0.0.2 81")
    await life.start("leaving", "nc 10.0.0.10 80; echo ended >/run/leaving")

    async def all_are_there() -> bool:
        established = await life.connections(ESTABLISHED)
        return established == 4 and await life.connections(SYN_SENT, OUTSIDE) == 1

    await until(all_are_there, what="the connections are there")
    await life.guest.freeze(timeout=30)
    await life.become("a", 1)
    await life.guest.thaw()
    assert await life.connections(SYN_SENT) == 0
    assert await life.connections(ESTABLISHED) == 4
    await until(lambda: has_ended(life, "leaving"), what="its program was told")
    assert [await life.is_running(it) for it in ("server", "within", "own")] == [True] * 3
    assert await life.sh("cat /run/echo") == "ping\n"


async def listens(life: Life, port: int) -> bool:
    return f":{port:04X} " in await life.sh("cat /proc/net/tcp /proc/net/tcp6")


async def has_ended(life: Life, exec_id: str) -> bool:
    return not await life.is_running(exec_id)


async def test_programs_are_told_of_their_new_life(life: Life) -> None:
    before = int(await life.sh("cat /run/hutch/generation"))
    await life.guest.freeze(timeout=30)
    assert await life.become("b", before) == before + 1
    assert await life.become("b", before) == before + 1, "said once more"
    assert (await life.guest.files.stat("/run/hutch/generation")).mode & 0o777 == 0o644
    with pytest.raises(Exception, match="told"):
        await life.guest.files.stat("/run/told")  # before the thaw no hook runs
    await life.guest.thaw()
    async for event in life.guest.events():
        if event.kind == "generation":
            assert event.fields["hooks"] == 1
            assert event.fields["failed"] == []
            break
    number, group = (await life.sh("cat /run/told")).split()
    assert (number, group) == (str(before + 1), "hutch")
    assert await life.sh("cat /run/hutch/generation") == f"{before + 1}\n"
    names = "cat /etc/machine-id /var/lib/dbus/machine-id; hostname; cat /etc/hostname /etc/hosts"
    said = (await life.sh(names)).splitlines()
    assert said[:4] == ["b" * 32] * 2 + ["life-b"] * 2
    assert said[-2:] == ["127.0.1.1\tlife-b", "10.1.1.1\tdb"]
    await life.guest.thaw()
    assert await life.sh("cat /run/told | head -n 1") == f"{before + 1}\n"


async def test_a_program_waits_for_the_thaw_and_others_are_served(life: Life) -> None:
    await life.start("loop", "while :; do :; done")
    await life.guest.freeze(timeout=30)
    request = GuestExec("late", ["sh", "-c", f"echo {shlex.quote('late')}"], env=ENV)
    async with asyncio.TaskGroup() as group:
        starting = group.create_task(life.guest.start_exec(request))
        await life.guest.files.stat("/etc/hosts")
        await life.guest.ping()
        assert not starting.done()
        assert "late" not in [it.id for it in await life.guest.list_execs()]
        await life.guest.thaw()
    events = [event async for event in starting.result()]
    assert isinstance(events[-1], ExecResult)
    assert events[-1].code == 0


async def test_a_start_whose_caller_is_gone_by_the_thaw_never_happens(
    hutch: Hutch, life: Life
) -> None:
    await life.guest.freeze(timeout=30)
    request = GuestExec("lost", ["touch", "/run/lost"], env=ENV)
    async with asyncio.TaskGroup() as group:
        starting = group.create_task(_refused(life.guest, request))
        await life.guest.ping()
        await life.guest.close()
        await starting
    (path,) = hutch.runtime.rglob("agent.sock")
    life.guest = await connect_guest(path, timeout=60)
    assert life.guest.info.frozen
    await life.guest.thaw()
    assert await life.sh("ls /run") == "hutch\nlock\n"


async def _refused(guest: Guest, request: GuestExec) -> None:
    with pytest.raises(Exception, match=r".") as caught:
        await guest.start_exec(request)
    assert getattr(caught.value, "code", "") == "sandbox_died"

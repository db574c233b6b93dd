"""The network of this host: a real netd, and a gateway that judges nothing."""

import asyncio
import os
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

import hutch
from hutch.errors import HutchError, error
from hutch.network.base import Attachment
from hutch.network.channel import Values
from hutch.network.host import HostNetwork, Options, _Attached
from hutch.network.netd import namespace
from hutch.network.processes import GATEWAY_ID, NETD_ID, recall
from hutch.networking import NetworkLayer, NetworkMode, NetworkPolicy, NetworkRecord, Reason
from hutch.process import ProcessId
from hutch.settings import load_settings
from tests.unit.descriptors import descriptors
from tests.unit.network.guest_frames import Guest, ethernet, ipv4, udp
from tests.unit.network.netspace import needs_taps
from tests.waiting import until

GATEWAY = (sys.executable, str(Path(__file__).with_name("fake_gateway.py")))
OUTSIDE = "93.184.215.14"


class Host:
    """A host's directories, and the daemons that come and go on it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.options = Options(directory / "home", directory / "run", gateway=GATEWAY)
        self.networks: list[HostNetwork] = []
        self.guests: list[Guest] = []

    async def daemon(self) -> HostNetwork:
        """A daemon that has just come up."""
        network = HostNetwork(self.options)
        self.networks.append(network)
        await network.open()
        return network

    def attachment(self, sandbox_id: str, policy: NetworkPolicy | None = None) -> Attachment:
        names = self.directory / f"{sandbox_id}.names"
        return Attachment(sandbox_id, sandbox_id, names, policy or NetworkPolicy())

    async def attach(self, network: HostNetwork, sandbox_id: str) -> Guest:
        guest = Guest(await network.attach(self.attachment(sandbox_id)))
        self.guests.append(guest)
        return guest

    def netd(self) -> ProcessId:
        found = recall(self.directory / "run/network" / NETD_ID)
        assert found is not None
        return found

    def gateway(self) -> ProcessId:
        found = recall(self.directory / "run/network" / GATEWAY_ID)
        assert found is not None
        return found


@pytest.fixture
async def host(tmp_path: Path) -> AsyncIterator[Host]:
    before = descriptors()
    made = Host(tmp_path)
    yield made
    for network in made.networks[:-1]:
        await network.close()
    await made.networks[-1].stop()
    for guest in made.guests:
        guest.close()
    left = tmp_path / "run/network"
    assert not left.exists() or list(left.iterdir()) == []
    assert not namespace.pinned(left / "ns")
    assert descriptors() == before


def answer(guest: Guest, port: int = 22) -> bytes | None:
    """What is said on a new connection; the gateway is another process, so it is waited for."""
    answer.port += 1  # type: ignore[attr-defined]
    return guest.connect(OUTSIDE, port, 40000 + answer.port).receive()  # type: ignore[attr-defined]


answer.port = 0  # type: ignore[attr-defined]


@needs_taps
async def test_a_sandbox_is_attached_changed_and_detached(host: Host) -> None:
    network = await host.daemon()
    assert network.ability.taps
    await network.adopt([])
    one, other = [await host.attach(network, f"sb_{name}") for name in ("one", "other")]
    assert answer(one) == b"sb_one 93.184.215.14:22\n"
    stream = other.connect(OUTSIDE, 22)
    assert stream.receive() == b"sb_other 93.184.215.14:22\n"
    one.send(ethernet(ipv4(udp(b"asked ", "8.8.8.8", 53), 17, "8.8.8.8")))
    while (frame := one.next()).protocol != 17:
        pass  # TCP says something again when the host is slow
    assert (frame.source, frame.datagram[1]) == ("8.8.8.8", b"asked sb_one 8.8.8.8:53\n")
    info = await network.info("sb_other")
    assert info is not None
    assert (info.attached, info.connections, info.policy) == (True, 1, NetworkPolicy())
    (connection,) = await network.connections("sb_other")
    assert (connection.address, connection.port) == (OUTSIDE, 22)
    # Another policy ends what is open.
    assert await network.update("sb_other", None) == 1
    assert stream.receive() is None
    assert answer(other) is None
    assert await network.update("sb_other", NetworkPolicy(mode=NetworkMode.OPEN)) == 0
    info = await network.info("sb_other")
    assert info is not None
    assert info.policy.mode is NetworkMode.OPEN
    # A sandbox that is gone is not there, and no other one is harmed.
    stream = one.connect(OUTSIDE, 23, 50000)
    assert stream.receive() == b"sb_one 93.184.215.14:23\n"
    await network.detach("sb_one")
    await network.detach("sb_one")
    assert await network.info("sb_one") is None
    assert await network.connections("sb_one") == ()
    with pytest.raises(HutchError, match="no network"):
        await network.update("sb_one", None)
    with pytest.raises(OSError, match="bad state"):
        one.send(ethernet(b""))
    assert answer(other) == b"sb_other 93.184.215.14:22\n"


@needs_taps
async def test_what_was_there_under_an_id_is_replaced(host: Host) -> None:
    network = await host.daemon()
    first = await host.attach(network, "sb_one")
    second = await host.attach(network, "sb_one")
    assert answer(second) == b"sb_one 93.184.215.14:22\n"
    with pytest.raises(OSError, match="bad state"):
        first.send(ethernet(b""))


@needs_taps
async def test_a_policy_that_the_gateway_refuses_leaves_nothing(host: Host) -> None:
    network = await host.daemon()
    bad = host.attachment("sb_one", NetworkPolicy(preset="bad"))
    with pytest.raises(HutchError) as told:
        await network.attach(bad)
    assert told.value.code == "bad_policy"
    with pytest.raises(HutchError, match="cannot be opened"):
        await network.attach(replace(host.attachment("sb_one"), names=Path("/no/where")))
    assert await network.info("sb_one") is None
    assert answer(await host.attach(network, "sb_one")) == b"sb_one 93.184.215.14:22\n"


@needs_taps
async def test_the_gateway_dies_and_all_are_attached_again(host: Host) -> None:
    network = await host.daemon()
    guests = {name: await host.attach(network, name) for name in ("sb_a", "sb_b", "sb_c")}
    await network.update("sb_c", None)
    stream = guests["sb_a"].connect(OUTSIDE, 22)
    assert stream.receive() == b"sb_a 93.184.215.14:22\n"
    identity = host.gateway()
    identity.kill()
    assert stream.receive() in (b"", None)
    # The kernel completes a handshake while nobody listens; nothing is answered on it, ever.
    waiting = guests["sb_b"].connect(OUTSIDE, 22)
    await until(lambda: host_gateway_is_not(host, identity))
    assert await network.info("sb_a") is not None
    heard = waiting.receive()
    assert heard in (None, b"sb_b 93.184.215.14:22\n")
    for name in ("sb_a", "sb_b"):
        assert answer(guests[name]) == f"{name} 93.184.215.14:22\n".encode()
    assert answer(guests["sb_c"]) is None
    await network.detach("sb_a")
    assert answer(await host.attach(network, "sb_a")) == b"sb_a 93.184.215.14:22\n"


def host_gateway_is_not(host: Host, identity: ProcessId) -> bool:
    found = recall(host.directory / "run/network" / GATEWAY_ID)
    return found is not None and found != identity


@needs_taps
async def test_netd_dies_and_connections_go_on(host: Host) -> None:
    network = await host.daemon()
    await network.adopt([])
    guest = await host.attach(network, "sb_one")
    await host.attach(network, "sb_gone")
    stream = guest.connect(OUTSIDE, 22)
    assert stream.receive() == b"sb_one 93.184.215.14:22\n"
    host.netd().kill()
    stream.send(b"still there")
    assert stream.receive() == b"still there"
    assert answer(guest) == b"sb_one 93.184.215.14:22\n"
    # Its successor is in the same namespace.
    other = await host.attach(network, "sb_other")
    assert answer(other) == b"sb_other 93.184.215.14:22\n"
    await network.detach("sb_one")
    with pytest.raises(OSError, match="bad state"):
        guest.send(ethernet(b""))


@needs_taps
async def test_both_die_at_once_and_come_back(host: Host) -> None:
    network = await host.daemon()
    await network.adopt([])
    guest = await host.attach(network, "sb_one")
    host.gateway().kill()
    host.netd().kill()
    assert await _again(network, guest) == b"sb_one 93.184.215.14:22\n"


async def _again(network: HostNetwork, guest: Guest) -> bytes | None:
    """What is answered once there is a gateway again that knows the sandbox."""

    async def known() -> bool:
        try:
            return await network.info("sb_one") is not None
        except HutchError:
            return False

    await until(known)
    guest.waiting()
    return answer(guest)


@needs_taps
async def test_a_new_daemon_adopts_what_runs_and_removes_the_rest(host: Host) -> None:
    first = await host.daemon()
    guests = {name: await host.attach(first, name) for name in ("sb_kept", "sb_closed", "sb_gone")}
    stream = guests["sb_kept"].connect(OUTSIDE, 22)
    assert stream.receive() == b"sb_kept 93.184.215.14:22\n"
    processes = host.netd(), host.gateway()
    await first.close()
    assert answer(guests["sb_closed"]) == b"sb_closed 93.184.215.14:22\n"
    second = await host.daemon()
    lost = host.attachment("sb_lost")
    closed = replace(host.attachment("sb_closed"), policy=None)
    await second.adopt([host.attachment("sb_kept"), closed, lost])
    assert (host.netd(), host.gateway()) == processes
    assert answer(guests["sb_kept"]) == b"sb_kept 93.184.215.14:22\n"
    assert answer(guests["sb_closed"]) is None
    with pytest.raises(OSError, match="bad state"):
        guests["sb_gone"].send(ethernet(b""))
    assert await second.info("sb_lost") is None


@needs_taps
async def test_a_new_daemon_finds_taps_although_both_processes_died_with_the_old_one(
    host: Host,
) -> None:
    first = await host.daemon()
    guest = await host.attach(first, "sb_one")
    await first.close()
    host.gateway().kill()
    host.netd().kill()
    second = await host.daemon()
    await second.adopt([host.attachment("sb_one")])
    assert answer(guest) == b"sb_one 93.184.215.14:22\n"


@needs_taps
async def test_a_lost_namespace_is_told_and_new_sandboxes_have_another(
    host: Host, caplog: pytest.LogCaptureFixture
) -> None:
    first = await host.daemon()
    await host.attach(first, "sb_one")
    await first.close()
    host.netd().kill()
    namespace.unpin(host.directory / "run/network/ns")
    second = await host.daemon()
    await second.adopt([host.attachment("sb_one")])
    assert "the network of sb_one is lost" in caplog.text
    assert answer(await host.attach(second, "sb_one")) == b"sb_one 93.184.215.14:22\n"


@needs_taps
@pytest.mark.parametrize("pinned", [True, False])
async def test_a_daemon_of_another_version_replaces_both_and_keeps_the_taps(
    host: Host, monkeypatch: pytest.MonkeyPatch, pinned: bool
) -> None:
    first = await host.daemon()
    if not pinned:  # as in many a container, or without root
        namespace.unpin(host.directory / "run/network/ns")
    guest = await host.attach(first, "sb_one")
    processes = host.netd(), host.gateway()
    await first.close()
    monkeypatch.setattr(hutch, "__version__", "another")
    second = await host.daemon()
    await second.adopt([host.attachment("sb_one")])
    assert answer(guest) == b"sb_one 93.184.215.14:22\n"
    assert [process.alive() for process in processes] == [False, False]


@needs_taps
def test_an_ordinary_user_has_it_too_where_the_device_may_be_opened() -> None:
    directory = Path(tempfile.mkdtemp(prefix="h-", dir="/tmp"))
    try:
        directory.chmod(0o755)
        device = directory / "tun"
        os.mknod(device, 0o666 | stat.S_IFCHR, os.makedev(10, 200))
        device.chmod(0o666)
        own = directory / "own"
        own.mkdir()
        os.chown(own, 65534, 65534)
        # A checkout that only root may look into is read all the same, and nothing else is lent.
        user = ["--reuid=65534", "--regid=65534", "--clear-groups"]
        look = ["--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"]
        program = [sys.executable, "-m", "tests.unit.network.ordinary_user", str(own), str(device)]
        ran = subprocess.run(
            ["setpriv", *user, *look, *program],
            capture_output=True,
            text=True,
            cwd=Path(__file__).parents[3],
            timeout=110,
            check=False,
        )
        if ran.stdout.startswith("refused:"):
            pytest.skip(f"NO NETWORK WITHOUT ROOT HERE, SO IT IS NOT TESTED: {ran.stdout}")
        assert (ran.returncode, ran.stdout) == (0, "done\n"), ran.stderr
    finally:
        shutil.rmtree(directory)


@needs_taps
async def test_what_was_decided_is_told_also_what_was_missed(host: Host) -> None:
    network = await host.daemon()
    gateway = await network._gateway.channel()

    async def tell(number: int) -> NetworkRecord:
        record = NetworkRecord(number, "now", "sb_x", NetworkLayer.DNS, False, Reason.LIMIT)
        await gateway.call("tell", {"record": asdict(record)})
        return record

    records = network.records()
    for number in range(3):
        told = await tell(number)
        assert await anext(records) == told
    await network.close()
    second = HostNetwork(host.options)
    host.networks.append(second)
    await second.open()
    gateway = await second._gateway.channel()
    again = second.records()
    # One that was there before is told from the beginning of what it still has.
    assert [(await anext(again)).number for _ in range(3)] == [0, 1, 2]
    told = await tell(3)
    assert await anext(again) == told


@needs_taps
async def test_many_come_and_go_at_once(host: Host) -> None:
    network = await host.daemon()
    await network.adopt([])
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(host.attach(network, f"sb_{number}")) for number in range(30)]
    for number, task in enumerate(tasks):
        assert answer(task.result()) == f"sb_{number} 93.184.215.14:22\n".encode()
    async with asyncio.TaskGroup() as group:
        for number in range(30):
            group.create_task(network.detach(f"sb_{number}"))
    for task in tasks:
        with pytest.raises(OSError, match="bad state"):
            task.result().send(ethernet(b""))


class Told:
    """The gateway of a network that never opened: what it is told, while it can be told at all."""

    def __init__(self, network: HostNetwork, directory: Path) -> None:
        self.network = network
        self.heard: list[tuple[str, str | None]] = []
        self.known: list[Values] = []
        self.away: HutchError | None = None
        self.meanwhile: NetworkPolicy | None = None
        network._gateway.call = self.call  # type: ignore[method-assign]
        network._netd.call = self.sockets  # type: ignore[assignment, method-assign]
        attachment = Attachment("sb", "sb", directory / "names", OPEN)
        network._attached["sb"] = _Attached(attachment, 5)

    async def call(
        self, method: str, values: Values | None = None, fds: Sequence[int] = ()
    ) -> tuple[Values, list[int]]:
        if self.away is not None:
            raise self.away
        values = values or {}
        if method in ("attach", "update"):
            self.heard.append((method, (values["policy"] or {}).get("mode")))
        return {"sandboxes": self.known, "records": [], "next": 0}, []

    async def sockets(self, method: str, values: Values) -> tuple[Values, list[int]]:
        if self.meanwhile is not None:
            with pytest.raises(HutchError):
                await self.network.update("sb", self.meanwhile)
            self.away = None
        return {"interface": "ht1", "ifindex": 5}, []

    async def back(self) -> list[tuple[str, str | None]]:
        """What it hears when it is met again."""
        self.away, self.heard = None, []
        await self.network._met_gateway(self, {"pid": 1}, [])  # type: ignore[arg-type]
        return self.heard


OPEN = NetworkPolicy(mode=NetworkMode.OPEN)
NONE = NetworkPolicy(mode=NetworkMode.NONE)
GONE = error("network_failed", "the gateway does not come up")


@pytest.mark.parametrize("changes", [[NONE], [NONE, None], [OPEN]])
async def test_after_a_change_that_failed_a_gateway_that_comes_back_is_given_no_policy(
    host: Host, changes: list[NetworkPolicy | None]
) -> None:
    network = HostNetwork(host.options)
    host.networks.append(network)
    told = Told(network, host.directory)
    told.away = GONE
    for policy in changes:
        with pytest.raises(HutchError, match="does not come up"):
            await network.update("sb", policy)
    assert await told.back() == [("attach", None)]
    # A change that comes through counts again.
    await network.update("sb", OPEN)
    assert await told.back() == [("attach", OPEN.mode)]


async def test_a_gateway_that_knows_a_sandbox_still_is_told_what_it_missed(host: Host) -> None:
    network = HostNetwork(host.options)
    host.networks.append(network)
    told = Told(network, host.directory)
    told.known = [{"sandbox_id": "sb", "ifindex": 5}]
    assert await told.back() == []
    told.away = GONE
    with pytest.raises(HutchError, match="does not come up"):
        await network.update("sb", NONE)
    assert await told.back() == [("update", None)]
    assert await told.back() == []


async def test_a_change_while_a_sandbox_is_attached_again_is_not_overtaken(host: Host) -> None:
    network = HostNetwork(host.options)
    host.networks.append(network)
    told = Told(network, host.directory)
    told.meanwhile = NONE

    async def updated(method: str, *args: Any) -> tuple[Values, list[int]]:
        raise GONE

    network._gateway.call = updated  # type: ignore[assignment, method-assign]
    assert await told.back() == [("attach", None)]


async def test_a_host_that_lacks_something_says_so_and_attaches_nothing(host: Host) -> None:
    host.options = replace(host.options, device=host.directory / "tun")
    network = await host.daemon()
    assert not network.ability.taps
    assert network.ability.why == f"there is no {host.directory / 'tun'}"
    await network.adopt([])
    await network.detach("sb_one")
    with pytest.raises(HutchError) as told:
        await network.attach(host.attachment("sb_one"))
    assert told.value.code == "network_missing"


@needs_taps
async def test_what_only_trying_shows_is_told_as_well(host: Host) -> None:
    device = host.directory / "tun"
    device.touch()
    host.options = replace(host.options, device=device)
    network = await host.daemon()
    assert not network.ability.taps
    assert f"no TAP can be made with {device}" in network.ability.why


def test_the_settings_say_where_and_as_whom(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = replace(load_settings({}), home=tmp_path / "home", runtime_dir=tmp_path / "run")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    options = Options.of(replace(settings, jail=True, uid_base=1000, uid_count=10))
    assert (options.home, options.runtime) == (tmp_path / "home", tmp_path / "run")
    assert options.user == 1011
    assert Options.of(replace(settings, jail=False)).user is None
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert Options.of(replace(settings, jail=True)).user is None

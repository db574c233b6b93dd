"""Cold boot, and the daemon's own start.

Hutch's boot is timed as a client sees it: from the request for a new sandbox to the reply that it
runs, with image lookup, records, disk, mounts and identity in it. The bare one ends with the
agent's first answer. So the ratio is stricter than "to the first answer" on both sides would be.
"""

import hashlib
import time

from hutch.sdk import AsyncClient, AsyncSandbox
from tests.bench import bare
from tests.bench.bare import Recipe
from tests.bench.lab import Lab
from tests.bench.samples import Check, Measured, Series, alternate, ratio

_BOOT_LIMIT = 1.25
_START_LIMIT = 1.5


class _Boots:
    """Takes boot samples; each machine must be one never seen before."""

    def __init__(self, lab: Lab, recipe: Recipe) -> None:
        self._lab = lab
        self._recipe = recipe
        self._boot_ids: set[str] = set()
        self.ready: list[float] = []

    def bare(self) -> float:
        """Boot by hand, to the agent's first answer."""
        with bare.boot(self._recipe) as machine:
            started = time.monotonic()
            self._note(machine.agent.hello["boot_id"])
            machine.make_ready(self._recipe.image.rootfs.fstype)
            self.ready.append(machine.seconds + time.monotonic() - started)
            return machine.seconds

    def hutch(self) -> float:
        """Have the daemon make and boot a sandbox."""

        async def sample(client: AsyncClient) -> tuple[float, str]:
            started = time.monotonic()
            info = await client.create(self._lab.spec())
            seconds = time.monotonic() - started
            try:
                assert info.template is None, info
                box = await AsyncSandbox.connect(info.id, client=client)
                said = await box.commands.run(
                    ["cat", "/proc/sys/kernel/random/boot_id", "/etc/machine-id"]
                )
                boot_id, machine_id = said.stdout.split()
                assert machine_id == hashlib.sha256(info.id.encode()).hexdigest()[:32], said
            finally:
                await client.remove(info.id, force=True)
            return seconds, boot_id

        seconds, boot_id = self._lab.with_client(sample)
        self._note(boot_id)
        return seconds

    def _note(self, boot_id: str) -> None:
        assert boot_id not in self._boot_ids, "a machine that had been booted before answered"
        self._boot_ids.add(boot_id)


def cold_boot(lab: Lab) -> Measured:
    """Measure the cold boot against the same command line by hand."""
    with lab.sandbox() as like:
        recipe = lab.recipe(like)
        with bare.boot(recipe) as machine:
            bare.assert_same_command_line(machine, like)
    boots = _Boots(lab, recipe)
    takers = {"bare": boots.bare, "hutch": boots.hutch}
    found = alternate(takers, lab.rounds(9, 2), warm=lab.rounds(1, 0))
    hand = Series("bare QEMU, to the agent's first answer", "s", found["bare"])
    ready = Series("bare QEMU, to disks mounted and identity set", "s", boots.ready)
    own = Series("hutch, request to reply", "s", found["hutch"])
    return Measured(
        "Cold boot",
        [hand, ready, own],
        [ratio("cold boot, of the same command line by hand", own, hand, _BOOT_LIMIT)],
        "Hutch's figure has the mounts and the identity in it, the bare one ends before. "
        "The two command lines were compared and are equal but for descriptors and names.",
    )


def cold(lab: Lab, recipe: Recipe) -> Series:
    """Take the yardstick of what is no cold boot: bare ones, to the agent's first answer."""
    boots = _Boots(lab, recipe)
    taken = [boots.bare() for _ in range(lab.rounds(5, 1))]
    return Series("bare QEMU, cold, to the agent's first answer", "s", taken)


def daemon_start(lab: Lab) -> Measured:
    """Measure a first command, which has to start the daemon."""

    def sample() -> float:
        if lab.hutch.daemon is not None:
            lab.command("daemon", "stop")
        assert lab.hutch.daemon is None, "the daemon has not stopped"
        seconds = lab.command("ps").wall
        assert lab.daemon.alive()
        return seconds

    taken = [sample() for _ in range(lab.rounds(7, 2))]
    series = Series("hutch ps, with no daemon running", "s", taken)
    return Measured(
        "Start of the daemon",
        [series],
        [Check("first command, the daemon's start included", series.median, _START_LIMIT, "s")],
    )

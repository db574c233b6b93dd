"""A daemon's side of the network as an ordinary user: run by `test_host` without root's rights.

Arguments: a directory of the user's own, and a TUN device. Prints `done` when all went as it must.
"""

import asyncio
import os
import sys
from pathlib import Path

from hutch.network.base import Attachment
from hutch.network.host import HostNetwork, Options
from hutch.network.processes import NETD_ID, recall
from hutch.networking import NetworkPolicy
from tests.unit.network.guest_frames import Guest

OUTSIDE = "93.184.215.14"


async def main(directory: Path, device: Path) -> None:
    gateway = (sys.executable, str(Path(__file__).with_name("fake_gateway.py")))
    network = HostNetwork(
        Options(directory / "home", directory / "run", device=device, gateway=gateway)
    )
    await network.open()
    if not network.ability.taps:
        print("refused:", network.ability.why, network.ability.hint)
        return
    await network.adopt([])

    async def attach(name: str) -> Guest:
        attachment = Attachment(name, name, directory / name, NetworkPolicy())
        return Guest(await network.attach(attachment))

    guests = {name: await attach(name) for name in ("sb_one", "sb_other")}
    for name, guest in guests.items():
        assert guest.connect(OUTSIDE, 22).receive() == f"{name} {OUTSIDE}:22\n".encode()
    # A netd that died is followed by one in the same namespaces.
    netd = recall(directory / "run/network" / NETD_ID)
    assert netd is not None
    netd.kill()
    await netd.wait()
    guests["sb_third"] = await attach("sb_third")
    for number, (name, guest) in enumerate(guests.items()):
        stream = guest.connect(OUTSIDE, 22, 50000 + number)
        assert stream.receive() == f"{name} {OUTSIDE}:22\n".encode()
    for name in guests:
        await network.detach(name)
    await network.stop()
    assert os.listdir(directory / "run/network") == []
    print("done")


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), Path(sys.argv[2])))

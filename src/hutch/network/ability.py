"""What a host lacks for sandboxes' networks, as far as can be seen without trying.

Whoever tries (netd) knows better; this says it sooner, and what to do.
"""

import os
from pathlib import Path
from typing import Final

from hutch import process
from hutch.network import tap
from hutch.network.base import Ability

_SYSCTLS: Final = (
    ("kernel/unprivileged_userns_clone", "0", "1"),
    ("user/max_user_namespaces", "0", "10000"),
    ("kernel/apparmor_restrict_unprivileged_userns", "1", "0"),
)
"""What keeps an unprivileged user from having namespaces, and what would not."""


def lacking(device: Path = tap.DEVICE) -> Ability | None:
    """Return why there can be no networks, or None when nothing speaks against it."""
    if process.which("nft") is None:
        return Ability(
            taps=False,
            why="the program nft is not installed",
            hint="install the package nftables (`apt-get install nftables`)",
        )
    try:
        os.close(os.open(device, os.O_RDWR | os.O_CLOEXEC))
    except FileNotFoundError:
        return Ability(
            taps=False,
            why=f"there is no {device}",
            hint="load the kernel's module (`modprobe tun`); a container needs the device, too",
        )
    except OSError as cause:
        return Ability(
            taps=False,
            why=f"{device} cannot be opened: {cause.strerror}",
            hint=f"let your user open it (`chmod 0666 {device}`), or run the daemon as root",
        )
    return None


def hint(root: Path = Path("/proc/sys")) -> str:
    """Return what to do when namespaces are refused."""
    if os.geteuid() == 0:
        return "give root CAP_SYS_ADMIN and CAP_NET_ADMIN, which its container took from it"
    for name, refuses, allows in _SYSCTLS:
        try:
            if (root / name).read_text("ascii").strip() == refuses:
                return f"allow user namespaces (`sysctl -w {name.replace('/', '.')}={allows}`)"
        except OSError:
            continue
    return "run the daemon as root"

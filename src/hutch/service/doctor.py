"""`hutch doctor`: whether this host has what Hutch needs, and the fix for what it lacks.

Works with and without a daemon. A `fail` keeps sandboxes from running; a `warn` takes away a part.
"""

import asyncio
import ipaddress
import os
import platform
import pwd
import re
import socket
import stat
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from hutch import process
from hutch.engine.base import Accelerator, BootFiles, Engine
from hutch.engine.qemu import QemuEngine
from hutch.errors import HutchError
from hutch.images.agent import agent_binary
from hutch.images.base import Kernels, no_report
from hutch.images.kernel import KernelStore
from hutch.network.base import Ability
from hutch.network.host import HostNetwork, Options
from hutch.networking import SYNTHETIC_RANGE
from hutch.reports import Check
from hutch.service.capacity import boot_need, file_system_room
from hutch.service.hostmemory import host_memory
from hutch.settings import GIB, MIB, Settings
from hutch.tasks import in_thread

QEMU_MIN: Final = (7, 2)
SPACE_FAIL: Final = 1 * GIB
SPACE_WARN: Final = 5 * GIB
SOCKET_TAIL: Final = len("/0123456789ab/sb_0123456789ab/console.sock")
SOCKET_MAX: Final = 107

OK, WARN, FAIL = "ok", "warn", "fail"

_KVM: Final = Path("/dev/kvm")
_ROUTES: Final = Path("/proc/net/route")
_BUSYBOX: Final = ("/bin/busybox", "/usr/bin/busybox")


def run_checks(settings: Settings) -> list[Check]:
    """Run all checks without a daemon; must not be called from a running event loop."""
    return list(asyncio.run(_check_alone(settings)))


async def _check_alone(settings: Settings) -> Sequence[Check]:
    engine, kernels = QemuEngine(settings), KernelStore(settings.home, settings)
    with tempfile.TemporaryDirectory(prefix="hutch-doctor-") as place:
        # Not beside the processes of a daemon that may run.
        elsewhere = Path(place)
        network = HostNetwork(Options(elsewhere, elsewhere))
        await network.open()
        try:
            return await check_host(settings, engine, kernels, network.ability)
        finally:
            await network.stop()


async def check_host(
    settings: Settings, engine: Engine, kernels: Kernels, ability: Ability
) -> Sequence[Check]:
    """Run all checks, in the order of a reader who fixes them one after the other.

    `ability` is what the network of sandboxes has found out about itself. May boot a canary VM to
    find out about the accelerator, when that is not known yet.
    """
    checks = [_python(), await _qemu(settings)]
    checks += await in_thread(_tools)
    checks += [_agent(), await _kernel(kernels), _kvm_device()]
    checks += [await _accelerator(engine, kernels)]
    checks += await in_thread(_places, settings)
    checks += [_user_namespaces(), _network(ability), *_ranges()]
    if os.geteuid() == 0 and settings.jail:
        checks.append(_uid_range(settings))
    return checks


def _python() -> Check:
    # An older one could not have read this file.
    return Check("python", OK, f"{platform.python_version()} ({sys.executable})")


async def _qemu(settings: Settings) -> Check:
    program = process.which(settings.qemu)
    fix = "apt-get install qemu-system-x86"
    if program is None:
        return Check("qemu", FAIL, f"{settings.qemu} is not installed", fix)
    try:
        done = await process.run([program, "--version"], timeout=10.0)
    except HutchError as failure:
        return Check("qemu", FAIL, failure.message, fix)
    text = done.stdout.decode(errors="replace").partition("\n")[0]
    found = re.search(r"version (\d+)\.(\d+)", text)
    if found is None or (int(found[1]), int(found[2])) < QEMU_MIN:
        wanted = ".".join(map(str, QEMU_MIN))
        return Check("qemu", FAIL, f"{text or program} is not new enough", f"install {wanted}+")
    return Check("qemu", OK, f"{text} ({program})")


def _tools() -> list[Check]:
    squashfs, erofs = process.which("tar2sqfs"), process.which("mkfs.erofs")
    builder = squashfs or erofs
    return [
        _tool("disks", "mkfs.ext4", "e2fsprogs", FAIL, "sandboxes have no writable disk"),
        Check("root images", OK, builder)
        if builder
        else Check(
            "root images",
            FAIL,
            "neither tar2sqfs nor mkfs.erofs is installed: images cannot be made into disks",
            "apt-get install squashfs-tools-ng",
        ),
        _busybox(),
        _tool("image debian", "mmdebstrap", "mmdebstrap", WARN, "the image cannot be made"),
        _tool("image builds", "buildah", "buildah", WARN, "`hutch image build` does not work"),
    ]


def _tool(name: str, program: str, package: str, status: str, without: str) -> Check:
    found = process.which(program)
    if found:
        return Check(name, OK, found)
    message = f"{program} is not installed: {without}"
    return Check(name, status, message, f"apt-get install {package}")


def _busybox() -> Check:
    found = next((path for path in _BUSYBOX if os.path.exists(path)), None)
    if found:
        return Check("image busybox", OK, found)
    message = "busybox is not installed: the built-in image cannot be made"
    return Check("image busybox", WARN, message, "apt-get install busybox-static")


def _agent() -> Check:
    try:
        return Check("guest agent", OK, str(agent_binary()))
    except HutchError as failure:
        return Check("guest agent", FAIL, failure.message, failure.hint)


async def _kernel(kernels: Kernels) -> Check:
    found = await kernels.list()
    active = next((kernel for kernel in found if kernel.active), None)
    if active is not None:
        return Check("kernel", OK, f"{active.name} ({active.source})")
    message = "no kernel is in the store yet; the first start fetches one"
    return Check("kernel", WARN, message, "hutch kernel pull")


def _kvm_device() -> Check:
    try:
        fd = os.open(_KVM, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        message = "there is no /dev/kvm: sandboxes run by software emulation"
        return Check("/dev/kvm", WARN, message, "enable hardware virtualisation for this machine")
    except OSError as cause:
        message = f"/dev/kvm cannot be opened: {cause.strerror}"
        return Check("/dev/kvm", WARN, message, "join the group kvm (`usermod -aG kvm $USER`)")
    os.close(fd)
    return Check("/dev/kvm", OK, "can be opened; whether it works, the accelerator's check shows")


async def _accelerator(engine: Engine, kernels: Kernels) -> Check:
    try:
        files = None
        if await kernels.list():
            kernel = await kernels.ensure(None, no_report)
            files = BootFiles(kernel.vmlinux, kernel.initramfs)
        verdict = await engine.probe(files)
    except HutchError as failure:
        return Check("accelerator", FAIL, failure.message, failure.hint)
    words = [f"{verdict.accelerator}: {verdict.reason}"]
    words += [f"not {name}: {why}" for name, why in verdict.rejected.items()]
    fast = verdict.accelerator is not Accelerator.TCG
    return Check("accelerator", OK if fast or files is None else WARN, "; ".join(words))


def _places(settings: Settings) -> list[Check]:
    return [
        _memory(settings),
        _space(settings.home),
        _home(settings.home),
        _runtime(settings.runtime_dir),
    ]


def _existing(path: Path) -> Path:
    while not path.exists() and path != path.parent:
        path = path.parent
    return path


def _memory(settings: Settings) -> Check:
    found = host_memory()
    limit = f" (limited by the control group {found.group})" if found.group else ""
    free, total = f"{found.available / GIB:.1f} GiB", f"{found.total / GIB:.1f} GiB"
    message = f"{free} of {total} are available{limit}, {settings.memory_reserve / MIB:.0f} MiB of"
    message += " them kept in reserve"
    need = boot_need("", "", settings.memory).expected
    if found.available - settings.memory_reserve >= need:
        return Check("memory", OK, message)
    fix = "stop what takes it (`hutch ps -s`), or lower the setting memory_reserve"
    return Check("memory", FAIL, f"{message}: too little to start a sandbox", fix)


def _space(home: Path) -> Check:
    free = file_system_room(_existing(home))
    message = f"{free / GIB:.1f} GiB are free for {home}"
    status = FAIL if free < SPACE_FAIL else WARN if free < SPACE_WARN else OK
    fix = None if status == OK else "free some space, or set HUTCH_HOME to a larger file system"
    return Check("disk space", status, message, fix)


def _home(home: Path) -> Check:
    place = _existing(home)
    if not os.access(place, os.W_OK | os.X_OK):
        return Check("home", FAIL, f"{place} cannot be written to", "set HUTCH_HOME elsewhere")
    return Check("home", OK, str(home))


def _runtime(runtime: Path) -> Check:
    name = "runtime directory"
    if len(os.fsencode(runtime)) + SOCKET_TAIL > SOCKET_MAX:
        message = f"{runtime} is too long for the paths of sockets"
        return Check(name, FAIL, message, "set HUTCH_RUNTIME_DIR to a shorter one")
    place = _existing(runtime)
    if not os.access(place, os.W_OK | os.X_OK):
        message = f"{place} cannot be written to"
        return Check(name, FAIL, message, "set HUTCH_RUNTIME_DIR to one of your own")
    if place == runtime:
        found = runtime.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
            message = f"{runtime} is not a directory of yours"
            return Check(name, FAIL, message, "remove it, or set HUTCH_RUNTIME_DIR elsewhere")
    return Check(name, OK, str(runtime))


def _user_namespaces() -> Check:
    try:
        limit = int(Path("/proc/sys/user/max_user_namespaces").read_text("ascii"))
    except (OSError, ValueError):
        limit = 0
    words = "are available" if limit else "are not available; nothing needs them yet"
    return Check("user namespaces", OK, words)


def _network(ability: Ability) -> Check:
    name = "network"
    if not ability.taps:
        message = f"sandboxes have no networks: {ability.why}"
        return Check(name, WARN, message, ability.hint or "run the daemon as root")
    words = (
        "connections are answered once their peers have"
        if ability.held
        else "connections are answered before their peers have, and reset if those refuse"
    )
    return Check(name, OK, f"sandboxes have networks of their own; {words}")


def _ranges() -> list[Check]:
    """Warn of a host that uses the addresses itself which sandboxes find names at."""
    ours = ipaddress.ip_network(SYNTHETIC_RANGE)
    try:
        lines = _ROUTES.read_text("ascii").splitlines()[1:]
        routes = [tuple(int(line.split()[i], 16) for i in (1, 7)) for line in lines]
    except (OSError, ValueError, IndexError):
        return []
    for address, mask in routes:
        route = ipaddress.ip_address(socket.ntohl(address))
        if mask and route in ours:
            message = f"this host routes {route}, an address of {ours}: as some proxies do"
            fix = "have such a proxy answer with real addresses, or with another range"
            return [Check("network addresses", WARN, message, fix)]
    return []


def _uid_range(settings: Settings) -> Check:
    first, last = settings.uid_base, settings.uid_base + settings.uid_count - 1
    taken = [user.pw_name for user in pwd.getpwall() if first <= user.pw_uid <= last]
    if taken:
        message = f"the uids {first}-{last} of VMs are also those of {', '.join(taken[:3])}"
        return Check("uids", FAIL, message, "set uid_base to a range that nobody has")
    return Check("uids", OK, f"{first}-{last}, one for each VM")

"""The images that Hutch makes by itself, for hosts without a registry: `busybox` and `debian`.

`busybox` is the distribution's static busybox with a link for each applet. `debian` is a minimal
system that mmdebstrap makes from the host's own package sources. Each gives one uncompressed layer
and its run configuration; `store` does the rest.
"""

import io
import os
import platform
import re
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from hutch import process
from hutch.content import ImageConfig
from hutch.errors import error
from hutch.images import tar
from hutch.images.aptsources import host_sources
from hutch.tasks import in_thread

_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_LIST_TIMEOUT = 10.0
_BOOTSTRAP_TIMEOUT = 1800.0
_PASSWD = b"""root:x:0:0:root:/root:/bin/sh
daemon:x:1:1:daemon:/usr/sbin:/bin/false
nobody:x:65534:65534:nobody:/nonexistent:/bin/false
"""
_GROUP = b"""root:x:0:
daemon:x:1:
tty:x:5:
disk:x:6:
users:x:100:
nogroup:x:65534:
"""
_SHELLS = b"/bin/sh\n"
_HOSTS = b"127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n"
_DIRECTORIES = (
    ("bin", 0o755), ("dev", 0o755), ("etc", 0o755), ("home", 0o755), ("lib", 0o755),
    ("proc", 0o555), ("root", 0o700), ("run", 0o755), ("sbin", 0o755), ("sys", 0o555),
    ("tmp", 0o1777), ("usr", 0o755),
    ("usr/bin", 0o755), ("usr/sbin", 0o755), ("var", 0o755), ("var/log", 0o755),
    ("var/spool", 0o755), ("var/tmp", 0o1777),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Recipe:
    """What a built-in is, but for its layer."""

    name: str
    config: ImageConfig
    created_by: str


BUSYBOX = Recipe(
    "busybox", ImageConfig(command=["sh"], env={"PATH": _PATH}), "hutch built-in busybox"
)
DEBIAN = Recipe(
    "debian", ImageConfig(command=["bash"], env={"PATH": _PATH}), "hutch built-in debian"
)
RECIPES = {recipe.name: recipe for recipe in (BUSYBOX, DEBIAN)}


async def make_layer(name: str, target: Path) -> float:
    """Write the layer of a built-in image to `target`, uncompressed; return when its content was
    made.

    For `busybox` that is the age of the host's program, so that the image stays the same as long as
    that does.

    Raises Missing (tool_missing) naming the package that helps, ImageError (build_failed).
    """
    return await (_busybox if name == BUSYBOX.name else _debian)(target)


async def _busybox(target: Path) -> float:
    program = process.require("busybox", "busybox-static")
    listed = await process.run([program, "--list-full"], timeout=_LIST_TIMEOUT, code="build_failed")
    body = await in_thread(Path(program).read_bytes)
    if b"/ld-linux" in body[:4096]:
        raise error(
            "tool_missing",
            f"{program} is not statically linked, so it cannot run in an image of its own",
            hint="install the package busybox-static (`apt-get install busybox-static`)",
        )
    applets = listed.stdout.decode("ascii", "replace").split()
    await in_thread(target.write_bytes, busybox_layer(body, applets))
    return (await in_thread(os.stat, program)).st_mtime


def busybox_layer(program: bytes, applets: Iterable[str]) -> bytes:
    """Return the tar of a system that is a static busybox with a link for each applet."""
    out = io.BytesIO()
    add = _adder(out)
    for name, mode in _DIRECTORIES:
        add(tar.Member(name.encode(), tar.DIRECTORY, mode), b"")
    add(tar.Member(b"bin/busybox", tar.FILE, 0o755), program)
    for applet in sorted({item.lstrip("/") for item in applets} | {"bin/sh"}):
        directory, _, name = applet.rpartition("/")
        if name and name != "busybox" and directory in ("bin", "sbin", "usr/bin", "usr/sbin"):
            link = tar.Member(applet.encode(), tar.SYMLINK, 0o777, link=b"/bin/busybox")
            add(link, b"")
    for path, content in (
        ("etc/passwd", _PASSWD),
        ("etc/group", _GROUP),
        ("etc/shells", _SHELLS),
        ("etc/hosts", _HOSTS),
    ):
        add(tar.Member(path.encode(), tar.FILE, 0o644), content)
    tar.finish(out)
    return out.getvalue()


def _adder(out: io.BytesIO) -> Callable[[tar.Member, bytes], None]:
    def add(member: tar.Member, content: bytes) -> None:
        member.size = len(content)
        out.write(tar.header(member) + content + tar.padding(len(content)))

    return add


async def _debian(target: Path) -> float:
    program = process.require("mmdebstrap", "mmdebstrap")
    suite = _suite()
    mode = "root" if os.geteuid() == 0 else "auto"
    await process.run(
        [
            program, f"--mode={mode}", "--variant=minbase", "--include=ca-certificates",
            "--format=tar", '--aptopt=Apt::Install-Recommends "false"',
            "--dpkgopt=path-exclude=/usr/share/man/*", "--dpkgopt=path-exclude=/usr/share/info/*",
            "--dpkgopt=path-exclude=/usr/share/doc/*",
            "--dpkgopt=path-include=/usr/share/doc/*/copyright",
            "--dpkgopt=path-exclude=/usr/share/locale/*",
            "--dpkgopt=path-include=/usr/share/locale/locale.alias",
            *[f"--aptopt={line}" for line in await _proxies()],
            '--customize-hook=rm -f "$1/etc/resolv.conf" "$1/etc/hostname"',
            suite, str(target), *host_sources(suite),
        ],
        timeout=_BOOTSTRAP_TIMEOUT,
        code="build_failed",
    )  # fmt: skip
    return time.time()


async def _proxies() -> list[str]:
    """Return the host's proxy and certificate options of apt, which mmdebstrap does not read by
    itself.
    """
    dumped = await process.run(["apt-config", "dump"], timeout=_LIST_TIMEOUT, code="build_failed")
    lines = dumped.stdout.decode(errors="replace").splitlines()
    wanted = re.compile(r"Acquire::https?::(?:Proxy|CAInfo|Verify-)")
    return [line for line in lines if wanted.match(line)]


def _suite() -> str:
    """Return the host's own release when it is a Debian, else the stable one."""
    release = platform.freedesktop_os_release()
    return release.get("VERSION_CODENAME", "stable") if release.get("ID") == "debian" else "stable"

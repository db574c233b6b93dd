"""How much memory this host has, and how much of it is left for more.

By the kernel's account of the whole host, or by that of a control group (version 1 or 2) which the
daemon and so its VMs are in, where that is tighter. Reads `/proc` and the control groups' file
systems; knows nothing of sandboxes.
"""

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

_V2, _V1 = "cgroup2", "cgroup"


@dataclass(frozen=True, slots=True)
class HostMemory:
    """Bytes: all that there may be used, and what is left without swapping.

    `group` is the control group that sets the limit, where that is not the host itself.
    """

    total: int
    available: int
    group: str | None = None


@dataclass(frozen=True, slots=True)
class _Names:
    """The files of a control group, and the value of what can be taken back of its use."""

    limit: str
    use: str
    reclaimable: bytes


_FILES: Mapping[str, _Names] = {
    _V2: _Names("memory.max", "memory.current", b"inactive_file"),
    _V1: _Names("memory.limit_in_bytes", "memory.usage_in_bytes", b"total_inactive_file"),
}


def host_memory(root: Path = Path("/")) -> HostMemory:
    """Return what is there and what is left. Blocking, well below a millisecond.

    `root` is where `/proc` and the control groups are found. Raises OSError without `/proc`.
    """
    values = _numbers(root / "proc/meminfo")
    tightest = HostMemory(values[b"MemTotal:"] << 10, values[b"MemAvailable:"] << 10)
    total = tightest.total
    for kind, folder in _groups(root):
        found = _limited(folder, _FILES[kind])
        if found is None or found.total >= total:
            continue  # without a limit version 1 tells one that no host has
        if found.available < tightest.available:
            tightest = HostMemory(min(tightest.total, found.total), found.available, found.group)
        elif found.total < tightest.total:
            tightest = HostMemory(found.total, tightest.available, found.group)
    return tightest


def _limited(folder: Path, names: _Names) -> HostMemory | None:
    """Return what a control group allows; None for one that has no limit or tells nothing."""
    try:
        limit = int((folder / names.limit).read_bytes())
        use = int((folder / names.use).read_bytes())
    except (OSError, ValueError):  # `max` is no number
        return None
    reclaimable = 0
    with contextlib.suppress(OSError):
        reclaimable = _numbers(folder / "memory.stat").get(names.reclaimable, 0)
    return HostMemory(limit, max(0, limit - use + reclaimable), str(folder))


def _groups(root: Path) -> Iterator[tuple[str, Path]]:
    """Yield the memory groups that this process is in, each with all those above it."""
    try:
        mounts = (root / "proc/self/mountinfo").read_text("utf-8", "surrogateescape")
        groups = (root / "proc/self/cgroup").read_text("utf-8", "surrogateescape")
    except OSError:
        return
    ours = dict(_memberships(groups))
    for line in mounts.splitlines():
        before, _, after = line.partition(" - ")
        fields, more = before.split(), after.split()
        kind, options = more[0], more[-1].split(",")
        if kind not in ours or (kind == _V1 and "memory" not in options):
            continue
        top, mount = PurePosixPath(fields[3]), root / fields[4].lstrip("/")
        # A container sees its own group as the root of the mount, which need not name the path.
        path = PurePosixPath(ours[kind])
        inner = path.relative_to(top) if path.is_relative_to(top) else PurePosixPath()
        folder = mount / inner
        while True:
            yield kind, folder
            if folder == mount:
                break
            folder = folder.parent


def _memberships(text: str) -> Iterator[tuple[str, str]]:
    """Yield the kinds of control groups that may limit memory, with this process's path in each."""
    for line in text.splitlines():
        number, controllers, path = line.split(":", 2)
        if number == "0" and not controllers:
            yield _V2, path
        elif "memory" in controllers.split(","):
            yield _V1, path


def _numbers(path: Path) -> dict[bytes, int]:
    """Return the lines of a file that are a name and a number."""
    rows = (line.split() for line in path.read_bytes().splitlines())
    return {row[0]: int(row[1]) for row in rows if len(row) > 1 and row[1].isdigit()}

"""The memory of a host, by /proc and by control groups, from trees that look like them."""

from pathlib import Path

import pytest

from hutch.service.hostmemory import HostMemory, host_memory

MIB = 1 << 20
UNLIMITED = str(0x7FFFFFFFFFFFF000)
MEMINFO = "MemTotal:       8388608 kB\nMemFree:  1 kB\nMemAvailable:   6291456 kB\nHugePages: 0\n"
WHOLE = HostMemory(8192 * MIB, 6144 * MIB)


class Host:
    """A root directory with `/proc`; `mount` and `group` add control groups."""

    def __init__(self, root: Path) -> None:
        self.root = root
        (root / "proc/self").mkdir(parents=True)
        (root / "proc/meminfo").write_text(MEMINFO)
        self.mounts: list[str] = ["23 1 0:20 / / rw - ext4 /dev/vda rw"]
        self.groups: list[str] = ["5:cpu,cpuacct:/elsewhere"]
        self._write()

    def _write(self) -> None:
        (self.root / "proc/self/mountinfo").write_text("\n".join(self.mounts) + "\n")
        (self.root / "proc/self/cgroup").write_text("\n".join(self.groups) + "\n")

    def mount(self, kind: str, where: str, *, top: str = "/", options: str = "rw") -> None:
        self.mounts.append(
            f"41 31 0:38 {top} {where} rw,relatime shared:9 - {kind} {kind} {options}"
        )
        self._write()

    def member(self, line: str) -> None:
        self.groups.append(line)
        self._write()

    def v2(self, folder: str, limit: str, use: int, inactive: int = 0) -> None:
        path = self.root / folder.lstrip("/")
        path.mkdir(parents=True, exist_ok=True)
        (path / "memory.max").write_text(f"{limit}\n")
        (path / "memory.current").write_text(f"{use}\n")
        (path / "memory.stat").write_text(f"anon 5\ninactive_file {inactive}\n")

    def v1(self, folder: str, limit: str, use: int, inactive: int = 0) -> None:
        path = self.root / folder.lstrip("/")
        path.mkdir(parents=True, exist_ok=True)
        (path / "memory.limit_in_bytes").write_text(f"{limit}\n")
        (path / "memory.usage_in_bytes").write_text(f"{use}\n")
        (path / "memory.stat").write_text(f"inactive_file 1\ntotal_inactive_file {inactive}\n")

    def read(self) -> HostMemory:
        return host_memory(self.root)


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


def test_without_control_groups(host: Host) -> None:
    assert host.read() == WHOLE
    (host.root / "proc/self/mountinfo").unlink()
    assert host.read() == WHOLE


def test_without_proc(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        host_memory(tmp_path)


def test_a_limit_of_version_2(host: Host) -> None:
    host.mount("cgroup2", "/sys/fs/cgroup")
    host.member("0::/system.slice/hutch.service")
    host.v2("/sys/fs/cgroup/system.slice/hutch.service", str(2048 * MIB), 1500 * MIB, 300 * MIB)
    found = host.read()
    assert (found.total, found.available) == (2048 * MIB, 848 * MIB)
    assert found.group is not None
    assert found.group.endswith("hutch.service")


def test_the_tightest_of_all_above(host: Host) -> None:
    host.mount("cgroup2", "/sys/fs/cgroup")
    host.member("0::/a/b/c")
    host.v2("/sys/fs/cgroup/a/b/c", "max", 10 * MIB)
    host.v2("/sys/fs/cgroup/a/b", str(3072 * MIB), 100 * MIB)
    host.v2("/sys/fs/cgroup/a", str(1024 * MIB), 1000 * MIB)
    found = host.read()
    assert (found.total, found.available) == (1024 * MIB, 24 * MIB)
    assert found.group is not None
    assert found.group.endswith("/a")


def test_a_limit_that_is_far_leaves_what_the_host_has(host: Host) -> None:
    host.mount("cgroup2", "/sys/fs/cgroup")
    host.member("0::/a")
    host.v2("/sys/fs/cgroup/a", str(7000 * MIB), 0)
    found = host.read()
    assert (found.total, found.available) == (7000 * MIB, 6144 * MIB)


def test_use_above_a_limit_leaves_nothing(host: Host) -> None:
    host.mount("cgroup2", "/sys/fs/cgroup")
    host.member("0::/a")
    host.v2("/sys/fs/cgroup/a", str(100 * MIB), 101 * MIB)
    assert host.read().available == 0


def test_a_limit_of_version_1_on_a_mixed_host(host: Host) -> None:
    host.mount("cgroup", "/sys/fs/cgroup/cpu", options="rw,cpu,cpuacct")
    host.mount("cgroup", "/sys/fs/cgroup/memory", options="rw,memory")
    host.mount("cgroup2", "/sys/fs/cgroup/unified")
    host.member("4:memory:/user/me")
    host.member("0::/user/me")
    host.v1("/sys/fs/cgroup/memory", UNLIMITED, 1)
    host.v1("/sys/fs/cgroup/memory/user/me", str(512 * MIB), 400 * MIB, 50 * MIB)
    found = host.read()
    assert (found.total, found.available) == (512 * MIB, 162 * MIB)


def test_no_limit_of_version_1(host: Host) -> None:
    host.mount("cgroup", "/sys/fs/cgroup/memory", options="rw,memory")
    host.member("4:memory:/")
    host.v1("/sys/fs/cgroup/memory", UNLIMITED, 5)
    assert host.read() == WHOLE


@pytest.mark.parametrize("top", ["/", "/docker/abc"])
def test_a_container_sees_its_group_at_the_mount(host: Host, top: str) -> None:
    host.mount("cgroup2", "/sys/fs/cgroup", top=top)
    host.member("0::/docker/abc")
    host.v2("/sys/fs/cgroup", str(256 * MIB), 56 * MIB)
    assert host.read().available == 200 * MIB


def test_a_group_out_of_the_namespaces_sight(host: Host) -> None:
    host.mount("cgroup2", "/sys/fs/cgroup")
    host.member("0::/../../other")
    host.v2("/sys/fs/cgroup", "max", 1)
    assert host.read() == WHOLE

"""What a program finds in a sandbox: the surroundings that container images expect."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from hutch.networking import GATEWAY_ADDRESS
from tests.harness.hutch import Hutch
from tests.unit.images.making import MadeImage, entry, layer
from tests.vm.conftest import Box
from tests.waiting import wait_until

SHELL = Path("/bin/busybox")  # static; what the built-in image is made of
MADE = "example.org/made:1"


@pytest.fixture(scope="module")
def made(_module_hutch: Hutch, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Box]:
    """A sandbox of an image whose surroundings are awkward on purpose."""
    base = layer(
        *(entry(name, "dir") for name in ("bin", "etc", "srv", "srv/tree", "data", "home")),
        entry("bin/busybox", data=SHELL.read_bytes(), mode=0o755),
        *(entry(f"bin/{name}", "symlink", linkname="busybox") for name in ("sh", "cat", "ls")),
        entry("bin/su", data=SHELL.read_bytes(), mode=0o4755),
        entry("srv/tree/one", data=b"one"),
        entry("srv/tree/two", "link", linkname="srv/tree/one"),
        entry("srv/kept", data=b"kept", uid=7, gid=8, mode=0o640, xattrs={"user.k": b"\x00\xff"}),
        entry("data/first", data=b"from the image", uid=33, mode=0o600),
        entry("etc/hostname", "symlink", linkname="/srv/kept"),
        entry("etc/hosts", "symlink", linkname="../srv/none"),
        entry("etc/resolv.conf", "symlink", linkname="/run/absent/resolv.conf"),
        entry("etc/passwd", data=b"app:x:33:44::/home/app:/bin/sh\n"),
        entry("etc/group", data=b"app:x:44:\nextra:x:55:app\n"),
    )
    later = layer(entry("srv/tree/three", "link", linkname="srv/tree/one"))
    image = MadeImage(
        [base, later],
        run={
            "Entrypoint": ["/bin/busybox"],
            "Cmd": ["sleep", "100000"],
            "Env": ["PATH=/bin", "FROM_IMAGE=yes"],
            "WorkingDir": "/srv",
            "User": "app",
            "StopSignal": "SIGKILL",
            "Volumes": {"/data": {}, "/fresh": {}},
            "ExposedPorts": {"80/tcp": {}},
        },
    )
    path = image.write_layout(tmp_path_factory.mktemp("layout") / "made", MADE)
    _module_hutch.run("image", "import", str(path))
    _module_hutch.run("run", "-d", "--name", "made", MADE)
    yield Box(_module_hutch, "made")
    _module_hutch.run("rm", "-f", "made")


def script(made: Box, text: str, user: str = "0") -> str:
    """Return what busybox's shell says in the made image."""
    return made.run("/bin/busybox", "sh", "-c", text, options=("-u", user)).text


def test_loopback_is_up_and_the_only_way_out_is_by_the_gateway(box: Box) -> None:
    assert box.sh("ping -c 1 -W 20 127.0.0.1 >/dev/null; echo $?").text == "0"
    assert box.sh("ping -c 1 -W 20 ::1 >/dev/null; echo $?").text == "0"
    assert box.sh("cat /sys/class/net/lo/carrier").text == "1"
    # None at all on a host that cannot give machines a network.
    routes = box.sh("ip route").text.splitlines()
    assert all(GATEWAY_ADDRESS in route for route in routes)
    assert len(routes) in (0, 2)


def test_names_of_the_machine(box: Box) -> None:
    assert box.sh("hostname; cat /etc/hostname").text == "box\nbox"
    hosts = box.sh("cat /etc/hosts").text
    assert "127.0.0.1\tlocalhost" in hosts
    assert "127.0.1.1\tbox" in hosts
    assert box.sh("ls -ld /etc/hosts /etc/hostname /etc/resolv.conf | cut -c1-10").text == (
        "-rw-r--r--\n-rw-r--r--\n-rw-r--r--"
    )
    machine_id = box.sh("cat /etc/machine-id").text
    assert len(machine_id) == 32
    assert int(machine_id, 16) > 0


def test_kernel_file_systems(box: Box) -> None:
    mounts = {
        line.split()[1]: line.split()[2] for line in box.sh("cat /proc/mounts").text.splitlines()
    }
    wanted = {
        "/": "overlay",
        "/proc": "proc",
        "/sys": "sysfs",
        "/dev": "devtmpfs",
        "/dev/pts": "devpts",
        "/dev/shm": "tmpfs",
        "/dev/mqueue": "mqueue",
        "/run": "tmpfs",
        "/sys/fs/cgroup": "cgroup2",
    }
    assert {path: mounts.get(path) for path in wanted} == wanted
    assert box.sh("cat /proc/swaps | wc -l").text == "1"


def test_devices(box: Box) -> None:
    assert box.sh("stat -c %a /dev/pts/ptmx /dev/shm /tmp /run").text == "666\n1777\n1777\n755"
    script = """
        echo x > /dev/shm/a && cat /dev/shm/a
        head -c 3 /dev/zero | wc -c; echo gone > /dev/null
        head -c 8 /dev/urandom | wc -c
        for i in fd stdin stdout stderr ptmx; do readlink /dev/$i; done
        echo through > /dev/stdout
    """
    assert box.sh(script).text.split() == [
        *("x", "3", "8", "/proc/self/fd", "/proc/self/fd/0", "/proc/self/fd/1"),
        *("/proc/self/fd/2", "pts/ptmx", "through"),
    ]
    assert box.sh("echo x > /dev/full", expect=None).code != 0


def test_limits(box: Box) -> None:
    assert box.sh("ulimit -n; ulimit -c; ulimit -Hn").text == "1048576\n0\n1048576"
    assert box.sh("cat /proc/sys/kernel/pid_max").text.isdigit()
    assert box.sh("umask").text == "0022"
    assert box.sh("cat /proc/self/oom_score_adj").text == "0"


def test_a_program_starts_with_clean_signals_and_descriptors(box: Box) -> None:
    status = box.run("cat", "/proc/self/status").text
    for name in ("SigBlk", "SigIgn", "SigPnd"):
        assert f"{name}:\t{'0' * 16}" in status
    assert box.run("ls", "/proc/self/fd").text.split() == ["0", "1", "2", "3"]  # 3: ls itself


def test_cgroups_are_delegated(box: Box) -> None:
    script = """
        cd /sys/fs/cgroup
        [ -e cgroup.subtree_control ] || exit 3
        own=$(cut -d: -f3 /proc/self/cgroup)
        mkdir .$own/inner && echo $$ > .$own/inner/cgroup.procs && cut -d: -f3 /proc/self/cgroup
        echo +memory +pids > .$own/cgroup.subtree_control && cat .$own/cgroup.subtree_control
        echo 33554432 > .$own/inner/memory.max && cat .$own/inner/memory.max
    """
    lines = box.sh(script).text.splitlines()
    assert lines[0].endswith("/inner")
    assert set(lines[1].split()) >= {"memory", "pids"}
    assert lines[2] == "33554432"


def test_a_workload_cannot_reach_its_keeper(box: Box) -> None:
    """The agent is PID 1: neither signals without a handler end it, nor does the OOM killer."""
    assert box.sh("kill -9 1; kill -TERM 1; kill -STOP 1; echo on").text == "on"
    # The kernel is told to kill the largest process now, which may well be this shell.
    box.sh("echo f >/proc/sysrq-trigger; sleep 1", expect=None)
    assert box.sh("echo still").text == "still"


def test_orphans_are_reaped(box: Box) -> None:
    box.sh("for i in 1 2 3 4 5; do (sleep 0.1 &) ; done")
    left = "grep -lE 'State:.Z|Name:.sleep' /proc/[0-9]*/status | wc -l"
    wait_until(lambda: box.sh(left).text == "0", what="they are reaped")


def test_directories_of_the_image_can_be_renamed(made: Box) -> None:
    assert (
        script(made, "mv /srv/tree /srv/moved && cat /srv/moved/one && mv /srv/moved /srv/tree")
        == "one"
    )


def test_hard_links_of_the_image_stay_links(made: Box) -> None:
    text = """
        busybox stat -c %h /srv/tree/one
        echo changed > /srv/tree/two
        cat /srv/tree/one /srv/tree/three
        cd /srv/tree && busybox stat -c %i one two three | busybox uniq | busybox wc -l
    """
    assert script(made, text).split() == ["3", "changed", "changed", "1"]


def test_owners_modes_and_attributes_of_the_image(made: Box) -> None:
    assert script(made, "busybox stat -c '%u %g %a' /srv/kept") == "7 8 640"
    assert script(made, "busybox stat -c %a /bin/su") == "4755"


def test_files_of_names_replace_links_and_leave_their_targets(made: Box) -> None:
    assert script(made, "cat /etc/hostname /srv/kept") == "made\nkept"
    assert script(made, "ls /srv/none 2>&1; echo $?").endswith("1")
    assert "127.0.0.1" in script(made, "cat /etc/hosts")


def test_the_images_user_directory_and_environment(made: Box) -> None:
    done = made.run(
        "/bin/busybox", "sh", "-c", "busybox id; pwd; echo $HOME $USER $FROM_IMAGE $PATH"
    )
    lines = done.text.splitlines()
    assert lines[0] == "uid=33(app) gid=44(app) groups=44(app),55(extra)"
    assert lines[1:] == ["/srv", "/home/app app yes /bin"]


def test_the_images_config_is_shown(made: Box) -> None:
    [info] = made.hutch.json("inspect", "made")
    assert info["command"] == ["/bin/busybox", "sleep", "100000"]
    assert (info["user"], info["workdir"], info["stop_signal"]) == ("app", "/srv", "SIGKILL")
    assert (info["exposed_ports"], sorted(info["volumes"])) == (["80/tcp"], ["/data", "/fresh"])
    main = [row for row in made.hutch.json("top", "made") if "100000" in row["command"]]
    assert main[0]["user"] in ("app", "33")


def test_volumes_are_no_overlay_and_begin_with_the_images_content(made: Box) -> None:
    mounts = script(made, "cat /proc/mounts")
    types = {line.split()[1]: line.split()[2] for line in mounts.splitlines()}
    for path in ("/data", "/fresh", "/var/lib/docker", "/var/lib/containers"):
        assert types[path] == "ext4", path
    assert (
        script(made, "cat /data/first; busybox stat -c ' %u %a' /data/first")
        == "from the image 33 600"
    )
    # What overlay on overlay would refuse.
    text = """
        cd /var/lib/docker && busybox mkdir -p l u w m
        busybox mount -t overlay o -o lowerdir=l,upperdir=u,workdir=w m && echo x > m/x && cat u/x
        busybox umount m
    """
    assert script(made, text) == "x"


def test_memory_and_cpus_are_those_asked_for(box: Box) -> None:
    [info] = box.hutch.json("inspect", box.name)
    assert int(box.sh("nproc").text) == info["cpus"]
    total = int(box.sh("grep MemTotal /proc/meminfo").text.split()[1]) << 10
    assert info["memory"] * 0.88 < total < info["memory"]


def test_the_clock_is_the_hosts(box: Box) -> None:
    before = time.time()
    now = int(box.sh("date +%s").text)  # whole seconds
    assert before - 5 < now < time.time() + 5


def test_stats_are_the_guests(box: Box) -> None:
    box.sh("dd if=/dev/zero of=/root/big bs=1M count=50 2>/dev/null; sync")
    [stats] = box.hutch.json("stats", box.name)
    assert stats["disk_used"] > 50 << 20
    assert 0 < stats["memory_used"] < stats["memory_total"]
    assert stats["uptime_seconds"] > 0
    assert stats["processes"] >= 1

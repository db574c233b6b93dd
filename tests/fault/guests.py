"""Hostile guests, real ones: the kernel of a home boots them in place of the guest agent.

Each is a shell script that busybox runs as PID 1, with the agent's port open as descriptor 3.
"""

import stat
from pathlib import Path

from tests.harness.hutch import Hutch

_BUSYBOX = Path("/bin/busybox")
_PAGE, _REST = 4096, 16

# gzip's trailer begins with the CRC-32 that a WELCOME ends with.
_PRELUDE = r"""#!/busybox sh
/busybox echo a hostile guest
/busybox mkdir -p /proc /sys /dev /bin
/busybox --install -s /bin
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
for module in $(cat /modules.list); do insmod "$module"; done
until name=$(grep -l '^org.hutch.agent.0$' /sys/class/virtio-ports/*/name); do sleep 0.05; done
port=/dev/$(basename "${name%/name}")
until [ -c "$port" ]; do sleep 0.05; done
exec 3<>"$port"
welcome() {
    dd bs=40 count=1 <&3 >/hello 2>/dev/null
    { head -c 16 /hello; printf '\002\001\000\000'; tail -c 20 /hello | head -c 16; } >/body
    { cat /body; gzip -c /body | tail -c 8 | head -c 4; } >&3
}
greet() {
    while :; do welcome; done &
    sleep 1.5
}
idle() { while :; do sleep 1000; done; }
"""

SCRIPTS = {
    "ends at once": "poweroff -f",
    "panics": "exec /busybox false",
    "says nothing": "idle",
    "floods its console": "while :; do cat /dev/zero >/dev/console; done",
    "floods its port": "cat /dev/urandom >&3; idle",
    "says nothing after the greeting": "greet; idle",
    "sends garbage after the greeting": "greet; cat /dev/urandom >&3; idle",
    "claims a frame of 4 GiB": r"greet; printf '\012\0\0\0\0\0\0\0\377\377\377\377' >&3; idle",
    "opens and closes its port": 'while :; do exec 3>&-; exec 3<>"$port"; done',
    "greets for ever": "while :; do welcome; cat /body /body /body /body >&3; done",
}


def take_over(hutch: Hutch, script: str) -> None:
    """Let every further boot of this home run `script` as PID 1 in place of the agent."""
    init = (_PRELUDE + script + "\n").encode()
    members = (("busybox", _BUSYBOX.read_bytes()), ("init", init), ("TRAILER!!!", b""))
    # The kernel unpacks archives one after the other: the later /init is the one that counts.
    added = b"".join(_member(number, *member) for number, member in enumerate(members, 1))
    for path in hutch.home.glob("kernels/*/initramfs-*.cpio"):
        original = path.with_suffix(".agent")
        if not original.exists():
            path.rename(original)  # not overwritten: it is a link that other homes have, too
        body = original.read_bytes()
        body += bytes(-len(body) % 4) + added
        path.write_bytes(body + bytes((_REST - len(body)) % _PAGE))


def give_back(hutch: Hutch) -> None:
    """Let every further boot of this home run the agent again."""
    for original in hutch.home.glob("kernels/*/initramfs-*.agent"):
        original.replace(original.with_suffix(".cpio"))


def _member(number: int, name: str, content: bytes) -> bytes:
    path = name.encode() + b"\0"
    mode = stat.S_IFREG | 0o755
    fields = (number, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(path), 0)
    head = b"070701" + b"%08x" * 13 % fields + path
    return head + bytes(-len(head) % 4) + content + bytes(-len(content) % 4)

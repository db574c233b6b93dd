"""From what was asked for to what will run: one sandbox's resolved description.

Pure: the request, the image's config, the settings and the host's size go in; a SandboxInfo or an
error comes out. Entry point, command, environment and the like follow the rules of container tools.
"""

import dataclasses
import math
import os
import re
import signal
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from hutch.errors import HutchError, error
from hutch.images.base import Image
from hutch.models import ExecSpec, IdleAction, SandboxInfo, SandboxSpec, SandboxState, TtySize
from hutch.networking import NetworkPolicy, PublishedPort
from hutch.portspec import check_ports
from hutch.service.names import check_name
from hutch.settings import GIB, KIB, MIB, Settings

MEMORY_MIN = 64 * MIB
DISK_MIN = 64 * MIB
DISK_MAX = 16 << 40
CPUS_MAX = 255
ARGUMENTS_MAX = 512 * KIB
"""Bytes of argv and environment together; the guest protocol carries 1 MiB in a request."""

LABELS_MAX = 64 * KIB
TIMEOUT_MAX = 10 * 365 * 86400.0
_HOSTNAME = re.compile(r"[a-zA-Z0-9]([a-zA-Z0-9.-]{0,61}[a-zA-Z0-9])?")
_VARIABLE = re.compile(r"[^=\0]+")


@dataclass(frozen=True, slots=True)
class HostSize:
    """What this host has: CPUs and bytes of memory."""

    cpus: int
    memory: int

    @classmethod
    def of_this_host(cls) -> "HostSize":
        """Return the CPUs that this process may use and the memory that is installed."""
        pages, page = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
        return cls(len(os.sched_getaffinity(0)), pages * page)


def resolve(
    spec: SandboxSpec,
    image: Image,
    settings: Settings,
    host: HostSize,
    *,
    sandbox_id: str,
    name: str,
    created_at: str,
    network: NetworkPolicy,
    ports: Sequence[PublishedPort] = (),
) -> SandboxInfo:
    """Return the sandbox that `spec` asks for, in state created.

    `network` is the policy that it will have, `ports` are those that it publishes.
    Raises bad_request, bad_command, bad_path, bad_size, no_capacity.
    """
    config = image.config
    command = [] if spec.idle else _command(spec, image)
    env = {**config.env, **spec.env}
    check_arguments(command, env)
    cpus, memory, disk = sizes(spec, settings, host)
    return SandboxInfo(
        id=sandbox_id,
        name=name,
        state=SandboxState.CREATED,
        image=image.reference,
        image_id=image.id,
        command=command,
        env=env,
        workdir=check_directory(spec.workdir or config.workdir or "/"),
        user=config.user if spec.user is None else spec.user,
        tty=spec.tty,
        stdin=spec.stdin,
        idle=spec.idle,
        cpus=cpus,
        memory=memory,
        disk=disk,
        timeout=spec.timeout,
        auto_remove=spec.auto_remove,
        labels=dict(spec.labels),
        hostname=spec.hostname or default_hostname(name),
        created_at=created_at,
        kernel=spec.kernel or settings.kernel or None,
        exposed_ports=list(config.exposed_ports),
        volumes=list(config.volumes),
        stop_signal=signal_name(spec.stop_signal or _stop_signal(image, command)),
        idle_timeout=settings.idle_timeout if spec.idle_timeout is None else spec.idle_timeout,
        idle_action=spec.idle_action or IdleAction(settings.idle_action),
        network=network,
        ports=list(ports),
    )


def check_request(spec: SandboxSpec, settings: Settings, host: HostSize) -> None:
    """Refuse what can never work, before an image is pulled for it.

    Raises bad_name, bad_request, bad_path, bad_size, bad_port, no_capacity.
    """
    if spec.name is not None:
        check_name(spec.name)
    if not spec.image:
        raise error("bad_request", "no image is named")
    check_timeout(spec.timeout)
    check_timeout(spec.idle_timeout or 0.0)
    check_arguments([*(spec.entrypoint or ()), *(spec.command or ())], spec.env)
    if spec.workdir is not None:
        check_directory(spec.workdir)
    if spec.hostname is not None and _HOSTNAME.fullmatch(spec.hostname) is None:
        raise error(
            "bad_request",
            f"{spec.hostname!r} is no hostname",
            hint="use 1 to 63 letters, digits, dots and dashes",
        )
    if spec.stop_signal is not None:
        signal_number(spec.stop_signal)
    if spec.idle and (spec.command or spec.entrypoint):
        raise error(
            "bad_request",
            "an idle sandbox runs no command of its own",
            hint="leave out the command, or run it later with `hutch exec`",
        )
    if any(not key for key in spec.labels):
        raise error("bad_request", "a label has no name")
    if sum(len(key) + len(value) for key, value in spec.labels.items()) > LABELS_MAX:
        raise error("bad_request", f"the labels are longer than {LABELS_MAX // KIB} KiB together")
    check_ports(spec.ports)
    sizes(spec, settings, host)


def _command(spec: SandboxSpec, image: Image) -> list[str]:
    """Apply the rule of container tools: a new entry point also drops the image's command."""
    given = list(spec.command or ())
    if spec.entrypoint is not None:
        command = [part for part in spec.entrypoint if part] + given
    else:
        command = list(image.config.entrypoint) + (given or list(image.config.command))
    if not command:
        raise error(
            "bad_command",
            f"the image {image.reference} names no command, and none is given",
            hint="give one after the image, or use --idle for a sandbox without a main process",
        )
    return command


def _stop_signal(image: Image, command: Sequence[str]) -> str:
    """Return what asks the image's program to end, which for systemd is not SIGTERM.

    To that it answers by starting itself anew. Images seldom say so, as container tools know it.
    """
    chosen = image.config.stop_signal
    return "SIGRTMIN+3" if chosen == "SIGTERM" and is_init(command) else chosen


def sizes(spec: SandboxSpec, settings: Settings, host: HostSize) -> tuple[int, int, int]:
    """Return the CPUs, and the bytes of memory and disk. Raises bad_size, no_capacity."""
    cpus = settings.cpus if spec.cpus is None else spec.cpus
    memory = settings.memory if spec.memory is None else spec.memory
    disk = settings.disk if spec.disk is None else spec.disk
    if not 1 <= cpus <= CPUS_MAX:
        raise error("bad_size", f"{cpus} is no number of CPUs", hint=f"use 1 to {host.cpus}")
    if cpus > host.cpus:
        raise error(
            "no_capacity",
            f"{cpus} CPUs are asked for, and this host has {host.cpus}",
            hint=f"use 1 to {host.cpus}",
        )
    if memory < MEMORY_MIN:
        raise error(
            "bad_size",
            f"{memory} bytes of memory are too few",
            hint=f"use at least {MEMORY_MIN // MIB}m",
        )
    if memory > host.memory:
        raise error(
            "no_capacity",
            f"{memory / GIB:.1f} GiB of memory are asked for, and this host has"
            f" {host.memory / GIB:.1f} GiB",
            hint="ask for less with --memory",
        )
    if not DISK_MIN <= disk <= DISK_MAX:
        raise error(
            "bad_size",
            f"{disk} bytes cannot be the size of a disk",
            hint=f"use {DISK_MIN // MIB}m to {DISK_MAX >> 40}t",
        )
    # Whole MiB: what every engine and file system takes.
    return cpus, -(-memory // MIB) * MIB, -(-disk // MIB) * MIB


def check_timeout(seconds: float) -> None:
    """Accept 0 (none) and sensible times. Raises bad_request."""
    if not (math.isfinite(seconds) and 0 <= seconds <= TIMEOUT_MAX):
        raise error("bad_request", f"{seconds!r} s cannot be a time limit")


def check_directory(path: str) -> str:
    """Return an absolute path of the guest. Raises bad_path."""
    if not path.startswith("/") or "\0" in path:
        raise error(
            "bad_path",
            f"the working directory {path!r} is not absolute",
            hint="give a path that begins with /",
        )
    return path


def check_arguments(argv: Sequence[str], env: Mapping[str, str]) -> None:
    """Refuse what execve(2) cannot take. Raises bad_request."""
    for key in env:
        if _VARIABLE.fullmatch(key) is None:
            raise error("bad_request", f"{key!r} cannot be the name of an environment variable")
    if any("\0" in text for text in (*argv, *env.values())):
        raise error("bad_request", "an argument or environment variable has a NUL byte")
    if _length(argv) + _length(env) + _length(env.values()) > ARGUMENTS_MAX:
        raise error(
            "bad_request",
            f"command and environment are longer than {ARGUMENTS_MAX // KIB} KiB together",
            hint="pass large data through stdin or a file (`hutch cp`)",
        )


def _length(texts: Iterable[str]) -> int:
    return sum(len(text.encode("utf-8", "surrogateescape")) + 1 for text in texts)


def check_exec(spec: ExecSpec) -> None:
    """Refuse a program that can never be started. Raises bad_command, bad_request, bad_path."""
    if not spec.argv or not spec.argv[0]:
        raise error("bad_command", "no command is given", hint="name the program to run")
    check_arguments(spec.argv, spec.env)
    check_timeout(spec.timeout)
    if spec.workdir is not None:
        check_directory(spec.workdir)
    if spec.tty is not None:
        check_terminal(spec.tty)


def check_terminal(size: TtySize) -> TtySize:
    """Return a size that a terminal can have. Raises bad_request."""
    if not (0 <= size.rows <= 0xFFFF and 0 <= size.cols <= 0xFFFF):
        raise error("bad_request", f"{size.rows} x {size.cols} cannot be the size of a terminal")
    return size


def default_hostname(name: str) -> str:
    """Return the hostname of a sandbox without one of its own: its name, as hostnames allow."""
    return re.sub(r"[^a-zA-Z0-9.-]", "-", name)[:63].strip("-.") or "sandbox"


def is_init(command: Sequence[str]) -> bool:
    """Tell whether a main process expects to be PID 1: systemd or another init."""
    program = command[0].rpartition("/")[2] if command else ""
    return program in ("init", "systemd")


def signal_number(name: str) -> int:
    """Return the number of `TERM`, `SIGTERM`, `15` or `RTMIN+3`. Raises bad_request."""
    text = name.strip().upper().removeprefix("SIG")
    if text.isascii() and text.isdigit() and 1 <= int(text) <= 64:
        return int(text)
    base, plus, offset = text.partition("+")
    if plus and base == "RTMIN" and offset.isascii() and offset.isdigit() and int(offset) <= 30:
        return 34 + int(offset)
    try:
        return int(signal.Signals[f"SIG{text}"])
    except KeyError:
        raise _no_signal(name) from None


def signal_name(name: str) -> str:
    """Return the usual spelling of a signal, like `SIGTERM`. Raises bad_request."""
    number = signal_number(name)
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"SIGRTMIN+{number - 34}" if number >= 34 else str(number)


def _no_signal(name: str) -> HutchError:
    return error(
        "bad_request", f"{name!r} is no signal", hint="give a name like TERM, or a number up to 64"
    )


def running_spec(spec: SandboxSpec, info: SandboxInfo) -> SandboxSpec:
    """Return the request with the name that was chosen for it, as it goes on record."""
    return dataclasses.replace(spec, name=info.name)

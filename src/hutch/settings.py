"""The one table of settings: flags, environment, config file, docs and `hutch config` follow it.

A value comes from, in this order: the command line, `HUTCH_<NAME>` in the environment,
`config.toml` (`$HUTCH_CONFIG`, else `$XDG_CONFIG_HOME/hutch/config.toml`, else
`/etc/hutch/config.toml` as root), the default.
"""

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from hutch.errors import InvalidInput, error

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
_UNITS = {"": 1, "k": KIB, "m": MIB, "g": GIB, "t": GIB << 10}
_SECONDS = {"ms": 0.001, "": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_SIZE = re.compile(r"([0-9]{1,20})(\.[0-9]+)? ?([kmgt]?)(?:i?b)?")
_FACTOR = re.compile(r"[0-9]{1,6}(\.[0-9]{1,6})?")
_FACTOR_MAX = 1000.0
_DURATION_PART = re.compile(r"([0-9]+(?:\.[0-9]+)?)(ms|[smhd]?)")
_CENTURY = 100 * 365 * 86400.0


def parse_size(text: str) -> int:
    """Return the bytes that `512m`, `2g`, `1.5GiB` or `1048576` stand for.

    Raises InvalidInput (bad_size).
    """
    size = 0
    if found := _SIZE.fullmatch(text.strip().lower()):
        whole, fraction, unit = found.groups()
        size = int(whole) * _UNITS[unit] + int(float(fraction or 0) * _UNITS[unit])
    if not 0 < size < 1 << 62:
        raise error("bad_size", f"{text!r} is not a size", hint="write it like 512m, 2g or 1048576")
    return size


def parse_reserve(text: str) -> int:
    """Return the bytes that a size stands for, or 0 for none. Raises InvalidInput (bad_size)."""
    return 0 if text.strip() == "0" else parse_size(text)


def parse_factor(text: str) -> float:
    """Return a number above 0, like `4` or `1.5`. Raises InvalidInput (bad_setting)."""
    if _FACTOR.fullmatch(stripped := text.strip()) and 0 < float(stripped) <= _FACTOR_MAX:
        return float(stripped)
    raise error("bad_setting", f"{text!r} is no factor", hint="write a number like 4 or 1.5")


def parse_duration(text: str) -> float:
    """Return the seconds that `1500ms`, `30s`, `5m`, `2h30m` or a bare number of seconds stand for.

    Raises InvalidInput (bad_request).
    """
    lowered, total, position = text.strip().lower(), 0.0, 0
    while found := _DURATION_PART.match(lowered, position):
        total += float(found[1]) * _SECONDS[found[2]]
        position = found.end()
    if not lowered or position < len(lowered) or total > _CENTURY:
        raise error(
            "bad_request", f"{text!r} is not a duration", hint="write it like 30s, 5m or 2h30m"
        )
    return total


def parse_bool(text: str) -> bool:
    """Return the truth of yes/no, true/false, on/off, 1/0. Raises InvalidInput (bad_setting)."""
    lowered = text.strip().lower()
    if lowered in ("1", "true", "yes", "on"):
        return True
    if lowered in ("0", "false", "no", "off"):
        return False
    raise error("bad_setting", f"{text!r} is neither true nor false")


def counted(least: int) -> Callable[[str], int]:
    """Return a parser of whole numbers from `least` on. It raises InvalidInput (bad_setting)."""

    def parse(text: str) -> int:
        stripped = text.strip()
        if stripped.isascii() and stripped.isdigit() and least <= int(stripped[:18]) < 1 << 31:
            return int(stripped)
        raise error("bad_setting", f"{text!r} is not a whole number from {least} on")

    return parse


def one_of(*choices: str) -> Callable[[str], str]:
    """Return a parser of a word among `choices`. It raises InvalidInput (bad_setting)."""

    def parse(text: str) -> str:
        lowered = text.strip().lower()
        if lowered in choices:
            return lowered
        raise error("bad_setting", f"{text!r} is none of {', '.join(choices)}")

    return parse


def parse_list(text: str) -> tuple[str, ...]:
    """Return the comma-separated, stripped, non-empty parts."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


def parse_server(text: str) -> tuple[str, int]:
    """Return address and port (53 if none is given) of `IP`, `IP:PORT` or `[IPV6]:PORT`.

    Raises InvalidInput (bad_setting).
    """
    import ipaddress  # here: it costs the CLI 5 ms, and few need it

    host, _, port = text.rpartition(":") if text.count(":") == 1 or "]:" in text else (text, "", "")
    try:
        address = ipaddress.ip_address(host.removeprefix("[").removesuffix("]"))
        number = int(port or "53")
    except ValueError:
        number = 0
    if not 0 < number < 1 << 16:
        raise error("bad_setting", f"{text!r} is no server", hint="write it like 9.9.9.9:53")
    return str(address), number


def parse_servers(text: str) -> tuple[str, ...]:
    """Return comma-separated servers, as `parse_server` reads each. Raises the same."""
    servers = parse_list(text)
    for server in servers:
        parse_server(server)
    return servers


def parse_networks(text: str) -> tuple[str, ...]:
    """Return comma-separated CIDRs as their usual notation. Raises InvalidInput (bad_setting)."""
    from ipaddress import ip_network  # here: it costs the CLI 4 ms, and few give any

    try:
        return tuple(str(ip_network(part)) for part in parse_list(text))
    except ValueError as cause:
        raise error("bad_setting", str(cause), hint="write it like 128.0.0.0/1") from cause


def default_home() -> Path:
    """Return where data lives: /var/lib/hutch as root, else `$XDG_DATA_HOME/hutch`."""
    if os.geteuid() == 0:
        return Path("/var/lib/hutch")
    base = os.environ.get("XDG_DATA_HOME")
    return (Path(base) if base else Path.home() / ".local/share") / "hutch"


def default_runtime_base() -> Path:
    """Return where sockets are: /run/hutch as root, `$XDG_RUNTIME_DIR/hutch`, /tmp/hutch-UID."""
    if os.geteuid() == 0:
        return Path("/run/hutch")
    base = os.environ.get("XDG_RUNTIME_DIR")
    if base:
        return Path(base) / "hutch"
    import tempfile  # here: it costs the CLI 8 ms, and few need it

    return Path(tempfile.gettempdir()) / f"hutch-{os.getuid()}"


def default_template_disk() -> int:
    """Return the space for templates: a tenth of the file system, at most `10g`."""
    path = Path(os.environ.get("HUTCH_HOME") or default_home()).absolute()
    while True:
        try:
            found = os.statvfs(path)
        except FileNotFoundError:
            path = path.parent
        except OSError:
            return 10 * GIB
        else:
            return max(1, min(10 * GIB, found.f_blocks * found.f_frsize // 10))


def default_memory_reserve() -> int:
    """Return the memory that starts leave alone: `512m` or 5 %, at most a quarter of it all."""
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return min(max(512 * MIB, total // 20), total // 4)


@dataclass(frozen=True, slots=True)
class Setting:
    """One row: the TOML key (also the flag `--key-with-dashes` and `HUTCH_KEY`) and its help.

    `parse` reads the text of a value, or raises InvalidInput; `default` computes the value when
    none is given.
    """

    key: str
    parse: Callable[[str], Any]
    default: Callable[[], Any]
    help: str

    @property
    def env(self) -> str:
        """The environment variable."""
        return f"HUTCH_{self.key.upper()}"

    @property
    def flag(self) -> str:
        """The command-line flag."""
        return f"--{self.key.replace('_', '-')}"

    def read(self, text: str, origin: str) -> Any:
        """Return the value of a text that stands in `origin`.

        Raises InvalidInput (bad_setting), naming `origin`.
        """
        try:
            return self.parse(text)
        except InvalidInput as cause:
            raise error("bad_setting", f"{origin}: {cause.message}", hint=cause.hint) from cause


def _row(key: str, parse: Callable[[str], Any], default: Any, text: str) -> Setting:
    return Setting(key, parse, default if callable(default) else lambda: default, text)


SETTINGS: tuple[Setting, ...] = (
    _row("home", Path, default_home, "directory of all data"),
    _row("runtime_dir", Path, default_runtime_base, "directory of sockets; private to the user"),
    _row("cpus", counted(1), 1, "CPUs of a sandbox"),
    _row("memory", parse_size, 512 * MIB, "memory of a sandbox"),
    _row(
        "disk",
        parse_size,
        10 * GIB,
        "size of a sandbox's writable disk (space is used as it is written)",
    ),
    _row(
        "kernel", str, "", "name of the kernel to boot; empty: the one chosen by `hutch kernel use`"
    ),
    _row("qemu", str, "qemu-system-x86_64", "the QEMU program"),
    _row(
        "accelerator",
        one_of("auto", "kvm", "tcg"),
        "auto",
        "auto, kvm or tcg; auto trusts only what a canary VM has shown to work",
    ),
    _row("machine", one_of("auto", "microvm", "q35"), "auto", "auto, microvm or q35"),
    _row(
        "templates",
        parse_bool,
        True,
        "start sandboxes as clones of a template, which the first start of an image makes",
    ),
    _row(
        "template_disk",
        parse_size,
        default_template_disk,
        "disk space for templates; above it those least recently used are dropped",
    ),
    _row(
        "memory_reserve",
        parse_reserve,
        default_memory_reserve,
        "memory of the host that no start may take; 0: none",
    ),
    _row(
        "memory_overcommit",
        parse_factor,
        4.0,
        "how many times the host's memory all sandboxes with a VM may be promised together",
    ),
    _row(
        "disk_reserve",
        parse_reserve,
        256 * MIB,
        "room on the file system of `home` below which nothing starts; 0: none",
    ),
    _row("boot_timeout", parse_duration, 60.0, "time in which the agent must answer at boot"),
    _row("stop_timeout", parse_duration, 10.0, "time between a stop's signal and its kill"),
    _row(
        "idle_timeout",
        parse_duration,
        0.0,
        "time after which `idle_action` is done with a sandbox that nobody uses; 0: never",
    ),
    _row(
        "idle_action",
        one_of("pause", "park", "stop"),
        "pause",
        "pause, park (its memory goes to disk) or stop",
    ),
    _row(
        "checkpoint_keep",
        counted(1),
        20,
        "checkpoints kept for each sandbox; the oldest go when there are more",
    ),
    _row(
        "network",
        one_of("public", "deny", "open", "none"),
        "public",
        "what sandboxes reach that ask for nothing else: public, deny, open or none",
    ),
    _row(
        "dns_servers",
        parse_servers,
        (),
        "servers, as IP or IP:PORT, that sandboxes' names are asked of; none: the host's own",
    ),
    _row(
        "dns_denied",
        one_of("sinkhole", "nxdomain"),
        "sinkhole",
        "what sandboxes are answered for names that a rule denies: an address whose connections are"
        " refused with the reason (sinkhole), or that the name does not exist (nxdomain)",
    ),
    _row(
        "network_public_routes",
        parse_networks,
        (),
        "routes of the host, as CIDRs, that lead to the internet although they are not the default"
        " one, like the two halves (0.0.0.0/1, 128.0.0.0/1) that some VPNs set instead",
    ),
    _row("exec_orphan_grace", parse_duration, 30.0, "time that an exec outlives its lost client"),
    _row("log_size", parse_size, 10 * MIB, "size at which a log file is rotated"),
    _row("log_files", counted(1), 3, "rotated log files kept for each log"),
    _row(
        "uid_base", counted(1), 2_000_000, "first uid for VMs when the daemon is root; one uid each"
    ),
    _row("uid_count", counted(1), 10_000, "number of such uids"),
    _row(
        "jail",
        parse_bool,
        True,
        "run QEMU with its seccomp sandbox and, as root, under a uid of its own",
    ),
    _row(
        "port_connections",
        counted(1),
        256,
        "open connections to a sandbox's published ports; more wait to be accepted",
    ),
    _row("registry_mirrors", parse_list, (), "registry=mirror pairs, asked first"),
    _row("plain_http_registries", parse_list, (), "registries spoken to without TLS"),
    _row("registry_ca", str, "", "PEM file of further certificate authorities for registries"),
    _row("default_registry", str, "docker.io", "registry of image names that name none"),
    _row("pull_parallel", counted(1), 4, "blobs or ranges fetched at once"),
    _row(
        "idle_exit",
        parse_duration,
        0.0,
        "the daemon ends after that long without VMs or clients; 0: never",
    ),
    _row(
        "log_level",
        one_of("debug", "info", "warning", "error"),
        "info",
        "debug, info, warning or error, for the daemon's own log",
    ),
)


@dataclass(frozen=True, slots=True)
class Settings:
    """All settings, parsed. Field names are the keys of `SETTINGS`."""

    home: Path
    runtime_dir: Path
    cpus: int
    memory: int
    disk: int
    kernel: str
    qemu: str
    accelerator: str
    machine: str
    templates: bool
    template_disk: int
    memory_reserve: int
    memory_overcommit: float
    disk_reserve: int
    boot_timeout: float
    stop_timeout: float
    idle_timeout: float
    idle_action: str
    checkpoint_keep: int
    network: str
    dns_servers: tuple[str, ...]
    dns_denied: str
    network_public_routes: tuple[str, ...]
    exec_orphan_grace: float
    log_size: int
    log_files: int
    uid_base: int
    uid_count: int
    jail: bool
    port_connections: int
    registry_mirrors: tuple[str, ...]
    plain_http_registries: tuple[str, ...]
    registry_ca: str
    default_registry: str
    pull_parallel: int
    idle_exit: float
    log_level: str


assert [f.name for f in fields(Settings)] == [row.key for row in SETTINGS]


def config_path(env: Mapping[str, str] = os.environ) -> Path:
    """Return the path of the TOML file, whether or not it exists."""
    if env.get("HUTCH_CONFIG"):
        return Path(env["HUTCH_CONFIG"])
    if os.geteuid() == 0:
        return Path("/etc/hutch/config.toml")
    base = env.get("XDG_CONFIG_HOME")
    return (Path(base) if base else Path.home() / ".config") / "hutch/config.toml"


def _parse(row: Setting, value: Any, origin: str) -> Any:
    text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
    return row.read(text, origin)


def _read_table(path: Path) -> dict[str, Any]:
    import tomllib  # here: it costs the CLI 6 ms, and most have no file

    try:
        return tomllib.loads(path.read_text("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as cause:
        raise error("bad_setting", f"{path} cannot be read: {cause}") from cause


def load_settings(
    flags: Mapping[str, Any] | None = None, env: Mapping[str, str] = os.environ
) -> Settings:
    """Return the settings in force.

    `flags` maps keys to already parsed values; None means not given.

    Raises InvalidInput (bad_setting) for unknown keys and values that cannot be read.
    """
    values = {key: value for key, (value, _) in resolve_settings(flags, env).items()}
    return Settings(**values)


def resolve_settings(
    flags: Mapping[str, Any] | None = None, env: Mapping[str, str] = os.environ
) -> dict[str, tuple[Any, str]]:
    """Return for each key its value and its origin: `flag`, `environment`, `file` or `default`.

    Raises InvalidInput (bad_setting) as `load_settings` does.
    """
    path = config_path(env)
    table = _read_table(path) if path.is_file() else {}
    unknown = sorted(set(table) - {row.key for row in SETTINGS})
    if unknown:
        raise error(
            "bad_setting",
            f"{path}: no setting {unknown[0]!r}",
            hint="see `hutch config` for all of them",
        )
    out: dict[str, tuple[Any, str]] = {}
    for row in SETTINGS:
        if flags and flags.get(row.key) is not None:
            out[row.key] = (flags[row.key], "flag")
        elif env.get(row.env):
            out[row.key] = (_parse(row, env[row.env], row.env), "environment")
        elif row.key in table:
            out[row.key] = (_parse(row, table[row.key], f"{path}: {row.key}"), "file")
        else:
            out[row.key] = (row.default(), "default")
    return out

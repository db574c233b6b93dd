"""The operations on the guest as a machine: mounts, identity, freezing, figures, shutdown."""

import logging
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from hutch.guest import failures, fields
from hutch.guest.base import DEFAULT_TIMEOUT, FREEZE_TIMEOUT, AgentInfo, Identity
from hutch.guest.link import Link
from hutch.guest.messages import GuestProtocolError

log = logging.getLogger(__name__)

_MOUNT_TIMEOUT: Final = 60.0
_SYNC_TIMEOUT: Final = 60.0
_PREFETCH_TIMEOUT: Final = 30.0
_MARGIN: Final = 5.0
"""Seconds that an answer may take beyond a limit which the guest itself keeps."""
_MOST_COMPENSATION: Final = 0.01
"""Seconds of travel that a clock is set ahead at most: a slow first answer is no measure of the
way.
"""


def _nothing(_: Mapping[str, Any]) -> None:
    return None


class Machine:
    """The machine's part of `base.Guest`."""

    def __init__(self, link: Link, info: AgentInfo, round_trip: float) -> None:
        """`round_trip` is the handshake's, in seconds."""
        self._link = link
        self._round_trip = round_trip
        self.info = info

    async def ping(self) -> float:
        """Return the round trip in seconds."""
        started = time.monotonic()
        await self._call("ping", "the guest agent", {})
        return self._note_round_trip(started)

    async def refresh_info(self) -> AgentInfo:
        """Ask the agent anew what `info` holds."""
        generation = self.info.generation
        started = time.monotonic()
        self.info = await self._link.call(
            "info",
            "the guest agent",
            {},
            lambda reply: parse_info(reply, generation),
            seconds=DEFAULT_TIMEOUT,
        )
        self._note_round_trip(started)
        return self.info

    async def mount_root(self, serial: str, fstype: str) -> None:
        """Mount the read-only root image; `info.stage` becomes root."""
        request = {"serial": serial, "fstype": fstype}
        await self._call("mount.root", f"disk {serial}", request, seconds=_MOUNT_TIMEOUT)
        await self.refresh_info()

    async def mount_overlay(
        self,
        serial: str,
        *,
        volumes: Sequence[str] = (),
        grow: bool = False,
        size: int | None = None,
    ) -> None:
        """Mount the writable disk over the root and switch to it; `info.stage` becomes ready."""
        request = {
            "serial": serial,
            "volumes": [fields.path_bytes(path) for path in volumes],
            "grow": grow,
            "size": size,
        }
        await self._call("mount.overlay", f"disk {serial}", request, seconds=_MOUNT_TIMEOUT)
        await self.refresh_info()

    async def identify(self, identity: Identity) -> bool:
        """Send the identity and the host's clock; return whether the guest's RNG was reseeded.

        The clock is set ahead by half the best round trip seen so far. Raises guest_protocol when
        the guest answers with another nonce: then it is not known who took the identity.
        """
        request: dict[str, Any] = {
            "entropy": identity.entropy,
            "hostname": identity.hostname,
            "machine_id": identity.machine_id.encode(),
            "hosts": [[address, name] for address, name in identity.hosts],
            "nameservers": list(identity.nameservers),
            "generation": identity.generation,
            "nonce": identity.nonce,
        }
        if identity.network is not None:
            request["network"] = identity.network

        def parse(reply: Mapping[str, Any]) -> tuple[bool, int]:
            if fields.octets(reply, "nonce", limit=64) != identity.nonce:
                raise GuestProtocolError("an identity is acknowledged with another nonce")
            if "sockets_destroyed" in reply and reply["sockets_destroyed"] is None:
                log.warning("the kernel of %s cannot end inherited connections", identity.hostname)
            generation = fields.integer(reply, "generation", identity.generation)
            return fields.flag(reply, "reseeded"), generation

        await self._link.drained()
        request["realtime_ns"] = time.time_ns() + int(self._ahead * 1e9)
        reseeded, generation = await self._link.call(
            "identity", "the guest's identity", request, parse, seconds=DEFAULT_TIMEOUT
        )
        self.info = replace(self.info, generation=generation)
        return reseeded

    async def set_network(self, up: bool) -> None:
        """Take its network up or down; an identity without the rest changes nothing else."""
        request = {"nonce": os.urandom(16), "network": up}
        await self._call("identity", "the guest's network", request)

    async def keep_clock(self, tolerance: float = 0.01) -> float:
        """Set the guest's clock if it is off by more than `tolerance` seconds; return by how much.

        An identity that holds nothing but its nonce only asks for the clock.
        """
        request: dict[str, Any] = {"nonce": os.urandom(16)}
        read = time.time_ns()
        theirs = await self._link.call(
            "identity",
            "the guest's clock",
            request,
            lambda reply: fields.integer(reply, "realtime_ns"),
            seconds=DEFAULT_TIMEOUT,
        )
        arrived = time.time_ns()
        # It was read somewhere between: what may be due to the way is not held against it.
        ahead = (theirs - (read + arrived) / 2) / 1e9
        if abs(ahead) - (arrived - read) / 2e9 > tolerance:
            request["realtime_ns"] = time.time_ns() + int(self._ahead * 1e9)
            await self._call("identity", "the guest's clock", request)
        return ahead

    @property
    def _ahead(self) -> float:
        """How many seconds ahead a clock is sent, for the time on its way."""
        return min(self._round_trip / 2, _MOST_COMPENSATION)

    async def freeze(self, timeout: float = FREEZE_TIMEOUT) -> None:
        """Freeze every workload; guest_timeout when that takes longer than `timeout` seconds."""
        request = {"timeout_ms": max(1, round(timeout * 1000))}
        await self._call("freeze", "freezing the workloads", request, seconds=timeout + _MARGIN)
        self.info = replace(self.info, frozen=True)

    async def thaw(self) -> None:
        """Let the workloads go on; that none were frozen is no error."""
        await self._call("thaw", "thawing the workloads", {})
        self.info = replace(self.info, frozen=False)

    async def prefetch(self, programs: Sequence[str]) -> int:
        """Read programs (paths or names) with their libraries into memory; return the bytes.

        What does not exist is left out.
        """
        return await self._link.call(
            "prefetch",
            "reading programs ahead",
            {"programs": [fields.to_bytes(program) for program in programs]},
            lambda reply: fields.integer(reply, "bytes"),
            seconds=_PREFETCH_TIMEOUT,
        )

    async def sync(self) -> None:
        """Write the writable file system to its disk."""
        await self._call("sync", "syncing the disk", {}, seconds=_SYNC_TIMEOUT)

    async def stats(self) -> Mapping[str, Any]:
        """Return the figures of the protocol's `stats`; JSON values only."""
        return await self._link.call(
            "stats", "the guest's figures", {}, parse_stats, seconds=DEFAULT_TIMEOUT
        )

    async def processes(self) -> Sequence[Mapping[str, Any]]:
        """Return the guest's processes, as the protocol's `processes`; JSON values only."""
        return await self._link.call(
            "processes", "the guest's processes", {}, parse_processes, seconds=DEFAULT_TIMEOUT
        )

    async def shutdown(
        self, *, signal: int = 15, grace: float = 10.0, reboot: bool = False
    ) -> None:
        """Begin to shut down; the connection ends when the machine does."""
        request = {
            "action": "reboot" if reboot else "poweroff",
            "signal": signal,
            "grace_ms": round(grace * 1000),
        }
        await self._call("shutdown", "the shutdown", request)

    def _note_round_trip(self, started: float) -> float:
        elapsed = time.monotonic() - started
        self._round_trip = min(self._round_trip, elapsed)
        return elapsed

    async def _call(
        self,
        operation: str,
        subject: str,
        request: dict[str, Any],
        *,
        seconds: float = DEFAULT_TIMEOUT,
    ) -> None:
        await self._link.call(operation, subject, request, _nothing, seconds=seconds)


def parse_info(message: Mapping[str, Any], generation: int = 0) -> AgentInfo:
    """Return a reply of `info` or an event `hello`; `generation` stands in for a missing one."""
    return AgentInfo(
        agent_version=failures.clean(fields.text(message, "agent_version")),
        protocol=fields.integer(message, "protocol", high=255),
        kernel=failures.clean(fields.text(message, "kernel")),
        boot_id=failures.clean(fields.text(message, "boot_id")),
        uptime_ns=fields.integer(message, "uptime_ns"),
        stage=failures.clean(fields.text(message, "stage")),
        cpus=fields.integer(message, "cpus"),
        memory_bytes=fields.integer(message, "memory_bytes"),
        generation=fields.integer(message, "generation", generation),
        frozen=fields.flag(message, "frozen"),
    )


def parse_stats(message: Mapping[str, Any]) -> dict[str, Any]:
    """Return the known figures of a reply of `stats`."""
    memory, disk = fields.table(message, "memory"), fields.table(message, "disk")
    counts = ("cpu_total_ns", "cpu_count", "processes", "uptime_ns", "oom_kills")
    return {
        **{key: fields.integer(message, key) for key in counts},
        "load": fields.numbers(message, "load")[:3],
        "memory": {
            key: fields.integer(memory, key) for key in ("total", "available", "used", "cached")
        },
        "disk": {key: fields.integer(disk, key) for key in ("total", "used", "available")},
    }


def parse_processes(message: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the known fields of each process; the command's arguments are set apart by spaces."""
    counts = ("pid", "ppid", "uid", "cpu_ns", "rss", "threads", "started_ns")
    return [
        {
            **{key: fields.integer(row, key) for key in counts},
            "user": fields.text(row, "user", ""),
            "state": fields.text(row, "state", "", limit=64),
            "command": fields.octets(row, "command")
            .rstrip(b"\0")
            .replace(b"\0", b" ")
            .decode("utf-8", "replace"),
            "exec_id": None if row.get("exec_id") is None else fields.text(row, "exec_id"),
        }
        for row in fields.tables(message, "processes")
    ]

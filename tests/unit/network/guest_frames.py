"""A guest without a VM: Ethernet frames on the descriptor of its TAP, and a little TCP.

The kernel handles what is written to a TAP before the write returns, so what it answers by itself
is there to be read at once.
"""

import os
import select
import socket
import struct
from dataclasses import dataclass

from hutch.networking import GATEWAY_MAC, GUEST_ADDRESS, GUEST_MAC

VNET_HEADER = 10
DEADLINE = 60.0
FIN, SYN, RST, ACK = 1, 2, 4, 16


def mac(text: str) -> bytes:
    return bytes.fromhex(text.replace(":", ""))


def checksum(data: bytes) -> int:
    data += bytes(len(data) % 2)
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total >> 16) + (total & 0xFFFF)
    return ~total & 0xFFFF


def ethernet(
    payload: bytes, kind: int = 0x0800, *, source: str = GUEST_MAC, to: str = GATEWAY_MAC
) -> bytes:
    return mac(to) + mac(source) + struct.pack("!H", kind) + payload


def ipv4(
    payload: bytes,
    protocol: int,
    to: str,
    *,
    source: str = GUEST_ADDRESS,
    fragment: int = 0,
    options: bytes = b"",
) -> bytes:
    words = 5 + len(options) // 4
    head = struct.pack(
        "!BBHHHBBH4s4s",
        0x40 | words,
        0,
        words * 4 + len(payload),
        1,
        fragment,
        64,
        protocol,
        0,
        socket.inet_aton(source),
        socket.inet_aton(to),
    )
    head += options
    return head[:10] + struct.pack("!H", checksum(head)) + head[12:] + payload


def _sealed(segment: bytes, at: int, protocol: int, to: str, source: str) -> bytes:
    pseudo = socket.inet_aton(source) + socket.inet_aton(to)
    pseudo += struct.pack("!BBH", 0, protocol, len(segment))
    return segment[:at] + struct.pack("!H", checksum(pseudo + segment)) + segment[at + 2 :]


def udp(payload: bytes, to: str, port: int, *, source: str = GUEST_ADDRESS) -> bytes:
    head = struct.pack("!HHHH", 40000, port, 8 + len(payload), 0)
    return _sealed(head + payload, 6, 17, to, source)


def tcp(
    to: str,
    port: int,
    flags: int,
    *,
    own_port: int = 40000,
    sequence: int = 1000,
    acknowledged: int = 0,
    payload: bytes = b"",
    source: str = GUEST_ADDRESS,
    options: bytes = b"",
) -> bytes:
    head = struct.pack(
        "!HHIIBBHHH",
        own_port,
        port,
        sequence,
        acknowledged,
        (5 + len(options) // 4) << 4,
        flags,
        64240,
        0,
        0,
    )
    return _sealed(head + options + payload, 16, 6, to, source)


def arp(
    target: str, *, source: str = GUEST_ADDRESS, sender: str = GUEST_MAC, operation: int = 1
) -> bytes:
    head = struct.pack("!HHBBH", 1, 0x0800, 6, 4, operation)
    body = mac(sender) + socket.inet_aton(source) + bytes(6) + socket.inet_aton(target)
    return ethernet(head + body, 0x0806, to="ff:ff:ff:ff:ff:ff")


@dataclass(frozen=True)
class Segment:
    source: str
    port: int
    to_port: int
    sequence: int
    acknowledged: int
    flags: int
    payload: bytes


@dataclass(frozen=True)
class Frame:
    """A frame that came to the guest."""

    raw: bytes

    @property
    def kind(self) -> int:
        return int.from_bytes(self.raw[12:14])

    @property
    def protocol(self) -> int | None:
        return self.raw[23] if self.kind == 0x0800 else None

    @property
    def source(self) -> str:
        return socket.inet_ntoa(self.raw[26:30])

    @property
    def packet(self) -> bytes:
        """What is in the IP packet."""
        end = 14 + int.from_bytes(self.raw[16:18])
        return self.raw[14 + (self.raw[14] & 15) * 4 : end]

    @property
    def segment(self) -> Segment:
        port, to_port, sequence, acknowledged, offset, flags = struct.unpack_from(
            "!HHIIBB", self.packet
        )
        return Segment(
            self.source,
            port,
            to_port,
            sequence,
            acknowledged,
            flags,
            self.packet[(offset >> 4) * 4 :],
        )

    @property
    def datagram(self) -> tuple[int, bytes]:
        """The source port and content of a UDP packet."""
        return int.from_bytes(self.packet[:2]), self.packet[8:]


class Guest:
    """The guest's end of a TAP. The descriptor is its own to close."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def send(self, frame: bytes) -> None:
        os.write(self.fd, bytes(VNET_HEADER) + frame)

    def waiting(self) -> list[Frame]:
        """What came so far, and is not read."""
        found = []
        while True:
            try:
                found.append(Frame(os.read(self.fd, 1 << 17)[VNET_HEADER:]))
            except BlockingIOError:
                return found

    def next(self) -> Frame:
        """The next frame; waits for it."""
        ready, _, _ = select.select([self.fd], [], [], DEADLINE)
        assert ready, "no frame came"
        return Frame(os.read(self.fd, 1 << 17)[VNET_HEADER:])

    def next_segment(self) -> Segment:
        """The next TCP segment; whatever else comes is passed over."""
        while True:
            frame = self.next()
            if frame.protocol == 6:
                return frame.segment

    def answers(self, frame: bytes) -> list[Frame]:
        """What the kernel by itself answers to a frame."""
        self.waiting()
        self.send(frame)
        self.send(arp("198.18.0.1"))
        found = []
        while (answer := self.next()).kind != 0x0806:
            found.append(answer)
        return found

    def connect(self, to: str, port: int, own_port: int = 40000) -> "Stream":
        """Open a connection; the kernel completes it. Raises ConnectionRefusedError."""
        self.send(ethernet(ipv4(tcp(to, port, SYN, own_port=own_port), 6, to)))
        answer = self.next_segment()
        while (answer.source, answer.port, answer.to_port) != (to, port, own_port):
            answer = self.next_segment()  # of another connection, which ends
        if answer.flags & RST:
            raise ConnectionRefusedError
        assert answer.flags & (SYN | ACK) == SYN | ACK
        stream = Stream(self, to, port, own_port, 1001, answer.sequence + 1)
        stream.send(b"", ACK)
        return stream


class Stream:
    """A TCP connection of the guest. Retransmits nothing: the TAP loses nothing."""

    def __init__(
        self, guest: Guest, to: str, port: int, own_port: int, sequence: int, received: int
    ) -> None:
        self.guest = guest
        self.to, self.port, self.own_port = to, port, own_port
        self.sequence, self.received = sequence, received

    def send(self, payload: bytes, flags: int = ACK) -> None:
        segment = tcp(
            self.to,
            self.port,
            flags,
            own_port=self.own_port,
            sequence=self.sequence,
            acknowledged=self.received,
            payload=payload,
        )
        self.sequence += len(payload)
        self.guest.send(ethernet(ipv4(segment, 6, self.to)))

    def receive(self) -> bytes | None:
        """The next bytes; b"" at the end, None for a reset."""
        while True:
            segment = self.guest.next_segment()
            if segment.to_port != self.own_port or segment.source != self.to:
                continue
            if segment.flags & RST:
                return None
            if segment.payload and segment.sequence == self.received:
                self.received += len(segment.payload)
                self.send(b"")
                return segment.payload
            if segment.flags & FIN:
                return b""

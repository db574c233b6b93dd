"""A pretend internet: namespaces of the test's own, with servers that write down who came.

`host` is where Hutch runs: it has a local network and a default route to `inet`, whose servers
listen on every address of a public range. Nothing in it leads anywhere else.
"""

import contextlib
import functools
import ipaddress
import json
import socket
import ssl
import struct
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socketserver import BaseRequestHandler, ThreadingTCPServer
from typing import Any, Self

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.harness.namespaces import Namespace

PUBLIC = "5.9.0.0/16"
"""What `inet` answers on: public by every table, and in nobody's reach here."""
SECOND = "2a01:4f8::/64"
RESOLVER = "5.9.0.53"
HOST_LAN, ROUTER, NEIGHBOUR = "10.99.0.2", "10.99.0.1", "10.99.0.9"
METADATA = "169.254.169.254"

HTTP, TLS, GREETER, ECHO = 80, 443, 22, 7777
GREETING = b"220 here speaks the server first\r\n"


@dataclass(frozen=True, slots=True)
class Arrival:
    """Something that reached a server: `address` is the one it came to, `said` what it asked."""

    service: str
    address: str
    port: int
    said: str = ""


@dataclass(frozen=True, slots=True)
class Packet:
    """An IP packet that left the host."""

    protocol: int
    destination: str
    port: int | None


@dataclass
class Zone:
    """What the resolver of the internet knows: addresses, aliases and texts of names."""

    hosts: dict[str, list[str]] = field(default_factory=dict)
    aliases: dict[str, str] = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)
    failing: set[str] = field(default_factory=set)


class Internet:
    """The namespaces and servers, from `__enter__` to `__exit__`."""

    def __init__(self, zone: Zone, directory: Path) -> None:
        """`directory` takes the file of the authority that the servers' certificates are by."""
        self.zone = zone
        self.arrivals: list[Arrival] = []
        self.packets: list[Packet] = []
        self.authority = directory / "authority.pem"
        self._directory = directory
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            self.host = stack.enter_context(Namespace())
            self.inet = stack.enter_context(Namespace())
            self._lay_out()
            self._serve(stack)
            self._watch(stack)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *failure: object) -> None:
        self._stack.close()

    def came(self, service: str) -> list[Arrival]:
        """Return what reached a service."""
        return [each for each in self.arrivals if each.service == service]

    def left_for(self, destination: str) -> list[Packet]:
        """Return the packets that left the host for an address."""
        return [each for each in self.packets if each.destination == destination]

    def on_host(self, port: int, said: bytes) -> socket.socket:
        """Serve `said` on a port of the host's loopback until the returned socket is closed."""
        listener = self.host.call(lambda: _listener(("127.0.0.1", port)))
        threading.Thread(target=_say, args=(listener, said), daemon=True).start()
        return listener

    def _lay_out(self) -> None:
        self.host.connect(self.inet, "wan0", "net0")
        for address in (f"{HOST_LAN}/24", "2a01:4f9::2/64"):
            self.host.run(
                "ip", "address", "add", address, "dev", "wan0", *_NO_PROBE[":" in address]
            )
        for address in (f"{ROUTER}/24", f"{NEIGHBOUR}/24", "2a01:4f9::1/64"):
            self.inet.run(
                "ip", "address", "add", address, "dev", "net0", *_NO_PROBE[":" in address]
            )
        # The whole range is this host's: a server answers on each address of it.
        self.inet.run("ip", "route", "add", "local", PUBLIC, "dev", "lo")
        self.inet.run("ip", "-6", "route", "add", "local", SECOND, "dev", "lo")
        self.inet.run("ip", "address", "add", f"{METADATA}/32", "dev", "lo")
        self.host.run("ip", "route", "add", "default", "via", ROUTER)
        self.host.run("ip", "-6", "route", "add", "default", "via", "2a01:4f9::1")

    def _serve(self, stack: contextlib.ExitStack) -> None:
        context = _certified(self._directory, sorted(self.zone.hosts))

        def note(service: str, where: Any, said: str = "") -> None:
            self.arrivals.append(Arrival(service, _plain(where[0]), where[1], said))

        web = _web(note)
        for port, wrap in ((HTTP, None), (TLS, context)):
            listener = self.inet.call(functools.partial(_listener, ("::", port)))
            server = _Web(listener, web, wrap, note)
            _run(stack, server)
        for port, handler in ((GREETER, _greeter(note)), (ECHO, _echo(note))):
            listener = self.inet.call(functools.partial(_listener, ("::", port)))
            _run(stack, _Plain(listener, handler))
        resolver = self.inet.call(lambda: _datagrams((RESOLVER, 53)))
        stack.callback(_shut, resolver)
        threading.Thread(target=_resolve, args=(resolver, self.zone, note), daemon=True).start()

    def _watch(self, stack: contextlib.ExitStack) -> None:
        raw = self.host.call(
            lambda: socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(0x0003))
        )
        raw.bind(("wan0", 0x0003))
        stack.callback(raw.close)
        raw.settimeout(0.2)
        over = threading.Event()
        watcher = threading.Thread(target=_sniff, args=(raw, self.packets, over), daemon=True)
        watcher.start()
        stack.callback(watcher.join)
        stack.callback(over.set)


_NO_PROBE: Mapping[bool, Sequence[str]] = {False: (), True: ("nodad",)}


def _plain(address: str) -> str:
    mapped = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(mapped, ipaddress.IPv6Address) and mapped.ipv4_mapped is not None:
        return str(mapped.ipv4_mapped)
    return str(mapped)


def _listener(where: tuple[str, int]) -> socket.socket:
    family = socket.AF_INET6 if ":" in where[0] else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if family == socket.AF_INET6:
        listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    listener.bind(where)
    listener.listen(512)
    return listener


def _datagrams(where: tuple[str, int]) -> socket.socket:
    made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    made.bind(where)
    return made


def _shut(made: socket.socket) -> None:
    # A thread that waits in recvfrom does not hear of a close, but of this.
    with contextlib.suppress(OSError):
        made.shutdown(socket.SHUT_RDWR)
    made.close()


def _say(listener: socket.socket, said: bytes) -> None:
    with contextlib.suppress(OSError):
        while True:
            peer, _ = listener.accept()
            with peer, contextlib.suppress(OSError):
                peer.sendall(said)


class _Plain(ThreadingTCPServer):
    daemon_threads = True

    def __init__(self, listener: socket.socket, handler: type[BaseRequestHandler]) -> None:
        super().__init__(("", 0), handler, bind_and_activate=False)
        self.socket.close()
        self.socket = listener

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Peers that reset are part of the tests."""


class _Web(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(
        self,
        listener: socket.socket,
        handler: type[BaseHTTPRequestHandler],
        context: ssl.SSLContext | None,
        note: Callable[..., None],
    ) -> None:
        super().__init__(("", 0), handler, bind_and_activate=False)
        self.socket.close()
        self.socket = listener
        self._context = context
        self._note = note

    def finish_request(self, request: Any, client_address: Any) -> None:
        """Shake hands in the connection's own thread, then answer its requests."""
        if self._context is None:
            self._note("tcp/80", request.getsockname())
            super().finish_request(request, client_address)
        else:
            self._note("tls", request.getsockname())
            with self._context.wrap_socket(request, server_side=True) as secure:
                super().finish_request(secure, client_address)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Peers that reset are part of the tests."""


def _run(stack: contextlib.ExitStack, server: Any) -> None:
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    stack.callback(server.server_close)
    stack.callback(thread.join)
    stack.callback(server.shutdown)


def _web(note: Callable[..., None]) -> type[BaseHTTPRequestHandler]:
    class Web(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        timeout = 30

        def do_GET(self) -> None:
            host = self.headers.get("Host", "")
            service = "https" if isinstance(self.connection, ssl.SSLSocket) else "http"
            note(service, self.connection.getsockname(), f"{self.command} {host}{self.path}")
            body = json.dumps({"host": host, "path": self.path, "service": service}).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", "0")))
            self.do_GET()

        def log_message(self, format: str, *args: Any) -> None:
            """Arrivals are written down instead."""

    return Web


def _greeter(note: Callable[..., None]) -> type[BaseRequestHandler]:
    class Greeter(BaseRequestHandler):
        def handle(self) -> None:
            note("greeter", self.request.getsockname())
            self.request.sendall(GREETING)
            while data := self.request.recv(1 << 16):
                self.request.sendall(data)

    return Greeter


def _echo(note: Callable[..., None]) -> type[BaseRequestHandler]:
    class Echo(BaseRequestHandler):
        def handle(self) -> None:
            note("echo", self.request.getsockname())
            while data := self.request.recv(1 << 16):
                self.request.sendall(data)

    return Echo


# ---- names

_A, _CNAME, _SOA, _TXT, _AAAA = 1, 5, 6, 16, 28


def _resolve(made: socket.socket, zone: Zone, note: Callable[..., None]) -> None:
    with contextlib.suppress(OSError):
        while True:
            query, peer = made.recvfrom(4096)
            if not query:
                return
            name, end = _name(query, 12)
            kind = struct.unpack("!H", query[end : end + 2])[0]
            note("dns", (RESOLVER, 53), f"{kind} {name}")
            made.sendto(_reply(query, end + 4, name, kind, zone), peer)


def _reply(query: bytes, end: int, name: str, kind: int, zone: Zone) -> bytes:
    answers, asked = [], name
    for _ in range(8):
        if asked not in zone.aliases:
            break
        target = zone.aliases[asked]
        answers.append((asked, _CNAME, _wire(target)))
        asked = target
    for address in zone.hosts.get(asked, ()):
        packed = ipaddress.ip_address(address).packed
        if kind == (_A if len(packed) == 4 else _AAAA):
            answers.append((asked, kind, packed))
    if kind == _TXT and asked in zone.texts:
        text = zone.texts[asked].encode()
        answers.append((asked, kind, bytes([len(text)]) + text))
    known = asked in zone.hosts or asked in zone.texts
    code = 2 if asked in zone.failing else 0 if known else 3
    if code == 2:
        answers = []
    records = b"".join(
        _wire(owner) + struct.pack("!HHIH", what, 1, 60, len(data)) + data
        for owner, what, data in answers
    )
    counts = struct.pack("!HHHH", 1, len(answers), 0, 0)
    return query[:2] + struct.pack("!H", 0x8180 | code) + counts + query[12:end] + records


def _wire(name: str) -> bytes:
    labels = [label.encode() for label in name.split(".") if label]
    return b"".join(bytes([len(label)]) + label for label in labels) + b"\0"


def _name(message: bytes, position: int) -> tuple[str, int]:
    labels = []
    while length := message[position]:
        labels.append(message[position + 1 : position + 1 + length].decode())
        position += 1 + length
    return ".".join(labels).lower(), position + 1


# ---- packets


def _sniff(raw: socket.socket, packets: list[Packet], over: threading.Event) -> None:
    while not over.is_set():
        try:
            data, where = raw.recvfrom(2048)
        except TimeoutError:
            continue
        except OSError:
            return
        if where[2] != socket.PACKET_OUTGOING or len(data) < 20:
            continue
        if where[1] == 0x0800:
            start = (data[0] & 15) * 4
            protocol, destination = data[9], str(ipaddress.ip_address(data[16:20]))
        elif where[1] == 0x86DD and len(data) >= 40:
            start, protocol = 40, data[6]
            destination = str(ipaddress.ip_address(data[24:40]))
        else:
            continue
        has_port = protocol in (6, 17) and len(data) >= start + 4
        port = struct.unpack("!H", data[start + 2 : start + 4])[0] if has_port else None
        packets.append(Packet(protocol, destination, port))


# ---- certificates


def _certified(directory: Path, names: Sequence[str]) -> ssl.SSLContext:
    """Return a server's context with a certificate for all names, by an authority of its own."""
    authority_key, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    issuer = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Pretend authority")])
    now = datetime.now(UTC)

    def certificate(subject: str, of: Any, extension: x509.ExtensionType) -> x509.Certificate:
        return (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, subject)]))
            .issuer_name(issuer)
            .public_key(of.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(days=1))
            .not_valid_after(now + timedelta(days=2))
            .add_extension(extension, critical=False)
            .sign(authority_key, hashes.SHA256())
        )

    basic = x509.BasicConstraints(ca=True, path_length=None)
    alternatives = x509.SubjectAlternativeName([x509.DNSName(name) for name in names])
    authority = certificate("Pretend authority", authority_key, basic)
    server = certificate(names[0] if names else "nobody", key, alternatives)
    pem = serialization.Encoding.PEM
    (directory / "authority.pem").write_bytes(authority.public_bytes(pem))
    (directory / "server.pem").write_bytes(
        key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        + server.public_bytes(pem)
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.sslsocket_class = _Secure
    context.load_cert_chain(directory / "server.pem")
    return context


class _Secure(ssl.SSLSocket):
    """One that is closed when its peer had reset it before it was wrapped: Python forgets to."""

    def recv(self, *arguments: Any, **more: Any) -> bytes:
        try:
            return super().recv(*arguments, **more)
        except ConnectionError:
            self.close()
            raise

"""Debian's registry server on loopback, with TLS and a password, as a user's own would be."""

import base64
import json
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.waiting import wait_until

USER, PASSWORD = "user", "pass:word"
PORTS = 5
"""Ports that are tried: one that was free may be another's by the time that it is listened to."""


def tool(*argv: str) -> bytes:
    """Run a program that a test needs; return its output."""
    return subprocess.run(argv, check=True, capture_output=True).stdout


@dataclass(frozen=True)
class Registry:
    """A running registry: its name in references, and the authority that signed its certificate."""

    name: str
    ca: Path

    def push(self, layout: str, target: str) -> None:
        """Push the image `DIRECTORY:TAG` of an OCI layout, with another tool than ours."""
        tool(
            "skopeo", "--insecure-policy", "copy", "--preserve-digests",
            "--dest-creds", f"{USER}:{PASSWORD}", "--dest-tls-verify=false",
            f"oci:{layout}", f"docker://{self.name}/{target}",
        )  # fmt: skip

    def write_login(self, docker_config: Path) -> None:
        """Write what `docker login` would: the password in `config.json` of a directory."""
        docker_config.mkdir()
        auth = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
        (docker_config / "config.json").write_text(
            json.dumps({"auths": {self.name: {"auth": auth}}})
        )


@contextmanager
def serve_registry(directory: Path) -> Iterator[Registry]:
    """Serve an empty registry from `directory` until the context ends."""
    key, certificate = directory / "key.pem", directory / "ca.pem"
    tool(
        "openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2",
        "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1",
        "-keyout", str(key), "-out", str(certificate),
    )  # fmt: skip
    (directory / "htpasswd").write_bytes(tool("htpasswd", "-Bbn", USER, PASSWORD))
    for _ in range(PORTS):
        with _serve(directory, certificate, key) as served:
            if served is not None:
                yield served
                return
    raise AssertionError((directory / "log").read_text())


@contextmanager
def _serve(directory: Path, certificate: Path, key: Path) -> Iterator[Registry | None]:
    """Serve on a port that nobody has; None when somebody was faster."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    config = {
        "version": 0.1,
        "log": {"level": "error"},
        "storage": {"filesystem": {"rootdirectory": str(directory / "data")}},
        "http": {
            "addr": f"127.0.0.1:{port}",
            "tls": {"certificate": str(certificate), "key": str(key)},
        },
        "auth": {"htpasswd": {"realm": "test", "path": str(directory / "htpasswd")}},
    }
    (directory / "config.json").write_text(json.dumps(config))
    with open(directory / "log", "wb") as log:
        server = subprocess.Popen(
            ["docker-registry", "serve", str(directory / "config.json")], stdout=log, stderr=log
        )
        try:

            def up() -> bool:
                with socket.socket() as probe:
                    return server.poll() is not None or not probe.connect_ex(("127.0.0.1", port))

            wait_until(up, what="the registry listens")
            alive = server.poll() is None
            yield Registry(f"localhost:{port}", certificate) if alive else None
        finally:
            server.kill()
            server.wait()

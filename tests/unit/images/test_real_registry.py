"""Pulling from Debian's docker-registry, over TLS and with a password, what another tool has pushed
there.
"""

import base64
import json
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from hutch.errors import HutchError
from hutch.images.base import no_report
from tests.unit.images.conftest import MakeStore
from tests.unit.images.making import MadeImage, Reports, entry, layer
from tests.waiting import wait_until

TOOLS = ("docker-registry", "skopeo", "openssl", "htpasswd")
pytestmark = pytest.mark.skipif(
    any(shutil.which(tool) is None for tool in TOOLS), reason=f"needs {', '.join(TOOLS)}"
)


@dataclass(frozen=True)
class Served:
    name: str
    ca: Path


def _run(*argv: str) -> bytes:
    return subprocess.run(argv, check=True, capture_output=True).stdout


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    directory = tmp_path_factory.mktemp("registry")
    key, certificate = directory / "key.pem", directory / "ca.pem"
    _run(
        "openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2",
        "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1",
        "-keyout", str(key), "-out", str(certificate),
    )  # fmt: skip
    (directory / "htpasswd").write_bytes(_run("htpasswd", "-Bbn", "user", "pass:word"))
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
    log = open(directory / "log", "wb")  # noqa: SIM115 - closed with the server
    server = subprocess.Popen(
        ["docker-registry", "serve", str(directory / "config.json")], stdout=log, stderr=log
    )
    try:

        def up() -> bool:
            assert server.poll() is None, (directory / "log").read_text()
            with socket.socket() as probe:
                return probe.connect_ex(("127.0.0.1", port)) == 0

        wait_until(up, timeout=20, what="the registry listens")
        yield Served(f"localhost:{port}", certificate)
    finally:
        server.kill()
        server.wait()
        log.close()


@pytest.fixture
def login(tmp_path: Path, served: Served) -> None:
    (tmp_path / "docker").mkdir()
    auths = {served.name: {"auth": base64.b64encode(b"user:pass:word").decode()}}
    (tmp_path / "docker/config.json").write_text(json.dumps({"auths": auths}))


def push(made: MadeImage, directory: Path, target: str) -> None:
    made.write_layout(directory, "made")
    _run(
        "skopeo", "--insecure-policy", "copy", "--preserve-digests",
        "--dest-creds", "user:pass:word", "--dest-tls-verify=false", f"oci:{directory}:made", f"docker://{target}",
    )  # fmt: skip


@pytest.mark.usefixtures("login")
@pytest.mark.parametrize("how", ["gzip", "zstd"])
async def test_an_image_is_pulled_with_tls_and_password(
    served: Served, make_store: MakeStore, tmp_path: Path, reports: Reports, how: str
) -> None:
    made = MadeImage(
        [
            layer(entry("a", data=b"1"), entry("big", data=os.urandom(20 << 20))),
            layer(entry(".wh.a", data=b"")),
        ],
        how=how,
    )
    push(made, tmp_path / "in", f"{served.name}/test/{how}:1")
    store = make_store(registry_ca=str(served.ca))
    info = await store.pull(f"{served.name}/test/{how}:1", reports)
    assert info.id == made.id
    assert any(0 < p.done < (p.total or 0) for p in reports if p.stage == "pull")


async def test_without_the_password_it_says_so(served: Served, make_store: MakeStore) -> None:
    store = make_store(registry_ca=str(served.ca))
    with pytest.raises(HutchError) as caught:
        await store.pull(f"{served.name}/test/gzip:1", no_report)
    assert caught.value.code == "registry_denied"
    assert "docker login" in (caught.value.hint or "")


@pytest.mark.usefixtures("login")
async def test_without_the_authority_it_says_so(served: Served, make_store: MakeStore) -> None:
    with pytest.raises(HutchError) as caught:
        await make_store().pull(f"{served.name}/test/gzip:1", no_report)
    assert caught.value.code == "registry_failed"
    assert "registry_ca" in (caught.value.hint or "")


@pytest.mark.usefixtures("login")
async def test_an_unknown_tag_says_so(served: Served, make_store: MakeStore) -> None:
    store = make_store(registry_ca=str(served.ca))
    with pytest.raises(HutchError) as caught:
        await store.pull(f"{served.name}/test/never:1", no_report)
    assert caught.value.code == "image_not_found"


async def test_an_unreadable_authority_is_a_bad_setting(
    make_store: MakeStore, tmp_path: Path
) -> None:
    (tmp_path / "no.pem").write_text("no certificate")
    with pytest.raises(HutchError) as caught:
        await make_store(registry_ca=str(tmp_path / "no.pem")).pull("example.org/x", no_report)
    assert caught.value.code == "bad_setting"

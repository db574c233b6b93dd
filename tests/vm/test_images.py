"""Images of every origin, run: a real registry, Debian's packages, a Dockerfile, archives."""

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness.fixtures import NewHutch
from tests.harness.hutch import Hutch
from tests.harness.registry import Registry, serve_registry, tool
from tests.harness.stores import SharedStore

SIZE = 100 << 20


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    with serve_registry(tmp_path_factory.mktemp("registry")) as served:
        yield served


def test_an_image_of_a_registry_with_tls_and_a_password_is_pulled_and_run(
    new_hutch: NewHutch, shared_store: SharedStore, registry: Registry, tmp_path: Path
) -> None:
    registry.push(f"{shared_store.home}/images/oci:busybox", "team/tools:1.0")
    name = f"{registry.name}/team/tools:1.0"
    hutch = new_hutch(registry_ca=str(registry.ca))

    denied = hutch.run("run", "--rm", name, "true", expect=125)
    assert b"registry_denied" in denied.stderr
    assert hutch.json("ps", "-a") == []

    # The daemon reads the file at each pull: logging in needs no restart, only its place does.
    hutch.run("daemon", "stop")
    registry.write_login(tmp_path / "docker")
    login = {"DOCKER_CONFIG": str(tmp_path / "docker")}
    ran = hutch.run("run", "--rm", name, "echo", "pulled", env=login)
    assert ran.text == "pulled"
    assert name in [ref for image in hutch.json("image", "ls") for ref in image["references"]]


@pytest.mark.timeout(900)
def test_debian_is_built_and_run_and_takes_a_large_file_both_ways(
    hutch: Hutch, tmp_path: Path
) -> None:
    """`apt --version` in Debian, then 100 MB in and out with the same checksum."""
    hutch.run("run", "-d", "--idle", "--name", "deb", "-m", "512m", "debian", timeout=600)
    assert hutch.run("exec", "deb", "apt", "--version").text.startswith("apt ")
    assert hutch.run("exec", "deb", "dpkg", "--audit").text == ""

    block = os.urandom(1 << 20)
    data = b"".join(hashlib.sha256(b"%d" % n).digest() + block[32:] for n in range(SIZE >> 20))
    (tmp_path / "in").write_bytes(data)
    digest = hashlib.sha256(data).hexdigest()
    hutch.run("cp", str(tmp_path / "in"), "deb:/root/big")
    assert hutch.run("exec", "deb", "sha256sum", "/root/big").text.split()[0] == digest
    hutch.run("cp", "deb:/root/big", str(tmp_path / "out"))
    assert hashlib.sha256((tmp_path / "out").read_bytes()).hexdigest() == digest


def test_a_dockerfile_is_built_and_run(hutch: Hutch, tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text(
        "FROM busybox\n"
        "ARG WORD=none\n"
        "RUN echo built-$WORD > /made && echo worker:x:1234:1234::/work:/bin/sh >> /etc/passwd\n"
        "ENV GREETING=hello\nWORKDIR /work\nUSER worker\n"
        'ENTRYPOINT ["sh", "-c", "echo $GREETING $(cat /made) $(id -u) $(pwd) $0 $*"]\n'
        'CMD ["one", "two"]\n'
    )
    hutch.run("image", "build", "-t", "made", "--build-arg", "WORD=it", str(tmp_path))
    assert hutch.run("run", "--rm", "made").text == "hello built-it 1234 /work one two"
    assert hutch.run("run", "--rm", "made", "three").text == "hello built-it 1234 /work three"
    ran = hutch.run("run", "--rm", "--entrypoint", "echo", "-e", "X=1", "made", "plain")
    assert ran.text == "plain"


@pytest.mark.parametrize("form", ["docker-archive", "oci-archive", "oci"])
def test_an_archive_or_layout_is_imported_and_run(
    hutch: Hutch, shared_store: SharedStore, tmp_path: Path, form: str
) -> None:
    path = tmp_path / "image"
    tool(
        "skopeo", "--insecure-policy", "copy",
        f"oci:{shared_store.home}/images/oci:busybox", f"{form}:{path}:team/kept:2",
    )  # fmt: skip
    hutch.run("image", "import", "--tag", "localhost/team/kept:2", str(path))
    assert hutch.run("run", "--rm", "localhost/team/kept:2", "echo", form).text == form

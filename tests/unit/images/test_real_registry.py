"""Pulling from Debian's docker-registry, over TLS and with a password, what another tool has pushed
there.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from hutch.errors import HutchError
from hutch.images.base import no_report
from tests.harness.registry import Registry, serve_registry
from tests.unit.images.conftest import MakeStore
from tests.unit.images.making import MadeImage, Reports, entry, layer


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    with serve_registry(tmp_path_factory.mktemp("registry")) as registry:
        yield registry


@pytest.fixture
def login(tmp_path: Path, served: Registry) -> None:
    served.write_login(tmp_path / "docker")


@pytest.mark.usefixtures("login")
@pytest.mark.parametrize("how", ["gzip", "zstd"])
async def test_an_image_is_pulled_with_tls_and_password(
    served: Registry, make_store: MakeStore, tmp_path: Path, reports: Reports, how: str
) -> None:
    made = MadeImage(
        [
            layer(entry("a", data=b"1"), entry("big", data=os.urandom(20 << 20))),
            layer(entry(".wh.a", data=b"")),
        ],
        how=how,
    )
    made.write_layout(tmp_path / "in", "made")
    served.push(f"{tmp_path / 'in'}:made", f"test/{how}:1")
    store = make_store(registry_ca=str(served.ca))
    info = await store.pull(f"{served.name}/test/{how}:1", reports)
    assert info.id == made.id
    assert any(0 < p.done < (p.total or 0) for p in reports if p.stage == "pull")


async def test_without_the_password_it_says_so(served: Registry, make_store: MakeStore) -> None:
    store = make_store(registry_ca=str(served.ca))
    with pytest.raises(HutchError) as caught:
        await store.pull(f"{served.name}/test/gzip:1", no_report)
    assert caught.value.code == "registry_denied"
    assert "docker login" in (caught.value.hint or "")


@pytest.mark.usefixtures("login")
async def test_without_the_authority_it_says_so(served: Registry, make_store: MakeStore) -> None:
    with pytest.raises(HutchError) as caught:
        await make_store().pull(f"{served.name}/test/gzip:1", no_report)
    assert caught.value.code == "registry_failed"
    assert "registry_ca" in (caught.value.hint or "")


@pytest.mark.usefixtures("login")
async def test_an_unknown_tag_says_so(served: Registry, make_store: MakeStore) -> None:
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

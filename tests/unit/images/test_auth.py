"""Credentials: where they come from, and where they go."""

import base64
import json
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from hutch.errors import HutchError
from hutch.images import auth
from hutch.images.base import no_report
from hutch.images.store import ImageStore
from tests.unit.images.conftest import MakeStore
from tests.unit.images.fake_registry import Answer, FakeRegistry, Request, serving
from tests.unit.images.making import simple_image

BASIC = "Basic " + base64.b64encode(b"me:se:cret").decode()


@pytest.fixture
async def server() -> AsyncIterator[FakeRegistry]:
    async with serving() as found:
        found.add(simple_image())
        yield found


@pytest.fixture
def pulling(server: FakeRegistry, make_store: MakeStore) -> ImageStore:
    return make_store(plain_http_registries=(server.name,))


@pytest.fixture
def configure(tmp_path: Path, make_store: MakeStore):
    def write(table: Any) -> None:
        (tmp_path / "docker").mkdir(exist_ok=True)
        text = table if isinstance(table, str) else json.dumps(table)
        (tmp_path / "docker/config.json").write_text(text)

    return write


@pytest.fixture
def helper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Install a credential helper `test` that runs a shell script."""

    def install(script: str) -> None:
        path = tmp_path / "bin/docker-credential-test"
        path.parent.mkdir()
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
        monkeypatch.setenv("PATH", f"{path.parent}:{os.environ['PATH']}")

    return install


def asks_basic(request: Request) -> Answer | None:
    if request.headers.get("authorization") == BASIC:
        return None
    return Answer(401, headers={"WWW-Authenticate": 'Basic realm="here"'})


def entry_of(**fields: str) -> dict[str, str]:
    return fields


@pytest.mark.parametrize(
    "fields",
    [
        {"auth": base64.b64encode(b"me:se:cret").decode()},
        {"username": "me", "password": "se:cret"},
    ],
)
async def test_basic_from_the_file(server, pulling, configure, fields: dict[str, str]) -> None:
    configure({"auths": {server.name: fields}})
    server.faults.append(asks_basic)
    assert (await pulling.pull(f"{server.name}/test/app:1", no_report)).references
    # Asked once, then sent with every request.
    assert sum("authorization" not in r.headers for r in server.requests) == 1


@pytest.mark.parametrize("key", ["credsStore", "credHelpers"])
async def test_basic_from_a_helper(server, pulling, configure, helper, key: str) -> None:
    helper(
        f'test "$1" = get || exit 9\nread name\ntest "$name" = {server.name} || '
        '{ echo "credentials not found in native keychain"; exit 1; }\n'
        'echo \'{"Username": "me", "Secret": "se:cret"}\''
    )
    configure({key: "test" if key == "credsStore" else {server.name: "test"}})
    server.faults.append(asks_basic)
    assert (await pulling.pull(f"{server.name}/test/app:1", no_report)).references


@pytest.mark.parametrize(
    ("table", "script", "part"),
    [
        ({}, "", "asks for credentials"),
        ({"auths": {"other.example": {"auth": "eDp5"}}}, "", "asks for credentials"),
        ({"auths": {"SERVER": {"auth": "eDp5"}}}, "", "refuses the credentials"),
        ({"auths": {"SERVER": {"auth": "!!!"}}}, "", "base64"),
        ("{broken", "", "cannot be used"),
        ({"credsStore": "test"}, "echo credentials not found; exit 1", "asks for credentials"),
        ({"credsStore": "test"}, "echo locked; exit 1", "locked"),
        ({"credsStore": "test"}, "echo nonsense", "nonsense"),
        ({"credsStore": "missing"}, "", "not installed"),
        ({"credsStore": "../../bin/sh"}, "", "no name of a credential helper"),
    ],
)
async def test_denials_say_why(
    server, pulling, configure, helper, table, script: str, part: str
) -> None:
    if script:
        helper(script)
    text = table if isinstance(table, str) else json.dumps(table).replace("SERVER", server.name)
    configure(text)
    server.faults.append(asks_basic)
    with pytest.raises(HutchError, match=part) as caught:
        await pulling.pull(f"{server.name}/test/app:1", no_report)
    assert caught.value.code == "registry_denied"
    assert "cret" not in str(caught.value)


def bearer(server: FakeRegistry, tokens: FakeRegistry, token: str = "tok-1"):
    def fault(request: Request) -> Answer | None:
        if request.headers.get("authorization") == f"Bearer {token}":
            return None
        realm = f'Bearer realm="http://{tokens.name}/token",service="reg \\"x\\"",scope="ignored"'
        return Answer(401, headers={"WWW-Authenticate": realm})

    server.faults.append(fault)


async def test_an_anonymous_token(server, pulling) -> None:
    async with serving() as tokens:
        tokens.faults.append(lambda r: Answer(200, b'{"token": "tok-1", "expires_in": 300}'))
        bearer(server, tokens)
        assert (await pulling.pull(f"{server.name}/test/app:1", no_report)).references
        [asked] = tokens.requests
        query = httpx.URL(asked.path).params
        assert query["scope"] == "repository:test/app:pull"
        assert query["service"] == 'reg "x"'
        assert "authorization" not in asked.headers


async def test_a_token_for_a_password(server, pulling, configure) -> None:
    configure({"auths": {server.name: {"username": "me", "password": "se:cret"}}})
    async with serving() as tokens:
        tokens.faults.append(lambda r: Answer(200, b'{"access_token": "tok-1"}'))
        bearer(server, tokens)
        assert (await pulling.pull(f"{server.name}/test/app:1", no_report)).references
        assert [r.headers.get("authorization") for r in tokens.requests] == [BASIC]
        # The registry itself sees tokens only.
        assert {r.headers.get("authorization") for r in server.requests} == {None, "Bearer tok-1"}


async def test_a_token_for_an_identity_token(server, pulling, configure) -> None:
    configure({"auths": {server.name: {"identitytoken": "refresh-me"}}})
    async with serving() as tokens:
        tokens.faults.append(lambda r: Answer(200, b'{"access_token": "tok-1"}'))
        bearer(server, tokens)
        assert (await pulling.pull(f"{server.name}/test/app:1", no_report)).references
        [asked] = tokens.requests
        assert asked.method == "POST"
        assert b"grant_type=refresh_token" in asked.body
        assert b"refresh_token=refresh-me" in asked.body


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (Answer(401), "registry_denied"),
        (Answer(200, b"nonsense"), "registry_failed"),
        (Answer(200, b"{}"), "registry_failed"),
        (Answer(200, b'{"token": "a\\nb"}'), "registry_failed"),
        (Answer(200, b" " * (2 << 20)), "registry_failed"),
        (Answer(200, b'{"token": "wrong"}'), "registry_denied"),
    ],
)
async def test_token_services_that_fail(server, pulling, answer: Answer, code: str) -> None:
    async with serving() as tokens:
        tokens.faults.append(lambda r: answer)
        bearer(server, tokens)
        with pytest.raises(HutchError) as caught:
            await pulling.pull(f"{server.name}/test/app:1", no_report)
        assert caught.value.code == code


async def test_a_registry_over_tls_cannot_name_a_plain_token_service() -> None:
    challenge = httpx.Response(
        401, headers={"WWW-Authenticate": 'Bearer realm="http://evil.example/t"'}
    )
    async with httpx.AsyncClient() as client:
        authorizer = auth.Authorizer("reg.example", client, plain_http=False)
        with pytest.raises(HutchError, match="trusted"):
            await authorizer.answer(challenge, "repository:x:pull")


def test_challenges_are_parsed() -> None:
    headers = httpx.Headers(
        [
            ("WWW-Authenticate", 'Bearer realm="https://a/b?c=d,e", scope=x'),
            ("WWW-Authenticate", "Basic"),
        ]
    )
    first, second = auth.parse_challenges(headers)
    assert first.scheme == "bearer"
    assert first.parameters == {"realm": "https://a/b?c=d,e", "scope": "x"}
    assert second.scheme == "basic"


async def test_docker_hub_has_a_key_of_its_own(configure, tmp_path: Path) -> None:
    configure({"auths": {"https://index.docker.io/v1/": {"username": "hub", "password": "p"}}})
    env = {"DOCKER_CONFIG": str(tmp_path / "docker")}
    found = await auth.find_credentials("docker.io", env)
    assert found is not None
    assert found.username == "hub"
    assert "p'" not in repr(found)
    assert await auth.find_credentials("quay.example", env) is None

"""Credentials for registries: docker's config.json, credential helpers, and the Basic and Bearer
schemes.

Credentials belong to one registry: they go to it, and to the token service that it names over TLS,
and nowhere else. What a redirect points at never sees them (`registry` sends it no header of ours).
"""

import base64
import binascii
import json
import os
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from hutch import process
from hutch.errors import HutchError, error
from hutch.images.reference import DOCKER_HUB
from hutch.tasks import in_thread

_HUB_KEY = "https://index.docker.io/v1/"
_HELPER = re.compile(r"[A-Za-z0-9._-]+")
_HELPER_TIMEOUT = 30.0
_PARAMETER = re.compile(r'([A-Za-z_]+)\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s,]+))')
_TOKEN_LIFE = 60.0  # seconds, when the service does not say
_TOKEN_MARGIN = 10.0
_CONFIG_LIMIT = 1 << 20
_TOKEN_LIMIT = 1 << 20


@dataclass(frozen=True, slots=True)
class Credentials:
    """A name and password, or an identity token to trade for access tokens."""

    username: str = ""
    password: str = ""
    identity_token: str = ""

    def __repr__(self) -> str:
        """Return no secret: this may get into a log."""
        return f"Credentials({self.username!r})"

    @property
    def basic(self) -> str:
        """The value of a Basic Authorization header."""
        pair = f"{self.username}:{self.password}".encode()
        return "Basic " + base64.b64encode(pair).decode("ascii")


@dataclass(frozen=True, slots=True)
class Challenge:
    """A WWW-Authenticate header: the scheme in lower case and its parameters."""

    scheme: str
    parameters: Mapping[str, str]


def parse_challenges(headers: httpx.Headers) -> list[Challenge]:
    """Return the challenges of a 401 answer, one per header line."""
    found = []
    for line in headers.get_list("www-authenticate"):
        scheme, _, rest = line.strip().partition(" ")
        parameters = {
            match[1].lower(): re.sub(r"\\(.)", r"\1", match[2])
            if match[2] is not None
            else match[3]
            for match in _PARAMETER.finditer(rest)
        }
        found.append(Challenge(scheme.lower(), parameters))
    return found


async def find_credentials(
    registry: str, env: Mapping[str, str] = os.environ
) -> Credentials | None:
    """Return what docker's configuration has for a registry, or None.

    Raises ImageError (registry_denied) when the configuration or its helper fails.
    """
    path = _config_path(env)
    table = await in_thread(_read_config, path)
    keys = _keys(registry)
    helpers = table.get("credHelpers")
    for key in keys:
        if isinstance(helpers, dict) and isinstance(helpers.get(key), str):
            return await _ask_helper(helpers[key], key)
    auths = table.get("auths")
    for key in keys:
        entry = auths.get(key) if isinstance(auths, dict) else None
        if isinstance(entry, dict) and (found := _from_entry(entry, path)) is not None:
            return found
    if isinstance(table.get("credsStore"), str):
        for key in keys:
            if (found := await _ask_helper(table["credsStore"], key)) is not None:
                return found
    return None


def _config_path(env: Mapping[str, str]) -> Path:
    if env.get("DOCKER_CONFIG"):
        return Path(env["DOCKER_CONFIG"]) / "config.json"
    return Path(env.get("HOME") or Path.home()) / ".docker/config.json"


def _read_config(path: Path) -> dict[str, Any]:
    try:
        with open(path, "rb") as file:
            table = json.loads(file.read(_CONFIG_LIMIT))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as cause:
        raise _broken(path, str(cause)) from cause
    if not isinstance(table, dict):
        raise _broken(path, "it is no JSON object")
    return table


def _keys(registry: str) -> list[str]:
    if registry == DOCKER_HUB:
        return [_HUB_KEY, "index.docker.io", DOCKER_HUB, "registry-1.docker.io"]
    return [registry, f"https://{registry}", f"https://{registry}/", f"http://{registry}"]


def _from_entry(entry: Mapping[str, Any], path: Path) -> Credentials | None:
    token = entry.get("identitytoken")
    if isinstance(token, str) and token:
        return Credentials(identity_token=token)
    username, password = entry.get("username"), entry.get("password")
    if isinstance(username, str) and isinstance(password, str) and username:
        return Credentials(username, password)
    coded = entry.get("auth")
    if not isinstance(coded, str) or not coded:
        return None
    try:
        username, colon, password = base64.b64decode(coded, validate=True).decode().partition(":")
    except (binascii.Error, UnicodeDecodeError) as cause:
        raise _broken(path, "an `auth` is not base64") from cause
    if not colon:
        raise _broken(path, "an `auth` holds no name and password")
    return Credentials(username, password.rstrip("\0"))


async def _ask_helper(name: str, key: str) -> Credentials | None:
    if not _HELPER.fullmatch(name):
        raise error("registry_denied", f"{name!r} is no name of a credential helper")
    program = f"docker-credential-{name}"
    found = process.which(program)
    if found is None:
        raise error("registry_denied", f"the credential helper {program} is not installed")
    answered = await process.run(
        [found, "get"],
        timeout=_HELPER_TIMEOUT,
        stdin=key.encode(),
        check=False,
        code="registry_denied",
    )
    if answered.code != 0:
        text = (answered.stdout + answered.stderr).decode(errors="replace").strip()
        if "credentials not found" in text:
            return None
        raise error("registry_denied", f"{program} failed for {key}: {text[:500]}")
    try:
        body = json.loads(answered.stdout)
        username, secret = str(body["Username"]), str(body["Secret"])
    except (ValueError, KeyError, TypeError) as cause:
        raise error("registry_denied", f"{program} answered nonsense") from cause
    if username == "<token>":
        return Credentials(identity_token=secret)
    return Credentials(username, secret)


class Authorizer:
    """The Authorization header for one registry, learnt from its challenges."""

    def __init__(self, registry: str, client: httpx.AsyncClient, *, plain_http: bool) -> None:
        self._registry = registry
        self._client = client
        self._plain_http = plain_http
        self._basic: str | None = None
        self._tokens: dict[str, tuple[str, float]] = {}

    def header(self, scope: str) -> str | None:
        """Return the header to send for a scope like `repository:NAME:pull`, or None before the
        first challenge.
        """
        token, until = self._tokens.get(scope, ("", 0.0))
        if token and time.monotonic() < until:
            return f"Bearer {token}"
        return self._basic

    async def answer(self, response: httpx.Response, scope: str) -> None:
        """Get what a 401 asks for, for the next `header`. Raises ImageError (registry_denied)."""
        challenges = {c.scheme: c.parameters for c in parse_challenges(response.headers)}
        credentials = await find_credentials(self._registry)
        if "bearer" in challenges:
            self._tokens.pop(scope, None)
            await self._fetch_token(challenges["bearer"], scope, credentials)
        elif "basic" in challenges and credentials is not None and credentials.username:
            self._basic = credentials.basic
        else:
            raise self.denied(known=credentials is not None)

    def denied(self, *, known: bool) -> HutchError:
        """Return the error for a registry that refuses; `known` tells whether it had credentials of
        ours.
        """
        if known:
            return error(
                "registry_denied",
                f"the registry {self._registry} refuses the credentials that it was given",
                hint=f"log in again with `docker login {self._registry}` or the like",
            )
        return error(
            "registry_denied",
            f"the registry {self._registry} asks for credentials, or has no such image",
            hint=f"log in with `docker login {self._registry}`, which writes ~/.docker/config.json",
        )

    async def _fetch_token(
        self, challenge: Mapping[str, str], scope: str, credentials: Credentials | None
    ) -> None:
        realm = httpx.URL(challenge.get("realm", ""))
        # Over plain HTTP anyone on the way could name a token service of his own and collect
        # passwords.
        if realm.scheme != "https" and not (self._plain_http and realm.scheme == "http"):
            raise error(
                "registry_denied",
                f"the registry {self._registry} names no token service that can be trusted",
            )
        fields = {"scope": scope}
        if service := challenge.get("service"):
            fields["service"] = service
        if credentials is not None and credentials.identity_token:
            fields |= {
                "grant_type": "refresh_token",
                "refresh_token": credentials.identity_token,
                "client_id": "hutch",
            }
            request = self._client.build_request("POST", realm, data=fields)
        else:
            headers = {"Authorization": credentials.basic} if credentials else {}
            url = realm.copy_merge_params(fields)
            request = self._client.build_request("GET", url, headers=headers)
        response = await self._client.send(request, stream=True)
        try:
            if response.status_code in (400, 401, 403):
                raise self.denied(known=credentials is not None)
            body = json.loads(await read_bounded(response, _TOKEN_LIMIT))
            token = body.get("token") or body.get("access_token")
            life = float(body.get("expires_in") or _TOKEN_LIFE)
        except (ValueError, TypeError, AttributeError) as cause:
            raise self._nonsense(realm) from cause
        finally:
            await response.aclose()
        if response.status_code != 200 or not isinstance(token, str) or not token.isprintable():
            raise self._nonsense(realm)
        self._tokens[scope] = (token, time.monotonic() + max(life - _TOKEN_MARGIN, _TOKEN_MARGIN))

    def _nonsense(self, realm: httpx.URL) -> HutchError:
        return error("registry_failed", f"the token service {realm.host} gives no token")


async def read_bounded(response: httpx.Response, limit: int) -> bytes:
    """Return the body of an answer. Raises ValueError when it is longer than `limit` bytes."""
    body = b""
    async for chunk in response.aiter_raw():
        body += chunk
        if len(body) > limit:
            raise ValueError(f"an answer of more than {limit} bytes")
    return body


def _broken(path: Path, why: str) -> HutchError:
    return error("registry_denied", f"{path} cannot be used: {why}")

"""One registry endpoint over HTTP: authorization, redirects that carry no credentials, retries.

It knows URLs and answers, not images; `registry` is its counterpart. All failures of the network
are ImageErrors.
"""

import asyncio
import contextlib
import random
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Self

import httpx

from hutch import __version__
from hutch.errors import HutchError, error
from hutch.images.auth import Authorizer
from hutch.images.reference import DOCKER_HUB
from hutch.settings import Settings

ATTEMPTS = 6
CONNECT_ATTEMPTS = 3  # a name or port that does not exist rarely comes to be
_REDIRECTS = 5
_RETRIED = (408, 425, 429, 500, 502, 503, 504)
_LONGEST_WAIT = 30.0
_REDIRECTING = (301, 302, 303, 307, 308)
_HUB_HOST = "registry-1.docker.io"


class Retry(Exception):
    """A failure that may pass: `attempts` are worth it, after `wait` seconds (None: the usual
    backoff).
    """

    def __init__(self, why: str, wait: float | None = None, attempts: int = ATTEMPTS) -> None:
        super().__init__(why)
        self.wait = wait
        self.attempts = attempts


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a registry, or a mirror of it, is spoken to. `name` is what credentials and settings
    call it.
    """

    name: str
    base: str
    plain_http: bool

    @classmethod
    def of(cls, name: str, settings: Settings) -> Self:
        """Return the endpoint for `host[:port][/prefix]`, as the settings want it spoken to."""
        bare = name.removeprefix("https://").removeprefix("http://").rstrip("/")
        host, _, prefix = bare.partition("/")
        plain = name.startswith("http://") or host in settings.plain_http_registries
        address = _HUB_HOST if host == DOCKER_HUB else host
        base = f"{'http' if plain else 'https'}://{address}/v2/" + (f"{prefix}/" if prefix else "")
        return cls(host, base, plain)


def endpoints(registry: str, settings: Settings) -> list[Endpoint]:
    """Return where to ask for a registry's images: its mirrors in their order, then itself."""
    pairs = (pair.partition("=") for pair in settings.registry_mirrors)
    mirrors = [mirror for name, _, mirror in pairs if name == registry and mirror]
    return [Endpoint.of(name, settings) for name in (*mirrors, registry)]


def make_client(settings: Settings) -> httpx.AsyncClient:
    """Return the HTTP client for registries. Raises InvalidInput (bad_setting) for an unreadable CA
    file.
    """
    context = ssl.create_default_context()
    if settings.registry_ca:
        try:
            context.load_verify_locations(cafile=settings.registry_ca)
        except (OSError, ssl.SSLError) as cause:
            raise error(
                "bad_setting", f"registry_ca: {settings.registry_ca} cannot be used: {cause}"
            ) from cause
    return httpx.AsyncClient(
        verify=context,
        timeout=httpx.Timeout(30.0, connect=15.0, pool=None),
        limits=httpx.Limits(max_connections=32, keepalive_expiry=30.0),
        # Bytes must come as they are stored: their digest is known.
        headers={"User-Agent": f"hutch/{__version__}", "Accept-Encoding": "identity"},
        follow_redirects=False,
    )


class Transport:
    """Requests to one endpoint. `backoff` is the first wait between attempts, in seconds."""

    def __init__(self, endpoint: Endpoint, client: httpx.AsyncClient, backoff: float) -> None:
        self.endpoint = endpoint
        self._client = client
        self._backoff = backoff
        self._authorizer = Authorizer(endpoint.name, client, plain_http=endpoint.plain_http)

    @asynccontextmanager
    async def get(
        self, path: str, scope: str, headers: Mapping[str, str]
    ) -> AsyncIterator[httpx.Response]:
        """Give an answer with status 200 or 206, its body not read yet.

        Raises Retry for what may pass, image_not_found for 404, registry_denied, registry_failed.
        """
        async with contextlib.AsyncExitStack() as stack:
            try:
                yield await self._final(stack, path, scope, headers)
            except httpx.ConnectError as cause:
                if "CERTIFICATE_VERIFY_FAILED" in str(cause):
                    raise self._untrusted(cause) from cause
                raise Retry(f"cannot connect: {cause}", attempts=CONNECT_ATTEMPTS) from cause
            except httpx.TransportError as cause:
                raise Retry(f"{type(cause).__name__} {cause}".strip()) from cause
            except httpx.InvalidURL as cause:
                raise self.failed(f"points at a malformed address: {cause}") from cause

    async def _final(
        self, stack: contextlib.AsyncExitStack, path: str, scope: str, headers: Mapping[str, str]
    ) -> httpx.Response:
        url = httpx.URL(self.endpoint.base + path)
        origin = _origin(url)
        answered = False
        for _ in range(_REDIRECTS + 2):
            sent = dict(headers)
            if _origin(url) == origin and (value := self._authorizer.header(scope)):
                sent["Authorization"] = value
            request = self._client.build_request("GET", url, headers=sent)
            response = await self._client.send(request, stream=True)
            stack.push_async_callback(response.aclose)
            if response.status_code in _REDIRECTING:
                url = self._redirected(url, response)
            elif response.status_code == 401 and _origin(url) == origin:
                if answered:
                    raise self._authorizer.denied(known="Authorization" in sent)
                answered = True
                await self._authorizer.answer(response, scope)
            else:
                self._check(response)
                return response
        raise self.failed("redirects for ever")

    def _redirected(self, url: httpx.URL, response: httpx.Response) -> httpx.URL:
        target = url.join(response.headers.get("location", ""))
        if target.scheme not in ("http", "https"):
            raise self.failed(f"redirects to the scheme {target.scheme!r}")
        if target.scheme == "http" and url.scheme == "https":
            raise self.failed(f"redirects from TLS to plain HTTP at {target.host}")
        return target

    def _check(self, response: httpx.Response) -> None:
        status = response.status_code
        if status in (200, 206):
            return
        if status in _RETRIED:
            raise Retry(f"status {status}", _retry_after(response))
        if status == 404:
            raise error("image_not_found", f"{self.endpoint.name} does not have it")
        if status in (401, 403):
            raise self._authorizer.denied(known=False)
        raise self.failed(f"answers with status {status}")

    def failed(self, why: str) -> HutchError:
        """Return the error for an endpoint that misbehaves."""
        return error("registry_failed", f"the registry {self.endpoint.name} {why}")

    def _untrusted(self, cause: httpx.ConnectError) -> HutchError:
        return error(
            "registry_failed",
            f"the certificate of the registry {self.endpoint.name} is not trusted: {cause}",
            hint="name its authority's PEM file in the setting registry_ca",
        )

    async def pause(self, attempt: int, cause: Retry) -> None:
        """Wait before the next attempt (0 is the first failure). Raises registry_failed after the
        last.
        """
        if attempt + 1 >= cause.attempts:
            raise error(
                "registry_failed",
                f"the registry {self.endpoint.name} failed {attempt + 1} times, last with: {cause}",
                hint="check the network and the name of the registry, then try again",
            ) from cause
        wait = cause.wait if cause.wait is not None else self._backoff * 2**attempt
        # Spread, so that the ranges of one blob do not all come back at once.
        await asyncio.sleep(min(wait, _LONGEST_WAIT) * random.uniform(0.75, 1.25))


def _origin(url: httpx.URL) -> tuple[str, str, int | None]:
    return url.scheme, url.host, url.port


def _retry_after(response: httpx.Response) -> float | None:
    text = response.headers.get("retry-after", "")
    return float(text) if text.isdigit() else None

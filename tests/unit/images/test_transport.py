"""Where registries are spoken to; their answers are in test_registry."""

import pytest

from hutch.errors import HutchError
from hutch.images.transport import ATTEMPTS, Endpoint, Retry, Transport, endpoints, make_client
from tests.unit.images.making import settings_with


def test_addresses() -> None:
    settings = settings_with(plain_http_registries=("plain.example:5000",))
    assert Endpoint.of("docker.io", settings).base == "https://registry-1.docker.io/v2/"
    assert Endpoint.of("reg.example", settings).base == "https://reg.example/v2/"
    assert Endpoint.of("plain.example:5000", settings).base == "http://plain.example:5000/v2/"
    assert Endpoint.of("http://m.example/cache/", settings).base == "http://m.example/v2/cache/"


def test_mirrors_go_first_in_their_order() -> None:
    settings = settings_with(
        registry_mirrors=(
            "docker.io=one.example",
            "other.example=no.example",
            "docker.io=two.example",
        )
    )
    assert [e.name for e in endpoints("docker.io", settings)] == [
        "one.example", "two.example", "docker.io",
    ]  # fmt: skip


async def test_patience_ends() -> None:
    settings = settings_with()
    async with make_client(settings) as client:
        transport = Transport(Endpoint.of("reg.example", settings), client, backoff=0.0)
        for attempt in range(ATTEMPTS - 1):
            await transport.pause(attempt, Retry("reason"))
        with pytest.raises(HutchError, match="reason") as caught:
            await transport.pause(ATTEMPTS - 1, Retry("reason"))
        assert caught.value.code == "registry_failed"
        with pytest.raises(HutchError):
            await transport.pause(1, Retry("reason", attempts=2))

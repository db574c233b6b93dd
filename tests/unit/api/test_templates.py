"""The routes of templates, and what the SDK makes of them."""

import pytest

from hutch.errors import InvalidInput, NotFound
from hutch.sdk import AsyncClient
from tests.unit.api.contract import ask, refused

BASE = "/v1/templates"


async def test_the_shelf(api: str) -> None:
    (info,) = await ask(api, "GET", BASE)
    assert info["image"] == "busybox"
    assert (await ask(api, "DELETE", BASE, {"ref": info["id"][:6]}))["removed"] == [info["id"]]
    assert (await refused(api, "DELETE", BASE, {"ref": "no"})).code == "template_not_found"
    assert (await ask(api, "POST", f"{BASE}/prune"))["bytes"] == 10


async def test_build(api: str) -> None:
    steps = []
    async with AsyncClient(socket=api) as client:
        info = await client.templates.build("debian", cpus=2, on_progress=steps.append)
        assert (info.image, info.cpus) == ("debian", 2)
        with pytest.raises(InvalidInput):
            await client.templates.build("debian", memory=3)
    assert [step.stage for step in steps] == ["build"]


async def test_the_sdk(api: str) -> None:
    async with AsyncClient(socket=api) as client:
        (info,) = await client.templates.list()
        assert (await client.templates.remove(info.id)).removed == [info.id]
        assert (await client.templates.prune()).bytes == 10
        with pytest.raises(NotFound):
            await client.templates.remove("no")


async def test_starting_without(api: str) -> None:
    made = await ask(
        api, "POST", "/v1/sandboxes", json={"image": "busybox", "idle": True}, status=201
    )
    where = f"/v1/sandboxes/{made['id']}/start"
    assert (await ask(api, "POST", where))["template"] is not None
    assert (await ask(api, "POST", where, json={"template": False}))["template"] is None

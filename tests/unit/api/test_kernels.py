from hutch.sdk import AsyncClient
from tests.unit.api.contract import ask, refused

BASE = "/v1/kernels"


async def test_the_store(api: str) -> None:
    assert [item["name"] for item in await ask(api, "GET", BASE)] == ["6.1"]
    assert (await ask(api, "POST", f"{BASE}/use", json={"name": "6.1"}))["active"]
    body = {"path": "/boot/vmlinuz", "modules": "/lib/modules/x", "name": "mine"}
    assert (await ask(api, "POST", f"{BASE}/load", json=body))["name"] == "mine"
    assert (await ask(api, "DELETE", BASE, {"name": "6.1"}))["removed"] == ["6.1"]
    assert (await refused(api, "DELETE", BASE, {"name": "no"})).code == "kernel_not_found"


async def test_pull(api: str) -> None:
    steps = []
    async with AsyncClient(socket=api) as client:
        assert (await client.kernels.pull(on_progress=steps.append)).version == "6.1.0"
    assert [step.stage for step in steps] == ["fetch"]

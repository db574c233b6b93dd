from hutch.sdk import AsyncClient
from tests.unit.api.contract import ask, refused

BASE = "/v1/images"


async def test_the_store(api: str) -> None:
    assert [item["references"] for item in await ask(api, "GET", BASE)] == [["busybox"]]
    assert (await ask(api, "GET", f"{BASE}/inspect", {"ref": "busybox"}))["architecture"] == "amd64"
    assert (await ask(api, "POST", f"{BASE}/prune", json={"all": True}))["removed"] == []
    assert (await ask(api, "DELETE", BASE, {"ref": "busybox"}))["bytes"] == 10
    assert (await refused(api, "DELETE", BASE, {"ref": "busybox"})).code == "image_not_found"
    assert (await refused(api, "GET", f"{BASE}/inspect")).code == "bad_request"


async def test_load_and_build(api: str) -> None:
    async with AsyncClient(socket=api) as client:
        assert (await client.images.load("/tmp/a.tar", tag="a"))[0].references == ["a"]
        built = await client.images.build("/tmp", tag="b", dockerfile="/tmp/D", args={"X": "1"})
        assert built.references == ["b"]

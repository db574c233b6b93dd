from tests.unit.api.contract import ask, refused
from tests.unit.api.fake_operations import FakeOperations

BASE = "/v1/sandboxes/box/execs"


async def test_detached_programs(api: str, fake: FakeOperations) -> None:
    made = await ask(api, "POST", BASE, json={"argv": ["hang"]}, status=201)
    assert (made["detached"], made["running"]) == (True, True)
    assert [item["id"] for item in await ask(api, "GET", BASE)] == [made["id"]]
    body = {"signal": "TERM", "all": True}
    await ask(api, "POST", f"{BASE}/{made['id']}/signal", json=body, status=204)
    running = fake.execs.all[made["id"]]
    await running.program.until(lambda: not running.info.running)
    ended = await ask(api, "GET", f"{BASE}/{made['id']}")
    assert ended["outcome"]["exit_code"] == 143


async def test_refusals(api: str) -> None:
    assert (await refused(api, "GET", f"{BASE}/none")).code == "exec_not_found"
    failure = await refused(api, "POST", BASE, json={"argv": ["nosuch"]})
    assert (failure.code, failure.exit_code) == ("command_not_found", 127)
    assert (await refused(api, "POST", BASE, json={})).code == "bad_request"

"""The routes of checkpoints, with the bodies that a client sends and those it leaves out."""

from tests.unit.api.contract import ask, refused

WEB = "/v1/sandboxes/web"


async def test_the_routes(api: str) -> None:
    await ask(api, "POST", "/v1/sandboxes", json={"image": "busybox", "name": "web"}, status=201)
    first = await ask(api, "POST", f"{WEB}/checkpoints", json={"message": "m"}, status=201)
    second = await ask(api, "POST", f"{WEB}/checkpoints", json={"command": ["a", "b"]}, status=201)
    assert (first["checkpoint"], first["message"], second["command"]) == (True, "m", ["a", "b"])
    listed = await ask(api, "GET", f"{WEB}/checkpoints")
    assert listed == [{"number": 1, "snapshot": second}, {"number": 2, "snapshot": first}]
    assert await ask(api, "GET", "/v1/snapshots") == []
    assert await ask(api, "GET", "/v1/snapshots", {"checkpoints": True}) == [first, second]
    assert (await ask(api, "POST", f"{WEB}/undo"))["undone_to"] == second["id"]
    back = await ask(api, "POST", f"{WEB}/undo", json={"number": 2})
    assert back["undone_to"] == first["id"]
    back = await ask(api, "POST", f"{WEB}/undo", json={"to": second["id"]})
    assert back["undone_to"] == second["id"]
    for body in ({"number": 3}, {"to": "nosuch"}):
        code = (await refused(api, "POST", f"{WEB}/undo", json=body)).code
        assert code == "checkpoint_not_found"
    failure = await refused(api, "POST", f"{WEB}/undo", json={"number": "x"})
    assert failure.code == "bad_request"


async def test_two_moments(api: str) -> None:
    found = await ask(api, "GET", "/v1/diff", {"before": "a", "after": "b"})
    assert (found["before"], found["after"], found["complete"]) == ("a", "b", True)
    assert found["files"][0]["path"] == "/d"
    assert (await ask(api, "GET", "/v1/diff", {"before": "a"}))["complete"] is False
    assert (await refused(api, "GET", "/v1/diff", {"before": "nosuch"})).code == "sandbox_not_found"
    assert (await refused(api, "GET", "/v1/diff")).code == "bad_request"

from tests.unit.api.contract import ask, refused

BOX = "/v1/sandboxes/box/ports"


async def test_ports_are_published_listed_and_given_up(api: str) -> None:
    assert await ask(api, "GET", BOX) == []
    wanted = {"ports": [{"guest_port": 80}, {"guest_port": 81, "host_port": 8081}]}
    free, chosen = await ask(api, "POST", BOX, json=wanted, status=201)
    assert free["guest_port"] == 80
    assert free["host_port"] > 0
    assert chosen == {"guest_port": 81, "host_port": 8081, "address": "127.0.0.1", "error": None}
    assert await ask(api, "GET", BOX) == [free, chosen]
    assert (await ask(api, "GET", "/v1/sandboxes/box"))["ports"] == [free, chosen]
    assert await ask(api, "DELETE", f"{BOX}/8081", {"address": "127.0.0.1"}) == [chosen]
    assert await ask(api, "DELETE", f"{BOX}/{free['host_port']}") == [free]
    assert await ask(api, "GET", BOX) == []


async def test_a_sandbox_is_made_with_ports(api: str) -> None:
    spec = {"image": "busybox", "ports": [{"guest_port": 80, "address": "::1"}]}
    made = await ask(api, "POST", "/v1/sandboxes", json=spec, status=201)
    [port] = made["ports"]
    assert (port["guest_port"], port["address"]) == (80, "::1")


async def test_refusals(api: str) -> None:
    taken = {"ports": [{"guest_port": 80, "host_port": 9999}]}
    failure = await refused(api, "POST", BOX, json=taken)
    assert (failure.code, failure.status) == ("port_taken", 409)
    failure = await refused(api, "DELETE", f"{BOX}/1")
    assert (failure.code, failure.status) == ("port_not_found", 404)
    failure = await refused(api, "DELETE", f"{BOX}/8081", {"address": "::1"})
    assert failure.code == "port_not_found"
    for body in ({}, {"ports": [{}]}, {"ports": [{"guest_port": "x"}]}, {"ports": 1}):
        assert (await refused(api, "POST", BOX, json=body)).code == "bad_request"
    assert (await refused(api, "DELETE", f"{BOX}/x")).code == "bad_request"
    missing = "/v1/sandboxes/none/ports"
    assert (await refused(api, "GET", missing)).code == "sandbox_not_found"

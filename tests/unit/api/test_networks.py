"""The routes of networks."""

import json

from hutch.sdk.aio.transport import Transport
from tests.unit.api.contract import ask, refused

BASE = "/v1/sandboxes/box/network"


async def test_shown_and_changed(api: str) -> None:
    shown = await ask(api, "GET", BASE)
    assert (shown["name"], shown["policy"]["mode"], shown["attached"]) == ("box", "public", True)
    body = {"mode": "deny", "allow": ["a.example.com:22"], "deny": ["b.example.com"]}
    changed = await ask(api, "PATCH", BASE, json=body)
    assert changed["ended"] == 1
    policy = changed["network"]["policy"]
    assert (policy["mode"], policy["allow"]) == ("deny", ["a.example.com:22"])
    assert (await ask(api, "GET", "/v1/sandboxes/box"))["network"] == policy
    whole = {"policy": {"mode": "open", "allow_host": [3000]}}
    policy = (await ask(api, "PATCH", BASE, json=whole))["network"]["policy"]
    assert (policy["mode"], policy["allow"], policy["allow_host"]) == ("open", [], [3000])


async def test_refused(api: str) -> None:
    assert (await refused(api, "PATCH", BASE, json={"allow": ["bad"]})).code == "bad_policy"
    assert (await refused(api, "PATCH", BASE, json={"mode": "wide"})).code == "bad_request"
    assert (await refused(api, "GET", "/v1/sandboxes/no/network")).code == "sandbox_not_found"
    assert (await refused(api, "GET", "/v1/sandboxes/no/network/log")).code == "sandbox_not_found"
    assert (await refused(api, "GET", BASE + "/log", {"tail": -1})).code == "bad_request"


async def test_connections(api: str) -> None:
    (one,) = await ask(api, "GET", BASE + "/connections")
    assert (one["name"], one["port"], one["received"]) == ("a.example.com", 443, 10)


async def test_the_log_is_lines(api: str) -> None:
    transport = Transport(None, api)
    try:
        answer = await transport.request("GET", BASE + "/log", {"since": 2})
        lines = (await answer.read()).splitlines()
    finally:
        await transport.close()
    (line,) = [json.loads(each) for each in lines]
    assert (line["record"]["number"], line["record"]["reason"]) == (2, "not_allowed")

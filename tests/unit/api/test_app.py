import subprocess
import sys
from pathlib import Path

import pytest

from hutch.errors import CODES, InvalidInput
from hutch.sdk.aio.transport import Transport
from tests.unit.api.contract import ask, refused
from tests.unit.api.fake_operations import FakeOperations

ROOT = Path(__file__).resolve().parents[3]


def test_the_specification_is_the_codes() -> None:
    done = subprocess.run(
        [sys.executable, "scripts/openapi.py", "--check"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


async def test_an_unknown_route(transport: Transport) -> None:
    with pytest.raises(InvalidInput, match="GET /v1/nothing"):
        await transport.request("GET", "/v1/nothing")


async def test_a_wrong_body_names_its_field(api: str) -> None:
    failure = await refused(api, "POST", "/v1/sandboxes", json={"image": "x", "cpus": "many"})
    assert (failure.code, failure.status) == ("bad_request", 400)
    assert failure.details["fields"][0]["field"] == "body.cpus"


async def test_a_bug_is_internal_and_the_daemon_goes_on(api: str, fake: FakeOperations) -> None:
    fake.system.bug = True
    failure = await refused(api, "GET", "/v1/daemon")
    assert failure.code == "internal"
    assert failure.hint
    fake.system.bug = False
    await ask(api, "GET", "/v1/daemon")


def test_every_status_of_the_table_is_an_error() -> None:
    assert all(400 <= row.status < 600 for row in CODES.values())

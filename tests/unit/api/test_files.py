import io
import json
import tarfile

import pytest

from hutch.api.files import file_info, octal
from hutch.errors import InvalidInput
from hutch.guest.base import FileEntry, FileType
from hutch.sdk.aio.transport import Transport
from tests.unit.api.contract import ask, refused
from tests.unit.api.fake_operations import FakeOperations

BASE = "/v1/sandboxes/box"


async def put(transport: Transport, path: str, data: bytes, **query: object) -> int:
    answer = await transport.request("PUT", f"{BASE}/files", {"path": path} | query, body=data)
    return int((await answer.json())["bytes"])


async def test_contents(api: str, transport: Transport) -> None:
    data = bytes(range(256)) * 4096
    assert await put(transport, "/f", data, mode="600", uid=5, gid=6) == len(data)
    found = await ask(api, "GET", f"{BASE}/files/stat", {"path": "/f"})
    assert (found["mode"], found["uid"], found["gid"], found["size"]) == (0o600, 5, 6, len(data))
    answer = await transport.request("GET", f"{BASE}/files", {"path": "/f"})
    assert await answer.read() == data
    query = {"path": "/f", "offset": 255, "length": 2}
    answer = await transport.request("GET", f"{BASE}/files", query)
    assert await answer.read() == b"\xff\x00"
    assert await put(transport, "/f", b"more", append=True) == len(data) + 4
    await put(transport, "/empty", b"")
    answer = await transport.request("GET", f"{BASE}/files", {"path": "/empty"})
    assert await answer.read() == b""


async def test_changes(api: str, transport: Transport, fake: FakeOperations) -> None:
    async def post(verb: str, **body: object) -> None:
        await ask(api, "POST", f"{BASE}/files/{verb}", json=body, status=204)

    await post("mkdir", path="/d", mode=0o700)
    await put(transport, "/d/f", b"x")
    await post("rename", source="/d/f", target="/d/g")
    await post("chmod", path="/d/g", mode=0o755)
    await post("chown", path="/d/g", uid=1, gid=2)
    await post("symlink", target="g", path="/d/l")
    found = await ask(api, "GET", f"{BASE}/files/list", {"path": "/d"})
    assert [(item["path"], item["type"], item["target"]) for item in found] == [
        ("/d/g", "file", None),
        ("/d/l", "symlink", "g"),
    ]
    assert (found[0]["mode"], found[0]["uid"], found[0]["gid"]) == (0o755, 1, 2)
    await post("remove", path="/d", recursive=True)
    assert list(fake.files.guest.entries) == ["/"]


async def test_archives(api: str, transport: Transport) -> None:
    await ask(api, "POST", f"{BASE}/files/mkdir", json={"path": "/d"}, status=204)
    await put(transport, "/d/f", b"text", mode="640")
    answer = await transport.request("GET", f"{BASE}/archive", {"path": "/d", "name": "top"})
    assert json.loads(answer.headers["hutch-entry"])["type"] == "dir"
    packed = await answer.read()
    with tarfile.open(fileobj=io.BytesIO(packed)) as tar:
        assert [(item.name, item.mode) for item in tar] == [("top", 0o755), ("top/f", 0o640)]
    answer = await transport.request("PUT", f"{BASE}/archive", {"path": "/"}, body=packed)
    assert await answer.json() == {"entries": 2}
    assert (await ask(api, "GET", f"{BASE}/files/stat", {"path": "/top/f"}))["size"] == 4


async def test_refusals(api: str) -> None:
    files = f"{BASE}/files"
    for path in (files, f"{files}/stat", f"{files}/list", f"{BASE}/archive"):
        assert (await refused(api, "GET", path, {"path": "/none"})).code == "path_not_found"
        assert (await refused(api, "GET", path)).code == "bad_request"
        assert (await refused(api, "GET", path, {"path": "/a\0b"})).code == "bad_request"
    assert (await refused(api, "PUT", files, {"path": "/f", "mode": "9"})).code == "bad_request"
    body = {"path": "/a\0b", "recursive": False}
    assert (await refused(api, "POST", f"{files}/remove", json=body)).code == "bad_request"
    await ask(api, "POST", f"{BASE[:-4]}/box/stop")
    assert (await refused(api, "GET", f"{files}/stat", {"path": "/"})).code == "wrong_state"


@pytest.mark.parametrize("text", ["8", "-1", "10000", "rw"])
def test_modes_are_octal(text: str) -> None:
    with pytest.raises(InvalidInput, match="octal"):
        octal(text)
    assert octal("0755") == 0o755


def test_times_that_no_calendar_has() -> None:
    entry = FileEntry("f", FileType.FILE, 0o644, 0, 0, 0, 1 << 80)
    assert file_info("/f", entry).modified_at == "1970-01-01T00:00:00.000000Z"

"""The daemon's API under nonsense: whatever a client sends, the answer is never `internal`."""

import contextlib
import http.client
import json
import socket
from pathlib import Path
from urllib.parse import quote, urlencode

import hypothesis
import pytest
from hypothesis import strategies as st

from tests.harness.hutch import Hutch
from tests.vm.conftest import Box
from tests.vm.streams import memory

SPEC = json.loads(Path("spec/openapi.json").read_text())
MIB = 1 << 20
_HARMFUL = {
    "/v1/daemon/stop",  # ends what is tested
    "/v1/kernels/pull",  # downloads
    "/v1/images/pull",
    "/v1/doctor",  # boots a canary
}
_OPERATIONS = sorted(
    (method.upper(), path)
    for path, methods in SPEC["paths"].items()
    for method in methods
    if path not in _HARMFUL
)
_FIELDS = sorted(
    {
        name
        for schema in SPEC["components"]["schemas"].values()
        for name in schema.get("properties", {})
    }
)
_ODD = st.sampled_from(
    ["", "/", "/etc", "../..", "a" * 5000, "\0", "\ud800", "é", "sb_", "main", "-1", "1e309"]
)
_NUMBERS = st.sampled_from([-1, 0, 1, 2**31, 2**63, 2**64, 10**30, -(2**70), 0.5, 1e308])
_LEAVES = st.one_of(st.none(), st.booleans(), _NUMBERS, st.text(max_size=8), _ODD)
_VALUES = st.recursive(
    _LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.one_of(st.sampled_from(_FIELDS), st.text(max_size=4)), inner),
    ),
    max_leaves=6,
)
_BODIES = st.one_of(
    st.dictionaries(st.sampled_from(_FIELDS), _VALUES, max_size=6).map(json.dumps),
    _VALUES.map(json.dumps),
    st.binary(max_size=64).map(lambda data: data.decode("latin-1")),
    st.just("[" * 100_000),
)


class _Client(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=120)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def _ask(path: str, method: str, target: str, body: str | None) -> tuple[int, bytes]:
    client = _Client(path)
    headers = {"Content-Type": "application/json"}
    try:
        data = body and body.encode("utf-8", "replace")
        client.request(method, target, body=data, headers=headers)
        answer = client.getresponse()
        return answer.status, answer.read(1 << 16)
    finally:
        client.close()


def _socket(hutch: Hutch) -> str:
    return str(json.loads((hutch.home / "daemon.lock").read_text())["socket"])


@pytest.mark.parametrize("ref", ["victim", "none"])
def test_no_request_is_an_internal_error(box: Box, ref: str) -> None:
    if ref == "victim":  # whose files may well be gone in the end
        box.hutch.run("run", "-d", "--idle", "--name", ref, "busybox")
    path = _socket(box.hutch)
    daemon = box.hutch.daemon
    assert daemon is not None
    before = memory(daemon.pid)
    # Requests that find nothing running test little.
    operations = [
        (method, target)
        for method, target in _OPERATIONS
        if ref == "none"
        or not (method == "DELETE" or target.endswith(("kill", "stop", "restart", "rename")))
    ]

    @hypothesis.settings(
        max_examples=500,
        suppress_health_check=list(hypothesis.HealthCheck),
        derandomize=True,
        database=None,
    )
    @hypothesis.given(
        operation=st.sampled_from(operations),
        query=st.dictionaries(
            st.sampled_from(["path", "ref", "name", "offset", "length", "mode", "uid", "timeout"]),
            st.one_of(_ODD, st.integers().map(str)).map(lambda text: text.replace("\ud800", "?")),
            max_size=3,
        ),
        body=_BODIES,
    )
    def ask(operation: tuple[str, str], query: dict[str, str], body: str) -> None:
        method, target = operation
        target = target.replace("{ref}", quote(ref)).replace("{exec_id}", "main")
        if target.endswith("wait"):
            query = {"timeout": "0.1"}
        if target.endswith("events"):
            query = {"follow": "false"}
        status, answer = _ask(path, method, f"{target}?{urlencode(query)}", body)
        assert status < 500 or b'"internal"' not in answer, (method, target, query, body, answer)
        assert status != 500 or b'"code"' in answer, (method, target, query, body, answer)

    ask()
    assert box.run("echo", "well").text == "well"
    assert box.hutch.daemon == daemon
    assert memory(daemon.pid) - before < 40 * MIB
    made = [row["id"] for row in box.hutch.json("ps", "-a") if row["name"] != box.name]
    box.hutch.run("rm", "-f", "none", *made)
    assert b"Traceback" not in (box.hutch.home / "daemon.log").read_bytes()


@pytest.mark.parametrize(
    "raw",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET " + b"/" * 100_000 + b" HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 50_000 + b"\r\n",
        b"POST /v1/sandboxes HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999999\r\n\r\n{",
        b"POST /v1/sandboxes HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"\0" * 10_000,
    ],
)
def test_bytes_that_are_no_http(box: Box, raw: bytes) -> None:
    daemon = box.hutch.daemon
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(60)
        client.connect(_socket(box.hutch))
        answer = b""
        # The daemon may have had enough, and hang up, before it has read everything.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            client.sendall(raw)
            client.shutdown(socket.SHUT_WR)
        with contextlib.suppress(ConnectionResetError):
            while data := client.recv(65536):
                answer += data
        assert not answer.startswith(b"HTTP/1.1 5"), answer
    assert box.run("echo", "well").text == "well"
    assert box.hutch.daemon == daemon

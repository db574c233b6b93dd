"""Published ports lead into a real guest, wake it, and outlive the daemon."""

import contextlib
import hashlib
import http.client
import os
import socket
import threading
from typing import Any

import pytest

from tests.harness.hutch import Hutch
from tests.vm.resting import look
from tests.waiting import wait_until

ECHO, COUNT, HTTP, NOBODY = 7, 8, 80, 9
SERVERS = (
    "mkdir -p /www && echo from the guest >/www/index.html;"
    f"nc -ll -p {ECHO} -e cat & nc -ll -p {COUNT} -e wc -c &"
    f"httpd -p 127.0.0.1:{HTTP} -h /www; wait"
)
PUBLISHED = [part for port in (ECHO, COUNT, HTTP, NOBODY) for part in ("-p", str(port))]
LARGE = 10 << 20
PARALLEL = 20
SECONDS = 60.0


def run(hutch: Hutch, name: str, *options: str) -> None:
    hutch.run("run", "-d", "--name", name, *PUBLISHED, *options, "busybox", "sh", "-c", SERVERS)
    wait_until(lambda: get(hutch, name) is not None, what="its servers listen")


def numbers(hutch: Hutch, name: str) -> dict[int, int]:
    """Return the host's port of each of the guest's."""
    return {port["guest_port"]: port["host_port"] for port in look(hutch, name)["ports"]}


def connect(hutch: Hutch, name: str, port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", numbers(hutch, name)[port]), SECONDS)


def through(client: socket.socket, data: bytes) -> bytes:
    """Send data and its end, and return what comes back, meanwhile, to its end."""
    received = bytearray()

    def receive() -> None:
        with contextlib.suppress(OSError):  # then it is too little
            while chunk := client.recv(1 << 16):
                received.extend(chunk)

    reader = threading.Thread(target=receive)
    reader.start()
    client.sendall(data)
    client.shutdown(socket.SHUT_WR)
    reader.join()
    return bytes(received)


def echo(hutch: Hutch, name: str, data: bytes) -> bytes:
    with connect(hutch, name, ECHO) as client:
        return through(client, data)


def get(hutch: Hutch, name: str) -> bytes | None:
    """Return the page of the guest's server; None: nobody answers yet."""
    server = http.client.HTTPConnection("127.0.0.1", numbers(hutch, name)[HTTP], timeout=SECONDS)
    with contextlib.closing(server):
        try:
            server.request("GET", "/index.html")
            return server.getresponse().read()
        except (ConnectionError, http.client.HTTPException):
            return None


def refused(number: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", number), SECONDS).close()
    except ConnectionRefusedError:
        return True
    except ConnectionResetError:  # by the guest
        return False
    return False


@pytest.fixture(scope="module")
def web(_module_hutch: Hutch) -> Hutch:
    """A home in which `web` runs with its servers."""
    run(_module_hutch, "web")
    return _module_hutch


def test_what_is_sent_arrives_both_ways(web: Hutch) -> None:
    data = os.urandom(LARGE)
    answer = echo(web, "web", data)
    assert len(answer) == LARGE
    assert hashlib.sha256(answer).digest() == hashlib.sha256(data).digest()
    # The guest hears the end, and can answer to it.
    with connect(web, "web", COUNT) as client:
        assert int(through(client, data[: 1 << 20])) == 1 << 20
    assert get(web, "web") == b"from the guest\n"


def test_many_at_once(web: Hutch) -> None:
    answers: dict[int, bytes] = {}
    parts = {number: os.urandom(100_000 + number) for number in range(PARALLEL)}
    with contextlib.ExitStack() as stack:
        clients = []
        for _ in parts:  # one after the other: the guest's server lets but one or two wait
            client = stack.enter_context(connect(web, "web", ECHO))
            client.sendall(b"x")
            assert client.recv(10) == b"x"
            clients.append(client)

        def one(number: int) -> None:
            answers[number] = through(clients[number], parts[number])

        threads = [threading.Thread(target=one, args=(number,)) for number in parts]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert answers == parts


def test_a_port_where_nobody_listens_is_reset(web: Hutch) -> None:
    with pytest.raises(ConnectionResetError), connect(web, "web", NOBODY) as client:
        client.recv(1)


def test_ports_come_and_go_while_it_runs(web: Hutch) -> None:
    [line] = web.run("port", "publish", "web", str(ECHO)).text.splitlines()
    number = int(line.removeprefix("127.0.0.1:").removesuffix(f"->{ECHO}/tcp"))
    with socket.create_connection(("127.0.0.1", number), SECONDS) as client:
        client.sendall(b"x")
        assert client.recv(10) == b"x"
        taken = web.run("create", "--name", "other", "-p", f"{number}:80", "busybox")
        failure = web.run("start", "other", expect=125).stderr
        assert b"sandbox web publishes it (port_taken)" in failure, taken
        web.run("rm", "other")
        assert web.run("port", "unpublish", "web", str(number)).text == line
        with pytest.raises(ConnectionResetError):
            client.recv(1)
    assert refused(number)


def test_a_child_of_a_fork_has_ports_of_its_own(web: Hutch) -> None:
    web.run("fork", "web", "child")
    web.run("exec", "child", "sh", "-c", "echo from the child >/www/index.html")
    assert get(web, "child") == b"from the child\n"
    assert get(web, "web") == b"from the guest\n"
    mine, theirs = numbers(web, "web"), numbers(web, "child")
    assert mine.keys() == theirs.keys()
    assert not set(mine.values()) & set(theirs.values())
    web.run("rm", "-f", "child")
    assert all(refused(number) for number in theirs.values())


def rested(hutch: Hutch, state: str) -> dict[str, Any] | None:
    info = look(hutch, "box")
    return info if info["state"] == state else None


def test_connections_keep_it_awake_and_wake_it(hutch: Hutch) -> None:
    run(hutch, "box", "--idle-timeout", "1s", "--idle-action", "park")
    with connect(hutch, "box", ECHO) as client:
        client.sendall(b"1")
        assert client.recv(10) == b"1"
        # Somebody who only holds a connection uses it.
        with pytest.raises(AssertionError):
            wait_until(lambda: rested(hutch, "parked"), timeout=3.0)
        client.sendall(b"2")
        assert client.recv(10) == b"2"
    wait_until(lambda: rested(hutch, "parked"), what="it is parked")
    with connect(hutch, "box", ECHO) as client:
        client.sendall(b"3")
        assert client.recv(10) == b"3"
        hutch.run("pause", "box")  # while that keeps it from being parked
        assert rested(hutch, "paused")
        assert echo(hutch, "box", b"again") == b"again"
        client.sendall(b"4")
        assert client.recv(10) == b"4"
    # The next daemon listens where the last one did, and wakes what rests.
    wait_until(lambda: rested(hutch, "parked"), what="it is parked again")
    before = numbers(hutch, "box")
    hutch.kill_daemon()
    # It is dead when its first thread is; its files are closed with the last.
    wait_until(lambda: all(map(refused, before.values())), what="nobody listens any more")
    assert numbers(hutch, "box") == before
    assert get(hutch, "box") == b"from the guest\n"
    hutch.run("stop", "-t", "0s", "box")
    assert all(refused(number) for number in before.values())
    hutch.run("start", "box")
    assert numbers(hutch, "box") == before
    wait_until(lambda: get(hutch, "box") is not None, what="its servers listen")

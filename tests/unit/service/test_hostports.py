"""Ports of the host, with the kernel's own answers."""

import errno
import os
import resource
import socket

import pytest

from hutch.networking import PublishedPort
from hutch.service import hostports
from hutch.service.hostports import SPARE, is_spare, listen, listen_anywhere, refusal

ANY = PublishedPort(80)


def test_a_free_port_is_none_that_the_kernel_gives_out() -> None:
    ours = range(20_000, hostports._first_ephemeral())
    with listen_anywhere(ANY, ()) as listener:
        address, number = listener.getsockname()
        assert address == "127.0.0.1"
        assert number in ours or not ours
        with socket.create_connection((address, number)):
            pass


def test_ports_to_be_avoided_are(monkeypatch: pytest.MonkeyPatch) -> None:
    with listen_anywhere(ANY, range(20_000, 65_536)) as listener:
        assert listener.getsockname()[1] not in range(20_000, hostports._first_ephemeral())
    # Where there is nothing to choose from, the kernel chooses.
    monkeypatch.setattr(hostports, "_first_ephemeral", lambda: 0)
    with listen_anywhere(ANY, ()) as listener:
        assert listener.getsockname()[1] > 0


def test_what_is_taken_is_taken_once() -> None:
    with listen_anywhere(ANY, ()) as first:
        taken = PublishedPort(80, first.getsockname()[1])
        with pytest.raises(OSError, match="in use"):
            listen(taken)
    listen(taken).close()


def test_what_listens_on_ipv6_leaves_ipv4_alone() -> None:
    try:
        six = listen_anywhere(PublishedPort(80, 0, "::1"), ())
    except OSError:
        pytest.skip("this host has no IPv6")
    with six:
        assert six.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)


def refused(number: int, holder: str | None = None) -> tuple[str, str]:
    port = PublishedPort(80, 443, "::1")
    failure = refusal(port, OSError(number, os.strerror(number)), holder)
    assert failure.hint or failure.code == "no_capacity"
    return failure.code, failure.message


def test_refusals_say_why() -> None:
    taken = refused(errno.EADDRINUSE, "web")
    assert taken == ("port_taken", "port [::1]:443 is taken: sandbox web publishes it")
    code, message = refused(errno.EADDRINUSE)
    assert (code, "another program" in message) == ("port_taken", True)
    code, message = refused(errno.EACCES)
    assert (code, "privileged" in message) == ("bad_port", True)
    code, message = refused(errno.EADDRNOTAVAIL)
    assert (code, "no address ::1" in message) == ("bad_port", True)
    code, message = refused(errno.EMFILE)
    assert (code, "Too many open files" in message) == ("no_capacity", True)


@pytest.mark.parametrize(
    ("limit", "first"),
    [(20_000, 20_000 - SPARE), (1024, 768), (64, 48), (resource.RLIM_INFINITY, None)],
)
def test_the_last_descriptors_are_spare(
    monkeypatch: pytest.MonkeyPatch, limit: int, first: int | None
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda which: (limit, limit))
    if first is None:
        assert not is_spare(1 << 20)
    else:
        assert [is_spare(fd) for fd in (first - 1, first, limit - 1)] == [False, True, True]

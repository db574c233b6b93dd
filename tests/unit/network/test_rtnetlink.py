"""Interfaces, routes and neighbours, in a namespace of the test's own."""

import errno
import json
import subprocess
from ipaddress import IPv4Network
from typing import Any

import pytest

from hutch.network import rtnetlink, tap
from hutch.network.rtnetlink import Link, Netlink, NetlinkError
from tests.unit.network.netspace import in_namespace, needs_taps

pytestmark = needs_taps


def ip(*words: str) -> Any:
    shown = subprocess.run(["ip", "-json", *words], capture_output=True, check=True)
    return json.loads(shown.stdout or "[]")


def test_a_batch_does_what_the_program_ip_shows() -> None:
    def run() -> None:
        with Netlink() as netlink:
            fd = tap.make("ht7")
            links = {link.name: link for link in netlink.links()}
            assert links["ht7"] == Link(links["ht7"].index, "ht7", "", False)
            index = links["ht7"].index
            netlink.change(
                [
                    rtnetlink.set_link(
                        index, up=True, mac="52:54:00:68:75:00", mtu=1400, alias="sb_ü"
                    ),
                    rtnetlink.add_route(IPv4Network("198.18.0.2"), index, metric=17),
                    rtnetlink.set_neighbour(index, "198.18.0.2", "52:54:00:68:75:01"),
                    rtnetlink.set_link(1, up=True),
                    rtnetlink.add_route(IPv4Network("0.0.0.0/0"), 1, metric=99, local=True),
                ]
            )
            assert Link(index, "ht7", "sb_ü", True) in netlink.links()
            (shown,) = ip("link", "show", "ht7")
            assert (shown["address"], shown["mtu"]) == ("52:54:00:68:75:00", 1400)
            routes = {route["dst"]: route for route in ip("route")}
            assert (routes["198.18.0.2"]["dev"], routes["198.18.0.2"]["metric"]) == ("ht7", 17)
            assert (routes["default"]["type"], routes["default"]["dev"]) == ("local", "lo")
            (neighbour,) = ip("neigh", "show", "dev", "ht7")
            assert neighbour["lladdr"] == "52:54:00:68:75:01"
            assert neighbour["state"] == ["PERMANENT"]
            rtnetlink.remove_link(index)
            rtnetlink.remove_link(index)
            assert [link.name for link in netlink.links()] == ["lo"]
            tap.os.close(fd)

    in_namespace(run)


def test_a_refused_message_is_named_and_those_after_it_are_done() -> None:
    def run() -> None:
        with Netlink() as netlink:
            with pytest.raises(NetlinkError, match=r"route 198\.18\.0\.2/32: ") as told:
                netlink.change(
                    [
                        rtnetlink.add_route(IPv4Network("198.18.0.2"), 1),
                        rtnetlink.set_neighbour(99, "198.18.0.2", "52:54:00:68:75:01"),
                        rtnetlink.set_link(1, up=True, alias="after"),
                    ]
                )
            assert told.value.errno == errno.ENETDOWN
            assert [link.alias for link in netlink.links()] == ["after"]
            with pytest.raises(NetlinkError, match="link 99"):
                netlink.change([rtnetlink.set_link(99, up=True)])
            # What was refused leaves nothing behind that the next answer could be taken for.
            netlink.change([rtnetlink.set_link(1, up=False)])

    in_namespace(run)


def test_many_interfaces_are_listed_whole() -> None:
    def run() -> None:
        fds = [tap.make(f"ht{number}") for number in range(60)]
        with Netlink() as netlink:
            names = {link.name for link in netlink.links()}
        assert names == {"lo", *(f"ht{number}" for number in range(60))}
        for fd in fds:
            tap.os.close(fd)

    in_namespace(run)

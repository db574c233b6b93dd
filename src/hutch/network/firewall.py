"""What the namespace of all TAPs lets through: one ruleset that never changes, and its sysctls.

It holds no policy: it sends all that a guest may say to the sockets of its TAP, and drops the rest.
Packets of the namespace itself leave through sockets that are bound to a TAP, or not at all.
"""

import logging
from collections.abc import Mapping
from ipaddress import IPv4Network
from pathlib import Path
from typing import Final

from hutch import process
from hutch.errors import error
from hutch.network import rtnetlink
from hutch.network.rtnetlink import Message
from hutch.network.tap import PORT, PREFIX
from hutch.networking import GATEWAY_ADDRESS, GUEST_ADDRESS, GUEST_MAC

log = logging.getLogger(__name__)

RULES: Final = f"""
table ip hutch {{
    # Before the kernel puts fragments together: the memory for that is shared by all sandboxes.
    chain early {{
        type filter hook prerouting priority -450; policy drop;
        iifname != "{PREFIX}*" drop
        ether saddr != {GUEST_MAC} drop
        ip saddr != {GUEST_ADDRESS} drop
        ip hdrlength != 5 drop
        ip frag-off & 0x3fff != 0 drop
        ip protocol {{ tcp, udp }} accept
    }}
    # A TCP packet without a socket of its TAP falls through, and is dropped.
    chain divert {{
        type filter hook prerouting priority -150; policy drop;
        meta l4proto tcp tproxy to :{PORT} meta mark set 1 accept
        udp dport {{ 53, 123 }} meta mark set 1 accept
    }}
    chain input {{
        type filter hook input priority 0; policy drop;
        iifname "{PREFIX}*" meta mark 1 accept
    }}
    chain forward {{
        type filter hook forward priority 0; policy drop;
    }}
    chain output {{
        type filter hook output priority 0; policy drop;
        oifname "{PREFIX}*" ip daddr {GUEST_ADDRESS} meta l4proto {{ tcp, udp }} accept
    }}
}}
table arp hutch {{
    chain input {{
        type filter hook input priority 0; policy drop;
        iifname "{PREFIX}*" arp operation request arp saddr ip {GUEST_ADDRESS} \\
            arp daddr ip {GATEWAY_ADDRESS} accept
    }}
}}
"""
"""Loaded once; there is no network without it."""

RULES_IPV6: Final = """
table ip6 hutch {
    chain input {
        type filter hook prerouting priority -450; policy drop;
    }
    chain output {
        type filter hook output priority -450; policy drop;
    }
}
"""
"""For kernels that have IPv6; its sysctl turns it off, too."""

_PER_TAP: Final = "type iface_index; size 65535; flags dynamic, timeout; timeout 1m;"

RULES_FRAMES: Final = f"""
table netdev hutch {{
    set begun {{ {_PER_TAP} }}
    set asked {{ {_PER_TAP} }}
    set timed {{ {_PER_TAP} }}
    set refused {{ {_PER_TAP} }}
    chain frames {{
        ether saddr != {GUEST_MAC} drop
        meta protocol arp accept
        meta protocol != ip drop
        # More than any program wants: what a TAP may cost all others before anybody judges it.
        ip protocol tcp tcp flags & (syn | ack) == syn \
            update @begun {{ iif limit rate over 1000/second burst 2000 packets }} drop
        ip protocol udp udp dport 53 \
            update @asked {{ iif limit rate over 1000/second burst 2000 packets }} drop
        ip protocol udp udp dport 123 \
            update @timed {{ iif limit rate over 20/second burst 20 packets }} drop
        ip protocol udp udp dport != {{ 53, 123 }} goto unserved
        accept
    }}
    # Told, so that QUIC falls back to TCP at once. From here an answer goes out where the packet
    # came in; one that is routed could only guess, as all guests have the same address.
    chain unserved {{
        ip saddr != {GUEST_ADDRESS} drop
        ip frag-off & 0x3fff != 0 drop
        update @refused {{ iif limit rate over 20/second burst 20 packets }} drop
        reject with icmp type port-unreachable
    }}
}}
"""
"""For kernels that filter at the interface; each TAP gets a chain that jumps to `frames`."""

_NEEDED: Final[Mapping[str, str]] = {
    "ipv4/ip_forward": "0",
    # The source of a packet says nothing here: it is the TAP that counts.
    "ipv4/conf/all/rp_filter": "0",
    "ipv4/conf/default/rp_filter": "0",
    # The one address that is answered is chosen by the rules; the kernel's own notion, with all
    # addresses delivered here, would be of no use.
    "ipv4/conf/all/arp_ignore": "0",
    "ipv4/conf/default/arp_ignore": "0",
}
_HARDENING: Final[Mapping[str, str]] = {
    "ipv6/conf/all/disable_ipv6": "1",
    "ipv6/conf/default/disable_ipv6": "1",
    "ipv4/conf/all/accept_redirects": "0",
    "ipv4/conf/default/accept_redirects": "0",
    "ipv4/conf/all/send_redirects": "0",
    "ipv4/conf/default/send_redirects": "0",
    "ipv4/conf/all/accept_source_route": "0",
    "ipv4/conf/default/accept_source_route": "0",
    "ipv4/icmp_echo_ignore_all": "1",
    # Data in a first packet would be there before anybody has judged the connection.
    "ipv4/tcp_fastopen": "0",
}

EVERYTHING: Final = IPv4Network("0.0.0.0/0")
_ANY_LATER: Final = 0x7FFFFFFF


def sysctls(root: Path = Path("/proc/sys/net")) -> None:
    """Set the sysctls of the namespace that the calling thread is in. Raises OSError."""
    for name, value in _NEEDED.items():
        path = root / name
        if path.read_text("ascii").strip() != value:
            path.write_text(value, "ascii")
    for name, value in _HARDENING.items():
        try:
            (root / name).write_text(value, "ascii")
        except FileNotFoundError:
            continue  # a kernel without it
        except OSError as cause:
            log.warning("the sysctl net/%s cannot be set: %s", name, cause.strerror)


def routes(loopback: int) -> list[Message]:
    """Return what delivers packets to any address here, and the namespace's own to nobody.

    A packet to a guest that no TAP is meant with (an ICMP error, a reset without a socket) finds
    the loopback interface first, where the rules drop it: it must not reach whoever came first.
    """
    return [
        rtnetlink.set_link(loopback, up=True),
        rtnetlink.add_route(EVERYTHING, loopback, metric=_ANY_LATER, local=True),
        rtnetlink.add_route(IPv4Network(GUEST_ADDRESS), loopback),
    ]


async def load() -> bool:
    """Load the rules into the namespace of this process; tells whether frames are filtered, too.

    What was there of ours is replaced. Raises Missing (tool_missing), HutchError (network_missing).
    """
    if not await _refusal(RULES + RULES_IPV6 + RULES_FRAMES, "ip", "arp", "ip6", "netdev"):
        return True
    if text := await _refusal(RULES, "ip", "arp"):
        raise error(
            "network_missing",
            f"the kernel does not take the rules for sandboxes' networks: {text}",
            hint="it needs nf_tables with TPROXY (nft_tproxy) and ARP (nf_tables_arp)",
        )
    if text := await _refusal(RULES_IPV6, "ip6"):
        log.warning("no rules for IPv6: %s", text)
    if text := await _refusal(RULES_FRAMES, "netdev"):
        log.warning("no rules for frames: %s", text)
    return not text


async def _refusal(rules: str, *families: str) -> str:
    """Load rules, all of them or none; return what `nft` says against them, if anything."""
    program = process.require("nft", "nftables")
    # Made first, so that there is something to delete.
    fresh = "".join(f"table {name} hutch\ndelete table {name} hutch\n" for name in families)
    done = await process.run(
        [program, "-f", "-"], timeout=30, stdin=(fresh + rules).encode(), check=False
    )
    said = done.stderr.decode(errors="replace").strip()[:500]
    return (said or f"exit code {done.code}") if done.code else ""

"""What a policy says: a pure function of rules, names, addresses and ports.

Nothing is resolved or connected to here, and nothing waits. Deny wins over allow, allow over the
mode, and what cannot be judged is denied. All names may be given as they came, in any spelling.
"""

from collections.abc import Collection

from hutch.network.addresses import Address, AddressKind
from hutch.networking import Decision, NetworkPolicy


class Rules:
    """A policy, ready to judge. Made by `of`, never changed; it holds no more than the policy."""

    @classmethod
    def of(cls, policy: NetworkPolicy, internal: Collection[str] = ()) -> "Rules":
        """Return the rules of a policy.

        `internal` are domains that only the host's networks know: its search list and the like.
        Raises InvalidInput (bad_policy), naming the rule.
        """
        raise NotImplementedError

    def lookup(self, name: str) -> Decision:
        """Judge a DNS question. INTERNAL_NAME and NAME_NOT_FOUND are to look as if the name did
        not exist; other denials are of a rule or the mode.
        """
        raise NotImplementedError

    def connect(self, name: str | None, port: int) -> Decision:
        """Judge a connection by the name that its address was given for, before a packet leaves.

        None is a connection to a raw address: allowed says only that `address` has to be asked.
        """
        raise NotImplementedError

    def address(
        self, address: Address, kind: AddressKind, port: int, name: str | None = None
    ) -> Decision:
        """Judge one address that is about to be connected to: each candidate of `name`, or the
        raw address that the guest chose.
        """
        raise NotImplementedError

    def server_name(self, name: str | None, said: str | None, port: int) -> Decision:
        """Judge a ClientHello: `said` is its SNI, or None without one."""
        raise NotImplementedError

    def host(self, name: str | None, said: str, port: int) -> Decision:
        """Judge an HTTP request by its Host (or authority), with or without a port."""
        raise NotImplementedError

    def is_raw(self, name: str | None, port: int, address: Address | None = None) -> bool:
        """Return whether a rule allows what is not TLS on 443 nor HTTP on 80: `/tcp`.

        For a raw connection `name` is None, and `address` tells where to.
        """
        raise NotImplementedError

    def host_port(self, port: int) -> Decision:
        """Judge a connection to a port of the host's loopback, by `host.hutch`."""
        raise NotImplementedError

    def warnings(self) -> list[str]:
        """Return what in the policy opens more than it seems to, or does nothing."""
        raise NotImplementedError

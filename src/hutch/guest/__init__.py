"""The host side of the guest protocol (spec/guest-protocol.md)."""

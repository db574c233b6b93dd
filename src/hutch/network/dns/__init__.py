"""DNS as sandboxes get it: the wire format, a client of the host's resolvers, the guests' one."""

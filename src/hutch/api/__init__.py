"""The daemon's HTTP and WebSocket surface over `operations.Operations`."""

"""A gate for plain HTTP between a guest and a server that a test plays."""

from hutch.network.http import Gate, Refusal, Request
from hutch.networking import Decision, Reason

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
GET = b"GET / HTTP/1.1\r\nHost: a.com\r\n\r\n"


class Talk:
    """A gate whose judge lets requests for a.com through, and what it was asked and told."""

    def __init__(self, port: int = 80) -> None:
        self.judged: list[Request] = []
        self.refused: list[Refusal] = []
        self.gate = self.another_gate(port)

    def another_gate(self, port: int) -> Gate:
        """Return a gate for another connection with the same judge."""
        return Gate(port, self.judge, self.refused.append)

    def judge(self, request: Request) -> Decision:
        self.judged.append(request)
        if request.host.lower() == "a.com":
            return Decision(True, Reason.ALLOWED)
        return Decision(False, Reason.NOT_ALLOWED, "a.com", f"No {request.host}.", "Ask.")

    def guest(self, data: bytes, step: int | None = None) -> bytes:
        """Have the guest say it; return what went upstream then."""
        step = step or max(len(data), 1)
        said = b""
        for at in range(0, len(data), step):
            self.gate.from_guest(data[at : at + step])
            self.read_on()
            said += self.gate.for_upstream()
        return said

    def read_on(self) -> None:
        """Have the gate read all that it left for later, as the pump does."""
        while self.gate.unread:
            self.gate.read_on()

    def server(self, data: bytes, step: int | None = None) -> bytes:
        """Have the upstream say it; return what went to the guest then."""
        step = step or max(len(data), 1)
        said = b""
        for at in range(0, len(data), step):
            self.gate.from_upstream(data[at : at + step])
            self.read_on()
            said += self.gate.for_guest()
        return said

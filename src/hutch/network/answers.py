"""What a guest is answered over HTTP when its request goes nowhere: why, and what to do then."""

import json
from typing import Final

from hutch.networking import Decision, Reason

_STATUS: Final = {
    Reason.BAD_PROTOCOL: 400,
    Reason.LIMIT: 503,
    Reason.NAME_NOT_FOUND: 502,
    Reason.RESOLVE_FAILED: 502,
    Reason.UPSTREAM_REFUSED: 502,
    Reason.UPSTREAM_UNREACHABLE: 502,
    Reason.UPSTREAM_TIMEOUT: 504,
}
_DENIED = 403

_REASONS: Final = {
    400: "Bad Request",
    403: "Forbidden",
    405: "Method Not Allowed",
    417: "Expectation Failed",
    431: "Request Header Fields Too Large",
    502: "Bad Gateway",
    503: "Service Unavailable",
    504: "Gateway Timeout",
    505: "HTTP Version Not Supported",
}

# RFC 9209, 2.3: what programs that know nothing of us may know.
_PROXY_ERRORS: Final = {
    Reason.BAD_PROTOCOL: "http_request_error",
    Reason.LIMIT: "connection_limit_reached",
    Reason.NAME_NOT_FOUND: "dns_error",
    Reason.RESOLVE_FAILED: "dns_error",
    Reason.UPSTREAM_REFUSED: "connection_refused",
    Reason.UPSTREAM_UNREACHABLE: "destination_ip_unroutable",
    Reason.UPSTREAM_TIMEOUT: "connection_timeout",
}


def status_of(reason: Reason) -> int:
    """Return the status that says a reason best."""
    return _STATUS.get(reason, _DENIED)


def wants_json(accept: str) -> bool:
    """Whether of what an Accept field lists JSON comes before any text."""
    for part in accept.lower().split(","):
        kind = part.partition(";")[0].strip(" \t")
        if kind == "application/json" or kind.endswith("+json"):
            return True
        if kind.startswith("text/"):
            return False
    return False


def refusal(status: int, decision: Decision, *, as_json: bool, bodiless: bool) -> bytes:
    """Write a whole answer that refuses a request; it is the last one of its connection.

    `bodiless` leaves the body out: answers to HEAD have none.
    """
    if as_json:
        kind = "application/json"
        error = {
            "code": str(decision.reason),
            "message": decision.text,
            "rule": decision.rule,
            "hint": decision.hint,
        }
        body = json.dumps({"error": error}).encode() + b"\n"
    else:
        kind = "text/plain; charset=utf-8"
        lines = [f"Hutch refused this request: {decision.text or decision.reason}"]
        if decision.rule:
            lines.append(f"Rule: {decision.rule}")
        if decision.hint:
            lines.append(f"What to do: {decision.hint}")
        body = "\n".join([*lines, f"Reason: {decision.reason}", ""]).encode(errors="replace")
    error_type = _PROXY_ERRORS.get(decision.reason, "http_request_denied")
    if status == 502 and decision.reason is Reason.BAD_PROTOCOL:
        error_type = "http_protocol_error"
    head = (
        f"HTTP/1.1 {status} {_REASONS.get(status, 'Refused')}\r\n"
        f"Content-Type: {kind}\r\n"
        f"Content-Length: {len(body)}\r\n"
        "Cache-Control: no-store\r\n"
        f'Proxy-Status: hutch; error={error_type}; details="{decision.reason}"\r\n'
        "Connection: close\r\n\r\n"
    )
    return head.encode() + (b"" if bodiless else body)

"""The CLI's way to the daemon: starts it when needed, sends requests, gives back JSON.

A thin layer over hutch.sdk.wire; knows the shapes of spec/api.md (paths, lines of progress) but no
command. Answers stay JSON values on the hot path; `decode` makes models of them elsewhere.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from hutch.cli.quick import running_daemon
from hutch.errors import HutchError, error, from_json
from hutch.sdk.http1 import quote
from hutch.sdk.wire import Connection, Response, WebSocket

if TYPE_CHECKING:
    from hutch.cli.app import App

Json = dict[str, Any]


def sandbox_path(ref: str, *rest: str) -> str:
    """Return the path of a sandbox, or of something that belongs to it."""
    return "/".join(("/v1/sandboxes", segment(ref), *rest))


def segment(text: str) -> str:
    """Return `text` as one segment of a path. Raises InvalidInput where it cannot be one."""
    if text in ("", ".", ".."):
        raise error("bad_name", f"{text!r} is no name")
    return quote(text).replace("/", "%2F")


class Client:
    """A connection to the daemon, kept from request to request."""

    def __init__(self, app: "App") -> None:
        self._app = app
        self._connection: Connection | None = None
        self._path = ""  # of the last request

    def connect(self) -> Connection:
        """Return the connection, starting the daemon when none runs. Raises DaemonError."""
        if self._connection is None:
            self._connection = running_daemon(self._app.flags.get("home"))
        if self._connection is None:
            from hutch.sdk.start import ensure_daemon

            self._connection = Connection.connect(ensure_daemon(self._app.settings))
        return self._connection

    def close(self) -> None:
        """End the connection; the next request makes a new one."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def send(
        self,
        method: str,
        path: str,
        query: Mapping[str, Any] | None = None,
        *,
        json: Any = None,
        body: Iterable[bytes] | bytes | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Response:
        """Send a request and return the answer with its body unread. Raises what it answers."""
        self._path = path
        connection = self.connect()
        return connection.request(method, path, query, json=json, body=body, headers=headers)

    def call(
        self, method: str, path: str, query: Mapping[str, Any] | None = None, *, json: Any = None
    ) -> Any:
        """Send a request and return the JSON value it answers. Raises what it answers."""
        return self.send(method, path, query, json=json).json()

    def work(self, path: str, body: Mapping[str, Any], progress: Callable[[Json], None]) -> Any:
        """Do long work: pass each step to `progress` and return the result.

        Leaving by an exception (^C) closes the connection, which cancels the work.
        """
        response = self.send("POST", path, json=body)
        try:
            for line in response.lines():
                if "progress" in line:
                    progress(line["progress"])
                elif "error" in line:
                    raise from_json(line["error"])
                elif "result" in line:
                    return line["result"]
        finally:
            response.close()
        raise error("daemon_unreachable", "the daemon ended the work without a result")

    def lines(self, path: str, query: Mapping[str, Any]) -> Iterator[Json]:
        """Yield the JSON lines that a GET answers. Raises an error among them."""
        response = self.send("GET", path, query)
        try:
            for line in response.lines():
                if "error" in line:
                    raise from_json(line["error"])
                yield line
        finally:
            response.close()

    def websocket(self, path: str, query: Mapping[str, Any] | None = None) -> WebSocket:
        """Open a WebSocket, on a connection of its own."""
        self._path = path
        connection = self.connect()
        self._connection = None
        return connection.websocket(path, query)

    def explain(self, failure: HutchError) -> HutchError:
        """Return the failure; of a sandbox that is not found, with the name perhaps meant."""
        if failure.code == "sandbox_not_found" and self._path.startswith("/v1/sandboxes/"):
            failure.hint = self._suggestion(self._path.split("/")[3]) or failure.hint
        return failure

    def _suggestion(self, wrong: str) -> str | None:
        from difflib import get_close_matches

        try:
            names = [info["name"] for info in self.call("GET", "/v1/sandboxes", {"all": True})]
        except HutchError:
            return None  # the failure that is being explained is the one to tell
        close = get_close_matches(wrong, names, 1, 0.6)
        return f"did you mean {close[0]}? `hutch ps -a` lists all" if close else None

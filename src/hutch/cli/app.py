"""What a command finds in its context: output mode, settings, and a client of the daemon.

Settings and client are made on first use, so that `hutch --help` touches neither. On the hot path:
imports nothing.
"""

from typing import TYPE_CHECKING, Any

from hutch.errors import HutchError

if TYPE_CHECKING:
    from hutch.cli.client import Client
    from hutch.settings import Settings


class App:
    """The state of one command line: `json` output, and `flags` of `hutch` itself as text."""

    def __init__(self) -> None:
        self.json = False
        self.flags: dict[str, str] = {}
        self._settings: Settings | None = None
        self._client: Client | None = None

    @property
    def settings(self) -> "Settings":
        """The settings in force. Raises InvalidInput (bad_setting)."""
        if self._settings is None:
            from hutch.settings import load_settings

            self._settings = load_settings(self.parsed_flags())
        return self._settings

    def parsed_flags(self) -> dict[str, Any]:
        """Return the flags as values of their settings."""
        if not self.flags:
            return {}
        from hutch.settings import SETTINGS

        rows = {row.key: row for row in SETTINGS}
        return {key: rows[key].read(text, rows[key].flag) for key, text in self.flags.items()}

    @property
    def client(self) -> "Client":
        """The client of the daemon, which is started when it is first spoken to."""
        if self._client is None:
            from hutch.cli.client import Client

            self._client = Client(self)
        return self._client

    def explain(self, failure: HutchError) -> HutchError:
        """Return a failure with a better hint where the daemon can give one."""
        return failure if self._client is None else self._client.explain(failure)

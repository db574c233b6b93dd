"""What a command finds in its context: output mode, settings, and a client of the daemon.

Settings and client are made on first use, so that `hutch --help` touches neither.
"""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from hutch.cli.client import Client
    from hutch.settings import Settings


@dataclass(slots=True)
class App:
    """The state of one command line."""

    json: bool = False
    flags: dict[str, str] = field(default_factory=dict)
    """Settings given as flags of `hutch` itself, as text."""

    _settings: "Settings | None" = None
    _client: "Client | None" = None

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
        return {key: rows[key].parse(text) for key, text in self.flags.items()}

    @property
    def client(self) -> "Client":
        """The client of the daemon, which is started when it is first spoken to."""
        if self._client is None:
            from hutch.cli.client import Client

            self._client = Client(self.settings)
        return self._client


pass_app = click.make_pass_decorator(App, ensure=True)

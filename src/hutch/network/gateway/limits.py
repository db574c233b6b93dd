"""What one sandbox may have at once, and how long it may keep the gateway waiting."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Self

from hutch.errors import error


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits of each sandbox. Times are in seconds, rates in bytes a second (0: none)."""

    connections: int = 256
    lookups: int = 64
    half_open: int = 64  # connections that are being made at once
    hello_time: float = 10.0  # for a ClientHello or the head of a request
    dial_time: float = 30.0  # for all addresses of a name
    half_closed_time: float = 900.0
    rate_up: int = 0
    rate_down: int = 0

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Self:
        """Return the limits that `values` say, with defaults for the rest. Raises bad_setting."""
        defaults = cls()
        for name, value in values.items():
            default = getattr(defaults, name, None)
            if default is None or type(value) not in (int, type(default)):
                raise error("bad_setting", f"there is no limit {name} = {value!r}")
            if value < 0 or (not value and not name.startswith("rate_")):
                raise error("bad_setting", f"the limit {name} cannot be {value!r}")
        return cls(**values)


DEFAULTS: Final = Limits()

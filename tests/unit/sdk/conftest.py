"""The API's server fixtures, for its clients."""

from tests.unit.api.conftest import api, fake, served, transport

__all__ = ["api", "fake", "served", "transport"]

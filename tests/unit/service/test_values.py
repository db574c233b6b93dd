"""The values that the service and the API share are the same ones."""

from hutch.api import operations
from hutch.service import values


def test_the_api_offers_them_under_their_names() -> None:
    for name in ("LogQuery", "LogRecord", "SandboxFilter", "SessionEvent"):
        assert getattr(operations, name) is getattr(values, name)


def test_a_query_without_anything_asks_for_all_of_the_main_process() -> None:
    query = values.LogQuery()
    assert (query.exec_id, query.tail, query.follow, query.boot) == ("main", None, False, False)

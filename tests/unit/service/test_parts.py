"""Where a sandbox's files lie."""

from pathlib import Path

from hutch.service.parts import Places


def test_all_that_lasts_of_a_sandbox_is_in_one_directory() -> None:
    places = Places(Path("/home"), Path("/run/hutch"))
    sandbox = places.sandbox("sb_1")
    assert sandbox.parent == places.sandboxes
    for path in (places.disk("sb_1"), places.console("sb_1"), places.logs("sb_1")):
        assert path.parent == sandbox
    assert places.machine("sb_1") == Path("/run/hutch/sb_1")

"""Files and tunnels count as uses of the sandbox for as long as they last."""

import inspect
from collections.abc import AsyncIterator, Collection
from typing import Any

import pytest

from hutch.errors import error
from hutch.guest.base import GuestFiles, TunnelStream
from hutch.service.activity import Activity
from hutch.service.inuse import UsedFiles, UsedTunnel

ARGUMENTS: dict[str, tuple[Any, ...]] = {
    "write": ("/f", None),
    "write_tar": ("/f", None),
    "rename": ("/f", "/g"),
    "chmod": ("/f", 0o644),
    "chown": ("/f", 1, 2),
    "symlink": ("/f", "/g"),
}
METHODS = [name for name in vars(GuestFiles) if not name.startswith("_")]
STREAMS = ("list", "read", "read_tar")


class Watched:
    """Files of which each operation tells whether the sandbox was in use meanwhile."""

    def __init__(self, activity: Activity, streams: Collection[str] = STREAMS) -> None:
        self.activity = activity
        self.streams = streams
        self.asked: list[tuple[str, Any, Any]] = []
        self.fail = False

    def __getattr__(self, name: str) -> Any:
        async def once(*args: Any, **how: Any) -> bool:
            self.asked.append((name, args, how))
            if self.fail:
                raise error("path_not_found", "told to")
            return self.activity.busy

        async def stream(*args: Any, **how: Any) -> AsyncIterator[bool]:
            for _ in range(2):
                yield await once(*args, **how)

        return stream if name in self.streams else once


@pytest.mark.parametrize("name", METHODS)
async def test_every_operation_is_a_use(name: str) -> None:
    activity = Activity()
    watched: Any = Watched(activity)
    work = getattr(UsedFiles(watched, activity), name)(*ARGUMENTS.get(name, ("/f",)))
    if name in STREAMS:
        async for busy in work:
            assert busy
    else:
        result = await work
        assert result or result is None
    assert not activity.busy
    [asked, *_] = watched.asked
    assert asked[0] == name
    parameters = inspect.signature(getattr(GuestFiles, name)).parameters.values()
    defaults = {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}
    assert asked[2] == defaults


async def test_what_fails_or_is_left_is_no_use_any_more() -> None:
    activity = Activity()
    watched: Any = Watched(activity)
    files = UsedFiles(watched, activity)
    reading: Any = files.read("/f")
    await anext(reading)
    assert activity.busy
    await reading.aclose()
    assert not activity.busy
    watched.fail = True
    with pytest.raises(Exception, match="told to"):
        await files.stat("/f")
    assert not activity.busy


async def test_a_tunnel_is_a_use_until_it_is_closed() -> None:
    activity = Activity()
    watched: Any = Watched(activity, streams=())
    tunnel = UsedTunnel(watched, activity)
    for name in [name for name in vars(TunnelStream) if not name.startswith("_")]:
        assert activity.busy
        await getattr(tunnel, name)(*([b"x"] if name == "write" else []))
    assert not activity.busy

import asyncio

import pytest

from hutch.api import sockets
from hutch.api.sockets import ClientLost, first_failure
from hutch.sdk.aio.transport import Transport


def test_a_lost_client_outweighs_what_followed_from_it() -> None:
    lost, other = ClientLost(), ValueError()
    assert first_failure(ExceptionGroup("", [other, ExceptionGroup("", [lost])])) is lost
    assert first_failure(ExceptionGroup("", [ExceptionGroup("", [other])])) is other


async def test_a_client_that_says_nothing(api: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sockets, "START_TIMEOUT", 0.05)
    socket = await Transport(socket=api).websocket("/v1/sandboxes/box/exec")
    async with asyncio.timeout(60):
        message = await socket.receive()
    assert message is not None
    assert "no first message" in message.json()["error"]["message"]
    socket.close()


@pytest.mark.parametrize("text", [b"[1]", b"{", b"5"])
async def test_text_that_is_no_object(api: str, text: bytes) -> None:
    from hutch.sdk.websocket import TEXT, frame_head

    socket = await Transport(socket=api).websocket("/v1/run")
    await socket._link.write(frame_head(TEXT, len(text)), text)
    message = await socket.receive()
    assert message is not None
    assert message.json()["error"]["code"] == "bad_request"
    assert await socket.receive() is None
    assert socket.close_code == 1011
    socket.close()

"""The clock of guests: packets of RFC 4330, and nothing for whatever else is sent."""

import struct
from datetime import UTC, datetime

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hutch.network import sntp

NOW = 1_795_000_000_123_456_789
EPOCH = datetime(1900, 1, 1, tzinfo=UTC)


def request(version: int = 4, mode: int = 3, sent: bytes = b"\1\2\3\4\5\6\7\x08") -> bytes:
    return bytes([version << 3 | mode, 0, 6, 0xEC]) + bytes(36) + sent


def seconds(stamp: bytes) -> float:
    """Return a timestamp as seconds since 1970."""
    whole, part = struct.unpack("!II", stamp)
    return float(whole) - 2_208_988_800 + part / 2**32


def test_a_client_learns_the_host_s_time() -> None:
    reply = sntp.answer(request(), NOW, NOW + 5_000_000)
    assert reply is not None
    assert len(reply) == 48
    leap, version, mode = reply[0] >> 6, reply[0] >> 3 & 7, reply[0] & 7
    assert (leap, version, mode) == (0, 4, 4)
    assert 0 < reply[1] < 15, "a stratum that clients take"
    assert reply[2] == 6, "the poll is the client's"
    assert reply[24:32] == b"\1\2\3\4\5\6\7\x08", "its time of sending comes back as it was"
    assert seconds(reply[32:40]) == pytest.approx(NOW / 1e9, abs=1e-6)
    assert seconds(reply[40:48]) == pytest.approx(NOW / 1e9 + 0.005, abs=1e-6)
    assert NOW / 1e9 - 17 < seconds(reply[16:24]) <= NOW / 1e9


def test_the_bytes_of_a_known_moment() -> None:
    at = datetime(2026, 11, 22, 12, 0, 0, 500_000, tzinfo=UTC)
    reply = sntp.answer(request(), int(at.timestamp()) * 10**9 + 500_000_000)
    assert reply is not None
    since = int((at - EPOCH).total_seconds())
    assert reply[32:40] == struct.pack("!II", since, 0x80000000)


@pytest.mark.parametrize("version", [1, 2, 3, 4])
def test_old_clients_are_answered_in_their_version(version: int) -> None:
    reply = sntp.answer(request(version), NOW)
    assert reply is not None
    assert reply[0] == version << 3 | 4


def test_another_era_begins_anew() -> None:
    later = (2**32 - 2_208_988_800 + 7) * 10**9
    reply = sntp.answer(request(), later)
    assert reply is not None
    assert reply[32:36] == struct.pack("!I", 7)


def test_time_does_not_run_backwards() -> None:
    reply = sntp.answer(request(), NOW, NOW - 10**9)
    assert reply is not None
    assert reply[40:48] == reply[32:40]


def test_extensions_are_not_answered() -> None:
    assert sntp.answer(request() + bytes(20), NOW) == sntp.answer(request(), NOW)


@pytest.mark.parametrize("mode", [0, 1, 2, 4, 5, 6, 7])
def test_whoever_is_no_client_gets_nothing(mode: int) -> None:
    assert sntp.answer(request(mode=mode), NOW) is None


@pytest.mark.parametrize("packet", [b"", request()[:47], request(0), request(5), request(7)])
def test_what_is_no_request_gets_nothing(packet: bytes) -> None:
    assert sntp.answer(packet, NOW) is None


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(st.binary(max_size=80), st.integers(0, 2**63 - 1))
def test_an_answer_is_never_longer_than_what_was_asked(packet: bytes, now: int) -> None:
    reply = sntp.answer(packet, now)
    assert reply is None or (len(reply) <= len(packet) and sntp.answer(reply, now) is None)

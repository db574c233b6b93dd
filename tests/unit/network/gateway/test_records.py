import itertools

from hutch.network.gateway.records import BURST, KEPT, RATE, TEXT_LIMIT, Records, printable
from hutch.networking import Decision, NetworkLayer, NetworkRecord, Reason

DENIED = Decision(False, Reason.DENIED_BY_RULE, "example.com", "example.com is denied")
ALLOWED = Decision(True, Reason.ALLOWED)


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_records_count_up_and_are_published() -> None:
    heard: list[NetworkRecord] = []
    places: list[int] = []

    def publish(place: int, record: NetworkRecord) -> None:
        places.append(place)
        heard.append(record)

    records = Records("sb_1", publish, sequence=itertools.count(7), number=41)
    records.add(NetworkLayer.DNS, DENIED, name="example.com")
    records.add(NetworkLayer.TCP, ALLOWED, name="a.test", address="192.0.2.1", port=22)
    assert [record.number for record in heard] == [42, 43]
    assert heard[0].rule == "example.com"
    assert (heard[0].allowed, heard[0].reason) == (False, Reason.DENIED_BY_RULE)
    assert (heard[1].address, heard[1].port) == ("192.0.2.1", 22)
    assert heard[0].at.endswith("Z")
    assert places == [7, 8]
    assert list(records.since(7)) == [(8, heard[1])]
    assert list(records.since(8)) == []
    assert [record for _, record in records.since(0)] == heard
    assert records.number == 43
    assert records.denied == 1


def test_what_is_held_is_bounded() -> None:
    clock = Clock()
    records = Records("sb_1", lambda *_: None, sequence=itertools.count(1), clock=clock)
    for _ in range(KEPT + 10):
        clock.now += 1
        records.add(NetworkLayer.DNS, DENIED)
    assert next(records.since(KEPT))[0] == KEPT + 1  # as much as is wanted, from where it begins
    held = list(records.since(0))
    assert len(held) == KEPT
    assert held[-1][1].number == KEPT + 10


def test_a_flood_is_counted_and_told_of() -> None:
    clock = Clock()
    heard: list[NetworkRecord] = []
    records = Records(
        "sb_1", lambda _, record: heard.append(record), sequence=itertools.count(1), clock=clock
    )
    for _ in range(int(BURST) + 500):
        records.add(NetworkLayer.DNS, DENIED)
    assert len(heard) == BURST
    assert records.denied == BURST + 500
    clock.now += 3 / RATE
    records.add(NetworkLayer.TCP, ALLOWED)
    told, last = heard[-2:]
    assert told.reason is Reason.LIMIT
    assert "500 decisions" in told.text
    assert last.allowed
    assert [record.number for record in heard] == list(range(1, len(heard) + 1))


def test_what_guests_choose_is_made_harmless() -> None:
    heard: list[NetworkRecord] = []
    records = Records("sb_1", lambda _, record: heard.append(record), sequence=itertools.count(1))
    records.add(NetworkLayer.TLS, DENIED, name="a\x1b[2Jb", detail="x" * 5000)
    assert "\x1b" not in str(heard[0].name)
    assert len(heard[0].detail) == TEXT_LIMIT
    assert printable("plain näme") == "plain näme"

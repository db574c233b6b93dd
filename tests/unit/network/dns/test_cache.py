"""What is remembered of answers, and how much memory that takes."""

from dataclasses import replace

from hutch.network.dns.cache import Cache, CacheLimits
from hutch.network.dns.message import Code, Field, Message, Question, Record, Type
from tests.unit.network.dns.nameserver import SOA, Clock

NAME = Question("a.test", Type.TXT)


def said(*data: tuple[Field, ...], ttl: int = 60) -> Message:
    records = tuple(Record("a.test", Type.TXT, ttl, one) for one in data)
    return Message(0, NAME, response=True, answers=records)


def test_an_answer_holds_as_long_as_its_ttl() -> None:
    clock = Clock()
    cache = Cache(CacheLimits(), clock)
    cache.put(NAME, said((b"x",)))
    clock.now += 59
    assert cache.get(NAME) == said((b"x",), ttl=1)
    clock.now += 1
    assert cache.get(NAME) is None
    assert cache.size == 0


def test_failures_and_what_nobody_dates_are_not_remembered() -> None:
    cache = Cache(CacheLimits(), Clock())
    absent = Message(0, NAME, response=True, code=Code.NXDOMAIN)
    for one in (absent, said((b"x",), ttl=0), replace(said((b"x",)), code=Code.SERVFAIL)):
        cache.put(NAME, one)
        assert cache.get(NAME) is None
    cache.put(NAME, replace(absent, authority=(SOA,)))
    assert cache.get(NAME) is not None


def test_an_answer_holds_at_least_so_long() -> None:
    clock = Clock()
    cache = Cache(CacheLimits(), clock)
    absent = Message(0, NAME, response=True, code=Code.NXDOMAIN)
    for one in (absent, said(), said((b"x",), ttl=0), said((b"x",), ttl=5)):
        cache.put(NAME, one, 30)
        clock.now += 29
        kept = cache.get(NAME)
        assert kept is not None
        assert all(record.ttl == 0 for record in kept.answers)
        clock.now += 1
        assert cache.get(NAME) is None
    cache.put(NAME, replace(absent, code=Code.SERVFAIL), 30)
    assert cache.get(NAME) is None


def test_large_answers_are_not_remembered() -> None:
    cache = Cache(CacheLimits(), Clock())
    for large in (
        said((b"x" * 255,) * 80),
        said((b"x",) * 200),
        said(*[(b"x",)] * 65),
        said(*[(b"x" * 255,)] * 40),
    ):
        cache.put(NAME, large)
        assert cache.get(NAME) is None
    assert cache.size == 0


def test_all_answers_together_are_bounded() -> None:
    cache = Cache(CacheLimits(all_bytes=5000), Clock())
    for number in range(50):
        question = Question(f"n{number}.test", Type.TXT)
        cache.put(question, said((b"x" * 1000,)))
        cache.put(question, said((b"y" * 1000,)))
        assert cache.size <= 5000
    kept = [n for n in range(50) if cache.get(Question(f"n{n}.test", Type.TXT)) is not None]
    assert kept == [47, 48, 49]


def test_so_many_answers_are_remembered() -> None:
    cache = Cache(CacheLimits(answers=2), Clock())
    for number in range(3):
        cache.put(Question(f"n{number}.test", Type.TXT), said((b"x",)))
    assert cache.get(Question("n0.test", Type.TXT)) is None
    assert cache.get(Question("n2.test", Type.TXT)) is not None

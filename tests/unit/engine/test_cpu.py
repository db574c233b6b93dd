"""What QEMU says of a CPU, against a peer that plays its part by hand."""

from typing import Any

import pytest

from hutch.engine.argv import cpu_model
from hutch.engine.base import Accelerator
from hutch.engine.cpu import cpu_of
from hutch.engine.qmp import Qmp
from hutch.errors import EngineError
from hutch.models import CpuInfo
from tests.unit.engine.test_migration import Refusal, session


class Peer:
    """A QEMU that answers one command; `asked` is with what."""

    def __init__(self, answer: object) -> None:
        self.answer = answer
        self.asked: dict[str, Any] = {}

    def __call__(self, command: str, arguments: dict[str, Any], files: list[int]) -> object:
        if command == "qmp_capabilities":
            return {}
        assert command == "query-cpu-model-expansion"
        self.asked = arguments
        return self.answer


async def ask(peer: Peer, model: str = "max") -> CpuInfo:
    found: list[CpuInfo] = []

    async def use(qmp: Qmp) -> None:
        found.append(await cpu_of(qmp, model))

    await session(peer, use)
    return found[0]


def answer(**props: object) -> dict[str, object]:
    return {"model": {"name": "max", "props": props}}


async def test_what_is_switched_on_and_is_a_feature_counts_once() -> None:
    peer = Peer(
        answer(
            vendor="GenuineIntel",
            level=13,
            avx2=True,
            erms=False,
            migratable=True,
            fpu=True,
            **{"sse4.1": True, "sse4_1": True, "sse4-1": True, "x-intel-pt-auto-level": True},
        )
    )
    found = await ask(peer, "max,-erms,+avx2,pku=off")
    assert found == CpuInfo("max,-erms,+avx2,pku=off", "GenuineIntel", ["avx2", "fpu", "sse4-1"])
    model = {"name": "max", "props": {"erms": False, "avx2": True, "pku": False}}
    assert peer.asked == {"type": "full", "model": model}


@pytest.mark.parametrize("accelerator", Accelerator)
async def test_the_models_of_the_command_line_can_be_asked_for(accelerator: Accelerator) -> None:
    peer = Peer(answer(vendor="GenuineIntel"))
    assert (await ask(peer, cpu_model(accelerator))).model == cpu_model(accelerator)
    assert peer.asked["model"]["name"] in ("host", "max")


@pytest.mark.parametrize(
    "nonsense",
    [
        {},
        {"model": []},
        {"model": {}},
        {"model": {"props": [1]}},
        {"model": {"props": {}}},
        {"model": {"props": {"vendor": 1}}},
        Refusal("told to"),
    ],
)
async def test_an_answer_that_is_none(nonsense: object) -> None:
    async def use(qmp: Qmp) -> None:
        with pytest.raises(EngineError):
            await cpu_of(qmp, "max")

    await session(Peer(nonsense), use)


async def test_what_a_guest_may_have_made_of_qemu_is_bounded() -> None:
    many = {f"f{number}": True for number in range(5000)} | {"f" * 5000: True}
    found = await ask(Peer(answer(vendor="v" * 5000, **many)))
    assert len(found.vendor) <= 100
    assert len(found.features) <= 2000
    assert max(map(len, found.features)) <= 100

"""The conformance suite, over the fake and over the QEMU engine with a stand-in for QEMU."""

from collections.abc import AsyncIterator

import pytest

from hutch.engine.fake import FakeEngine
from hutch.engine.qemu import QemuEngine
from tests.unit.engine.conformance import EngineConformance
from tests.unit.engine.conftest import NewStandIn


class TestFake(EngineConformance):
    @pytest.fixture
    async def engine(self) -> AsyncIterator[FakeEngine]:
        engine = FakeEngine()
        yield engine
        assert not engine.running()
        await engine.close()


class TestQemu(EngineConformance):
    @pytest.fixture
    async def engine(self, stand_in: NewStandIn) -> QemuEngine:
        return QemuEngine(stand_in("normal"))

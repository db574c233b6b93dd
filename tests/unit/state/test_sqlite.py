"""The store: names and slots, states that are compared, migrations, and what a full disk says."""

import asyncio
import contextlib
import json
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from hutch.errors import HutchError
from hutch.models import SandboxInfo, SandboxSpec, SandboxState, to_json
from hutch.networking import PublishedPort
from hutch.state.base import LayerRow
from hutch.state.sqlite import SqliteStore, migrations

CREATED, STARTING, RUNNING = SandboxState.CREATED, SandboxState.STARTING, SandboxState.RUNNING


def info(sandbox_id: str, name: str) -> SandboxInfo:
    return SandboxInfo(
        id=sandbox_id,
        name=name,
        state=CREATED,
        image="busybox",
        image_id="sha256:00",
        command=["sh"],
        env={"A": "ü\udcff"},
        workdir="/",
        user="",
        tty=False,
        stdin=False,
        idle=False,
        cpus=1,
        memory=1,
        disk=1,
        timeout=0.0,
        auto_remove=False,
        labels={},
        hostname=name,
        created_at="2026-01-01T00:00:00.000Z",
    )


SPEC = SandboxSpec("busybox", command=["sh"])


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "deep" / "hutch.db"


@pytest.fixture
async def store(path: Path) -> AsyncIterator[SqliteStore]:
    store = SqliteStore(path)
    await store.open()
    yield store
    await store.close()


async def code_of(work: object) -> str:
    with pytest.raises(HutchError) as caught:
        await work  # type: ignore[misc]
    return caught.value.code


async def test_rows_come_back_as_they_were(store: SqliteStore, path: Path) -> None:
    row = await store.add_sandbox(SPEC, info("sb_1", "one"), slots=5)
    await store.set_machine("sb_1", {"pid": 7})
    await store.next_generation("sb_1")
    await store.close()
    again = SqliteStore(path)
    await again.open()
    (found,) = await again.sandboxes()
    assert found.info == row.info
    assert found.spec == SPEC
    assert (found.slot, found.machine, found.generation) == (0, {"pid": 7}, 1)
    assert path.stat().st_mode & 0o777 == 0o600
    await again.close()


async def test_what_is_amended_leaves_the_state_alone(store: SqliteStore) -> None:
    await store.add_sandbox(SPEC, info("sb_1", "one"), slots=5)
    ports = [PublishedPort(80, 8080), PublishedPort(81, 8081, error="taken")]
    row = await store.amend("sb_1", ports=ports)
    assert (row.info.state, row.info.ports) == (CREATED, ports)
    assert await store.sandboxes() == [row]
    assert await code_of(store.amend("sb_2", ports=[])) == "sandbox_not_found"


async def test_the_beginning_of_a_start_is_one_step(store: SqliteStore) -> None:
    await store.add_sandbox(SPEC, info("sb_1", "one"), slots=5)
    begun = await store.begin_start("sb_1", [CREATED], kernel="new")
    assert (begun.info.state, begun.info.kernel, begun.generation) == (STARTING, "new", 1)
    assert await code_of(store.begin_start("sb_1", [CREATED])) == "wrong_state"
    (found,) = await store.sandboxes()
    assert found == begun


async def test_slots_are_the_lowest_free(store: SqliteStore) -> None:
    rows = [await store.add_sandbox(SPEC, info(f"sb_{n}", f"n{n}"), slots=3) for n in range(3)]
    assert [row.slot for row in rows] == [0, 1, 2]
    full = store.add_sandbox(SPEC, info("sb_9", "n9"), slots=3)
    assert await code_of(full) == "no_capacity"
    await store.remove_sandbox("sb_1")
    await store.remove_sandbox("sb_1")
    assert (await store.add_sandbox(SPEC, info("sb_9", "n9"), slots=3)).slot == 1
    assert [row.info.id for row in await store.sandboxes()] == ["sb_0", "sb_2", "sb_9"]


async def test_names_are_unique(store: SqliteStore) -> None:
    await store.add_sandbox(SPEC, info("sb_1", "one"), slots=5)
    await store.add_sandbox(SPEC, info("sb_2", "two"), slots=5)
    assert await code_of(store.add_sandbox(SPEC, info("sb_3", "one"), slots=5)) == "name_taken"
    assert await code_of(store.rename("sb_2", "one")) == "name_taken"
    assert (await store.rename("sb_2", "three")).info.name == "three"
    assert (await store.rename("sb_2", "three")).info.name == "three"


async def test_only_one_of_two_makes_a_step(store: SqliteStore) -> None:
    await store.add_sandbox(SPEC, info("sb_1", "one"), slots=5)

    async def start() -> str:
        with contextlib.suppress(HutchError):
            await store.move("sb_1", [CREATED], STARTING)
            return "started"
        return "refused"

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(start()) for _ in range(5)]
    assert sorted(task.result() for task in tasks) == ["refused"] * 4 + ["started"]
    row = await store.move("sb_1", [STARTING], RUNNING, pid=5)
    assert (row.info.state, row.info.pid) == (RUNNING, 5)


async def test_unknown_sandboxes(store: SqliteStore) -> None:
    assert await code_of(store.move("sb_0", [CREATED], STARTING)) == "sandbox_not_found"
    assert await code_of(store.set_machine("sb_0", None)) == "sandbox_not_found"


async def test_a_cancelled_call_is_carried_out_first(store: SqliteStore, path: Path) -> None:
    blocker = sqlite3.connect(path, isolation_level=None)
    blocker.execute("BEGIN IMMEDIATE")
    adding = asyncio.timeout(0.05)
    release = asyncio.get_running_loop().call_later(0.2, blocker.rollback)
    with pytest.raises(TimeoutError):
        async with adding:
            await store.add_sandbox(SPEC, info("sb_1", "one"), slots=5)
    assert release.when() <= asyncio.get_running_loop().time()
    assert len(await store.sandboxes()) == 1
    blocker.close()


async def test_a_newer_schema_is_refused(path: Path) -> None:
    path.parent.mkdir()
    db = sqlite3.connect(path)
    db.execute("PRAGMA user_version = 999")
    db.close()
    assert await code_of(SqliteStore(path).open()) == "daemon_version"


def layer(layer_id: str, parent: str | None = None, template: str | None = None) -> LayerRow:
    return LayerRow(layer_id, parent, template, "2026-01-01T00:00:00.000Z")


async def test_the_layers_and_the_template_of_a_sandbox_are_kept(
    store: SqliteStore, path: Path
) -> None:
    await store.add_sandbox(SPEC, info("sb_1", "one"), slots=10)
    row = await store.put_layer("sb_1", layer("ly_1", template="t1"), template="t1")
    assert (row.layer, row.info.template) == ("ly_1", "t1")
    await store.put_layer("sb_1", layer("ly_2", "ly_1"), template="t1")
    await store.close()
    again = SqliteStore(path)
    await again.open()
    (row,) = await again.sandboxes()
    assert (row.layer, row.info.template) == ("ly_2", "t1")
    assert list(await again.layers()) == [layer("ly_1", template="t1"), layer("ly_2", "ly_1")]
    assert (await again.set_layer("sb_1", "ly_1")).layer == "ly_1"
    await again.remove_layer("ly_2")
    await again.remove_layer("ly_2")
    assert [row.id for row in await again.layers()] == ["ly_1"]
    await again.close()


async def test_a_sandbox_and_its_disk_come_together_or_not_at_all(store: SqliteStore) -> None:
    row = await store.add_sandbox(SPEC, info("sb_1", "one"), slots=1, layer=layer("ly_1"))
    assert row.layer == "ly_1"
    other = store.add_sandbox(SPEC, info("sb_2", "two"), slots=1, layer=layer("ly_2"))
    assert await code_of(other) == "no_capacity"
    assert await code_of(store.put_layer("sb_2", layer("ly_3"), template=None)) == (
        "sandbox_not_found"
    )
    assert [row.id for row in await store.layers()] == ["ly_1"]


async def test_records_of_the_first_schema_are_taken_over(path: Path) -> None:
    path.parent.mkdir()
    with contextlib.closing(sqlite3.connect(path)) as db, db:
        (_, first), *_ = migrations()
        db.executescript(f"{first}; PRAGMA user_version = 1;")
        values = ("sb_1", "one", 0, "stopped", json.dumps(to_json(SPEC)))
        db.execute(
            "INSERT INTO sandboxes (id, name, slot, state, spec, info) VALUES (?, ?, ?, ?, ?, ?)",
            (*values, json.dumps(to_json(info("sb_1", "one")))),
        )
    store = SqliteStore(path)
    await store.open()
    (row,) = await store.sandboxes()
    assert (row.info.name, row.info.state) == ("one", SandboxState.STOPPED)
    assert row.info.template is None
    assert row.layer == "ly_1"
    assert [row.id for row in await store.layers()] == ["ly_1"]
    await store.close()


async def test_a_file_that_is_no_database(path: Path) -> None:
    path.parent.mkdir()
    path.write_bytes(b"nonsense" * 1000)
    assert await code_of(SqliteStore(path).open()) == "internal"


async def test_a_full_disk(store: SqliteStore) -> None:
    assert store._connection is not None
    (pages,) = store._connection.execute("PRAGMA page_count").fetchone()
    store._connection.execute(f"PRAGMA max_page_count = {pages}")
    spec = SandboxSpec("busybox", labels={"big": "x" * 100_000})
    assert await code_of(store.add_sandbox(spec, info("sb_1", "one"), slots=5)) == "disk_full"
    assert list(await store.sandboxes()) == []


def test_migrations_are_numbered_without_a_hole() -> None:
    assert [number for number, _ in migrations()] == list(range(1, len(migrations()) + 1))


async def test_another_machine_and_another_disk_in_one_step(store: SqliteStore) -> None:
    await store.add_sandbox(SPEC, info("sb_1", "one"), slots=5)
    states = (CREATED, STARTING)
    for layer_id in ("ly_1", "ly_2"):
        await store.put_layer("sb_1", layer(layer_id), template=None)
    row = await store.put_back(
        "sb_1", states, RUNNING, machine={"pid": 7}, layer="ly_1", undone_to="sn_1"
    )
    assert (row.machine, row.layer, row.info.undone_to) == ({"pid": 7}, "ly_1", "sn_1")
    work = store.put_back("sb_1", states, RUNNING, machine=None, layer="ly_2")
    assert await code_of(work) == "wrong_state"
    (found,) = await store.sandboxes()
    assert (found, found.info.state) == (row, RUNNING)


async def test_a_step_for_one_machine_alone(store: SqliteStore) -> None:
    await store.add_sandbox(SPEC, info("sb_1", "one"), slots=5)
    row = await store.set_machine("sb_1", {"pid": 7, "cpus": [1, 2]})
    for vm in ({"pid": 8}, {}):
        work = store.move("sb_1", (CREATED,), STARTING, vm=vm)
        assert await code_of(work) == "wrong_state"
        work = store.put_back("sb_1", (CREATED,), RUNNING, machine=None, layer=None, vm=vm)
        assert await code_of(work) == "wrong_state"
    assert list(await store.sandboxes()) == [row]
    moved = await store.move("sb_1", (CREATED,), STARTING, vm={"pid": 7, "cpus": (1, 2)})
    assert moved.info.state is STARTING

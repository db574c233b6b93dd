from pathlib import Path

from hutch.sdk import Client
from tests.unit.api.conftest import Served


def test_a_snapshot_and_its_file(served: Served, tmp_path: Path) -> None:
    with Client(socket=served.path) as client:
        taken = client.snapshots.create("box", name="before")
        assert client.snapshots.list("box") == [taken]
        assert client.snapshots.export("before", tmp_path / "file") > 0
        assert client.snapshots.load(tmp_path / "file", name="there").name == "there"
        assert client.snapshots.remove("before").removed == [taken.id]

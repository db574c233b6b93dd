from pathlib import Path

from hutch.sdk import Client, Sandbox
from tests.unit.api.conftest import Served


def test_up_and_down(served: Served, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(bytes(range(256)) * 10_000)
    source.chmod(0o751)
    with Client(socket=served.path) as client:
        files = Sandbox.connect("box", client=client).files
        assert files.upload(source, "/copy") == 2_560_000
        assert files.stat("/copy").mode == 0o751
        assert files.download("/copy", tmp_path) == 2_560_000
    assert (tmp_path / "copy").read_bytes() == source.read_bytes()

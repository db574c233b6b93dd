import pytest

from hutch.guest.fake_files import FakeError, FakeFiles


@pytest.fixture
def files() -> FakeFiles:
    return FakeFiles()


def test_links_are_resolved_on_the_way(files: FakeFiles) -> None:
    files.mkdir({"path": b"/data/d"})
    files.symlink({"target": b"d", "path": b"/data/l"})
    files.symlink({"target": b"/data/l", "path": b"/tmp/m"})
    assert files.resolve(b"/tmp/m/new") == "/data/d/new"
    assert files.resolve(b"/tmp/m", follow=False) == "/tmp/m"


def test_a_loop_of_links(files: FakeFiles) -> None:
    files.symlink({"target": b"/tmp/b", "path": b"/tmp/a"})
    files.symlink({"target": b"/tmp/a", "path": b"/tmp/b"})
    with pytest.raises(FakeError, match="loop"):
        files.get(b"/tmp/a")


def test_a_recursive_owner(files: FakeFiles) -> None:
    files.mkdir({"path": b"/data/a/b", "parents": True})
    files.chown({"path": b"/data/a", "uid": 5, "gid": 6, "recursive": True})
    assert (files.nodes["/data/a/b"].uid, files.nodes["/data/a/b"].gid) == (5, 6)


@pytest.mark.parametrize("path", [b"relative", 7])
def test_paths_that_cannot_be(files: FakeFiles, path: object) -> None:
    with pytest.raises(FakeError, match="bad_request"):
        files.resolve(path)


def test_rubbish_is_no_tar_stream(files: FakeFiles) -> None:
    with pytest.raises(FakeError, match="bad_request"):
        files.write_tar({"path": b"/data"}, b"x" * 600)

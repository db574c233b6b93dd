"""Files in and out of a real machine: `hutch cp`, upload, download, and the SDK's files."""

import hashlib
import io
import os
import stat
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hutch import errors
from hutch.sdk import Client, Sandbox
from hutch.settings import load_settings
from tests.harness.hutch import Hutch
from tests.vm.conftest import Box
from tests.vm.streams import memory
from tests.waiting import wait_until

MIB = 1 << 20


@pytest.fixture
def sandbox(box: Box) -> Iterator[Sandbox]:
    """The shared sandbox as the SDK sees it."""
    with Client(load_settings(env=box.hutch.env)) as client:
        yield Sandbox.connect(box.name, client=client)


@pytest.fixture
def place(box: Box, request: pytest.FixtureRequest) -> Iterator[str]:
    """A new directory in the sandbox."""
    path = f"/root/{request.node.name.partition('[')[0]}"
    box.run("mkdir", path)
    yield path
    box.run("rm", "-rf", path)


def cp(box: Box, *args: str, **how: Any) -> None:
    box.hutch.run("cp", *args, **how)


def listing(top: Path) -> dict[bytes, tuple[object, ...]]:
    """Describe every entry below a directory: type, mode, content or target."""
    found: dict[bytes, tuple[object, ...]] = {}
    for directory, names, files in os.walk(os.fsencode(top)):
        for name in (*names, *files):
            path = os.path.join(directory, name)
            info = os.lstat(path)
            content: object = None
            if stat.S_ISREG(info.st_mode):
                content = Path(os.fsdecode(path)).read_bytes()
            elif stat.S_ISLNK(info.st_mode):
                content = os.readlink(path)
            kind = (stat.S_IFMT(info.st_mode), stat.S_IMODE(info.st_mode))
            found[os.path.relpath(path, os.fsencode(top))] = (*kind, content, int(info.st_mtime))
    return found


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A tree with one of everything that a user may copy."""
    top = tmp_path / "tree"
    (top / "deep/er/still").mkdir(parents=True)
    (top / "empty").mkdir(mode=0o700)
    (top / "plain").write_bytes(b"plain\n")
    (top / "nothing").write_bytes(b"")
    (top / "run.sh").write_bytes(b"#!/bin/sh\necho ran\n")
    (top / "run.sh").chmod(0o755)
    (top / "private").write_bytes(b"x" * 70_000)
    (top / "private").chmod(0o600)
    (top / "deep/er/still/file").write_bytes(os.urandom(3 * MIB + 1))
    (top / "to-plain").symlink_to("plain")
    (top / "dangling").symlink_to("/nowhere/at all")
    (top / "deep/up").symlink_to("../..")
    os.link(top / "plain", top / "same")
    for name in (b"\xff\xfe not utf-8", "ümläut".encode(), b"new\nline", b"-dash", b"a" * 255):
        Path(os.fsdecode(os.fsencode(top) + b"/" + name)).write_bytes(name)
    return top


def test_a_tree_there_and_back(box: Box, place: str, tree: Path, tmp_path: Path) -> None:
    cp(box, str(tree), f"{box.name}:{place}/copy")
    assert box.sh(f"{place}/copy/run.sh").text == "ran"
    assert box.sh(f"stat -c %i {place}/copy/plain {place}/copy/same | uniq | wc -l").text == "1"
    cp(box, f"{box.name}:{place}/copy", str(tmp_path / "back"))
    assert listing(tmp_path / "back") == listing(tree)
    assert (tmp_path / "back/plain").samefile(tmp_path / "back/same")


def test_where_a_copy_goes(box: Box, place: str, tree: Path, tmp_path: Path) -> None:
    target = f"{box.name}:{place}"
    cp(box, str(tree / "plain"), target)  # into a directory
    cp(box, str(tree / "plain"), f"{target}/named")
    cp(box, str(tree), target)
    cp(box, f"{tree}/.", f"{target}/new")
    shown = box.sh(f"cd {place}; ls -d plain named tree tree/plain new new/plain").text
    assert shown.split() == ["named", "new", "new/plain", "plain", "tree", "tree/plain"]
    (tmp_path / "here").mkdir()
    cp(box, f"{target}/tree", str(tmp_path / "here"))
    cp(box, f"{target}/tree/.", str(tmp_path / "flat"))
    cp(box, f"{target}/named", str(tmp_path / "here/file"))
    assert (tmp_path / "here/tree/plain").read_bytes() == b"plain\n"
    assert (tmp_path / "flat/plain").read_bytes() == b"plain\n"
    assert (tmp_path / "here/file").read_bytes() == b"plain\n"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files away")
def test_owners_with_a(box: Box, place: str, tmp_path: Path) -> None:
    source = tmp_path / "own"
    source.mkdir()
    (source / "file").write_bytes(b"x")
    os.chown(source / "file", 1234, 5678)
    (source / "setuid").write_bytes(b"x")
    (source / "setuid").chmod(0o4755)
    cp(box, str(source), f"{box.name}:{place}/plain")
    cp(box, "-a", str(source), f"{box.name}:{place}/kept")
    shown = box.sh(f"cd {place}; stat -c '%u:%g %a' plain/file kept/file plain/setuid kept/setuid")
    assert shown.text.splitlines() == ["0:0 644", "1234:5678 644", "0:0 755", "0:0 4755"]
    cp(box, "-a", f"{box.name}:{place}/kept", str(tmp_path / "back"))
    back = (tmp_path / "back/file").stat()
    assert (back.st_uid, back.st_gid) == (1234, 5678)
    assert stat.S_IMODE((tmp_path / "back/setuid").stat().st_mode) == 0o4755


def test_a_hundred_megabytes_there_and_back(box: Box, place: str, tmp_path: Path) -> None:
    source = tmp_path / "big"
    digest = hashlib.sha256()
    with open(source, "wb") as file:
        for _ in range(100):
            part = os.urandom(MIB)
            digest.update(part)
            file.write(part)
    daemon = box.hutch.daemon
    assert daemon is not None
    before = memory(daemon.pid)
    cp(box, str(source), f"{box.name}:{place}/big")
    assert box.sh(f"sha256sum {place}/big").text.split()[0] == digest.hexdigest()
    cp(box, f"{box.name}:{place}/big", str(tmp_path / "back"))
    assert memory(daemon.pid) - before < 64 * MIB
    with open(tmp_path / "back", "rb") as back:
        assert hashlib.file_digest(back, "sha256").hexdigest() == digest.hexdigest()


def test_tar_on_stdin_and_stdout(box: Box, place: str, tree: Path, tmp_path: Path) -> None:
    packed = subprocess.run(["tar", "c", "-C", tree, "."], capture_output=True, check=True).stdout
    cp(box, "-", f"{box.name}:{place}", stdin=packed)
    assert box.sh(f"cat {place}/plain").text == "plain"
    done = box.hutch.run("cp", f"{box.name}:{place}", "-")
    (tmp_path / "back").mkdir()
    subprocess.run(
        ["tar", "x", "--strip-components=1", "-C", tmp_path / "back"], input=done.stdout, check=True
    )
    assert listing(tmp_path / "back") == listing(tree)


def test_between_sandboxes(box: Box, shared: Hutch, place: str, tree: Path, tmp_path: Path) -> None:
    cp(box, str(tree), f"{box.name}:{place}/a")
    cp(box, f"{box.name}:{place}/a", f"{box.name}:{place}/b")
    cp(box, f"{box.name}:{place}/b", str(tmp_path / "back"))
    assert listing(tmp_path / "back") == listing(tree)


def test_links_are_followed_on_demand(box: Box, place: str, tree: Path) -> None:
    cp(box, str(tree / "to-plain"), f"{box.name}:{place}/link")
    cp(box, "-L", str(tree / "to-plain"), f"{box.name}:{place}/file")
    assert box.sh(f"cd {place}; readlink link; cat file").text == "plain\nplain"


@pytest.mark.parametrize(
    ("source", "target", "code"),
    [
        ("box:/no/such", "OUT", "path_not_found"),
        ("OUT/none", "box:/root", "path_not_found"),
        ("TREE/plain", "box:/no/such/dir/x", "path_not_found"),
        ("TREE/plain", "nobody:/root", "sandbox_not_found"),
        ("TREE", "box:/etc/passwd", None),
        ("TREE/plain", "OUT/other", None),
    ],
)
def test_what_cannot_be_copied(
    box: Box, tree: Path, tmp_path: Path, source: str, target: str, code: str | None
) -> None:
    names = [
        text.replace("TREE", str(tree)).replace("OUT", str(tmp_path / "out"))
        for text in (source, target)
    ]
    done = box.hutch.run("--json", "cp", *names, expect=None)
    assert done.code in (2, 125), done
    assert code is None or done.json["error"]["code"] == code
    assert not (tmp_path / "out").exists()


def test_an_archive_with_tricks_stays_in_its_place(box: Box, place: str) -> None:
    """Names that climb, and links that lead out and are then written through."""
    body = io.BytesIO()
    with tarfile.open(fileobj=body, mode="w") as archive:

        def add(name: str, data: bytes = b"", **fields: object) -> None:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            for key, value in fields.items():
                setattr(info, key, value)
            archive.addfile(info, io.BytesIO(data))

        add("good", b"good")
        add("out", type=tarfile.SYMTYPE, linkname="/etc")
        add("out/climbed", b"bad")
        add("/etc/absolute", b"bad")
        add("../climbed", b"bad")
        add("sub/../../climbed", b"bad")
        add("hard", type=tarfile.LNKTYPE, linkname="../../etc/passwd")
    box.sh("md5sum /etc/passwd > /root/before")
    done = box.hutch.run("cp", "-", f"{box.name}:{place}", stdin=body.getvalue(), expect=None)
    assert done.code in (0, 125)
    box.run("md5sum", "-c", "/root/before")
    shown = box.sh("ls /etc/climbed /etc/absolute /root/climbed /climbed 2>/dev/null", expect=None)
    assert shown.stdout == b""


def test_a_hostile_sandbox_writes_only_where_it_was_asked_to(
    box: Box, place: str, tmp_path: Path
) -> None:
    """A tree that changes while it is read cannot lead out of the directory on the host."""
    outside = tmp_path / "outside"
    outside.mkdir()
    target = tmp_path / "in"
    target.mkdir()
    (target / "d").symlink_to(outside)
    box.sh(f"mkdir -p {place}/d; echo bad > {place}/d/file")
    box.hutch.run("cp", f"{box.name}:{place}/.", str(target), expect=None)
    assert list(outside.iterdir()) == []


def test_a_full_disk_of_the_guest(box: Box, shared: Hutch, tmp_path: Path) -> None:
    shared.run("run", "-d", "--idle", "--name", "small", "--disk", "64m", "busybox")
    big = tmp_path / "big"
    with open(big, "wb") as file:
        file.truncate(200 * MIB)
        file.seek(100 * MIB)
        file.write(os.urandom(MIB))
    done = shared.run("--json", "cp", str(big), "small:/root/big", expect=125)
    failure = done.json["error"]
    assert failure["code"] == "guest_refused"
    assert failure["details"]["guest_code"] == "no_space"
    assert "--disk" in failure["hint"]
    # Nothing is left of it, and the sandbox works on.
    assert shared.run("exec", "small", "sh", "-c", "ls -A /root").text == ""
    shared.run("exec", "small", "sh", "-c", "echo works > /root/small && cat /root/small")
    shared.run("rm", "-f", "small")


def test_upload_and_download(box: Box, place: str, tree: Path, tmp_path: Path) -> None:
    box.hutch.run("upload", "-d", place, box.name, str(tree / "plain"), str(tree / "deep"))
    assert box.sh(f"ls {place}").text.split() == ["deep", "plain"]
    box.hutch.run(
        "download", "-d", str(tmp_path / "got"), box.name, f"{place}/deep", f"{place}/plain"
    )
    assert listing(tmp_path / "got/deep") == listing(tree / "deep")
    assert (tmp_path / "got/plain").read_bytes() == b"plain\n"


def test_a_broken_transfer_changes_nothing(box: Box, place: str, tmp_path: Path) -> None:
    box.sh(f"echo before > {place}/file")
    process = box.hutch.start("cp", "-", f"{box.name}:{place}")
    info = tarfile.TarInfo("file")
    info.size = 50 * MIB
    process.stdin.write(info.tobuf() + bytes(5 * MIB))
    process.stdin.flush()
    process.kill()
    process.wait()
    assert box.sh(f"cat {place}/file").text == "before"
    wait_until(lambda: box.sh(f"ls -A {place}").text == "file", what="the part is removed")


def test_files_of_the_sdk(sandbox: Sandbox, place: str) -> None:
    files = sandbox.files
    assert files.write(f"{place}/a/b/text", "grüße") == 7
    assert files.read(f"{place}/a/b/text") == "grüße"
    assert files.read_bytes(f"{place}/a/b/text", offset=2, length=2) == "ü".encode()
    files.write(f"{place}/a/b/text", b"+more", append=True)
    assert files.read(f"{place}/a/b/text") == "grüße+more"
    with pytest.raises(errors.HutchError, match="exist"):
        files.write(f"{place}/a/b/text", b"", exclusive=True)
    files.write(f"{place}/exe", b"#!/bin/sh\necho yes\n", mode=0o755, uid=5, gid=6)
    info = files.stat(f"{place}/exe")
    assert (info.mode & 0o7777, info.uid, info.gid, info.size) == (0o755, 5, 6, 19)
    assert sandbox.commands.run([f"{place}/exe"]).stdout == "yes\n"
    files.symlink("exe", f"{place}/link")
    assert files.stat(f"{place}/link", follow=False).target == "exe"
    files.chmod(f"{place}/exe", 0o600)
    files.chown(f"{place}/exe", 9, 9)
    files.rename(f"{place}/exe", f"{place}/a/moved")
    files.mkdir(f"{place}/x/y/z")
    names = [entry.name for entry in files.list(place)]
    assert names == ["a", "link", "x"]
    with pytest.raises(errors.HutchError, match="empty"):
        files.remove(f"{place}/x")
    files.remove(f"{place}/x", recursive=True)
    assert not files.exists(f"{place}/x")
    assert files.stat(f"{place}/a/moved").uid == 9
    for act in (files.read, files.stat, files.list, files.remove):
        with pytest.raises(errors.NotFound, match="none"):
            act(f"{place}/none")


def test_a_directory_of_thousands(sandbox: Sandbox, place: str, box: Box) -> None:
    box.sh(f"cd {place}; for i in $(seq 5000); do : > file-with-a-name-of-some-length-$i; done")
    assert len(sandbox.files.list(place)) == 5000


def test_files_with_holes(box: Box, place: str, tmp_path: Path) -> None:
    box.sh(f"truncate -s 200M {place}/holes; echo end >> {place}/holes")
    box.hutch.run("cp", f"{box.name}:{place}/holes", str(tmp_path / "holes"))
    assert (tmp_path / "holes").stat().st_size == 200 * MIB + 4
    with open(tmp_path / "holes", "rb") as file:
        file.seek(-4, os.SEEK_END)
        assert file.read() == b"end\n"

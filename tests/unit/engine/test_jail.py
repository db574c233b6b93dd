import os
import socket
import stat
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from hutch.engine import jail
from hutch.engine.base import Accelerator, MachineSpec
from hutch.errors import EngineError
from hutch.process import spawn
from tests.unit.descriptors import descriptors

NewSpec = Callable[[str], MachineSpec]


@pytest.fixture(autouse=True)
def no_descriptor_is_left() -> object:
    before = descriptors()
    yield
    assert descriptors() == before


def test_our_ends_are_connected_before_qemu_exists(new_spec: NewSpec) -> None:
    spec = new_spec("a")
    with jail.prepare(spec) as handover:
        with socket.socket(fileno=os.dup(handover.fds.console)) as server:
            accepted, _ = server.accept()
        accepted.sendall(b"first byte")
        assert handover.console.recv(100) == b"first byte"
        accepted.close()
    assert stat.S_IMODE(spec.directory.stat().st_mode) == 0o700
    assert {path.name for path in spec.directory.iterdir()} == set(jail.SOCKETS)
    handover.qmp.close()
    handover.console.close()


def test_descriptors_carry_the_rights_they_need(new_spec: NewSpec) -> None:
    with jail.prepare(new_spec("a")) as handover:
        (root, overlay), fds = handover.fds.drives, handover.fds
        ways = [(root.image, False), (overlay.image, True), (overlay.twin, False)]
        for fd, writable in [*ways, (overlay.backing, False)]:
            assert fd is not None
            flags = int(Path(f"/proc/self/fdinfo/{fd}").read_text().split()[3], 8)
            assert (flags & os.O_ACCMODE == os.O_RDWR) is writable
        expected = {fds.kernel, fds.initramfs, fds.qmp, fds.console, fds.agent}
        expected |= {root.image, overlay.image, overlay.twin, overlay.backing}
        assert set(handover.inherited) == expected
    handover.qmp.close()
    handover.console.close()


def test_a_tap_is_handed_on_and_stays_its_owners(new_spec: NewSpec) -> None:
    reader, writer = os.pipe()
    with jail.prepare(replace(new_spec("a"), tap=reader)) as handover:
        assert handover.fds.tap == reader
        assert reader in handover.inherited
    handover.qmp.close()
    handover.console.close()
    os.close(reader)
    os.close(writer)


def test_a_clone_is_handed_no_kernel_but_memory_and_layers(
    new_spec: NewSpec, short_tmp: Path
) -> None:
    spec, layer = new_spec("a"), short_tmp / "template.qcow2"
    layer.touch(0o600)
    overlay = replace(spec.drives[1], layers=[layer])
    spec = replace(spec, drives=[spec.drives[0], overlay])
    spec.boot.kernel.unlink()
    with jail.prepare(spec, memory=0, incoming=True) as handover:
        fds = handover.fds
        assert (fds.kernel, fds.initramfs, fds.memory) == (None, None, 0)
        [fd] = fds.drives[1].layers
        assert os.readlink(f"/proc/self/fd/{fd}") == str(layer)
        flags = int(Path(f"/proc/self/fdinfo/{fd}").read_text().split()[3], 8)
        assert flags & os.O_ACCMODE == os.O_RDONLY
        assert {fd, 0} < set(handover.inherited)
    os.fstat(0)  # still its owner's
    handover.qmp.close()
    handover.console.close()


def test_nothing_is_left_when_the_block_raises(new_spec: NewSpec) -> None:
    with pytest.raises(KeyError), jail.prepare(new_spec("a")):
        raise KeyError
    assert not new_spec("a").directory.exists()


def test_a_directory_of_others_stays(new_spec: NewSpec) -> None:
    spec = new_spec("a")
    spec.directory.mkdir(parents=True)
    with pytest.raises(KeyError), jail.prepare(spec):
        raise KeyError
    assert not list(spec.directory.iterdir())


def test_a_directory_that_cannot_be_made(new_spec: NewSpec) -> None:
    spec = new_spec("a")
    spec = replace(spec, directory=spec.boot.kernel / "below-a-file")
    with pytest.raises(EngineError, match="below-a-file cannot be made"), jail.prepare(spec):
        pass


@pytest.mark.parametrize("what", ["kernel", "initramfs"])
def test_a_missing_boot_file_is_named(new_spec: NewSpec, what: str) -> None:
    spec = new_spec("a")
    spec = replace(spec, boot=replace(spec.boot, **{what: Path("/no/such/file")}))
    with pytest.raises(EngineError, match=f"the {what} /no/such/file"), jail.prepare(spec):
        pass


def test_a_file_that_the_user_may_not_read_is_copied(new_spec: NewSpec) -> None:
    spec = replace(new_spec("a"), uid=2_000_000)
    spec.boot.kernel.chmod(0o600)
    spec.boot.initramfs.chmod(0o644)
    with jail.prepare(spec) as handover:
        kernel = f"/proc/self/fd/{handover.fds.kernel}"
        assert os.readlink(kernel).startswith("/memfd:")
        assert Path(kernel).read_bytes() == spec.boot.kernel.read_bytes()
        assert os.fstat(handover.fds.kernel).st_mode & 0o777 == 0o444
        assert os.readlink(f"/proc/self/fd/{handover.fds.initramfs}") == str(spec.boot.initramfs)
    handover.qmp.close()
    handover.console.close()


def test_identity(short_tmp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    device = short_tmp / "kvm"
    device.touch()
    os.chmod(device, 0o660)
    monkeypatch.setattr(jail, "KVM_DEVICE", device)
    assert jail.identity(None, Accelerator.KVM) == (None, None)
    assert jail.identity(7, Accelerator.TCG) == (7, 7)
    if os.geteuid() == 0:
        # A device of the group root is no reason to give a VM that group.
        assert jail.identity(7, Accelerator.KVM) == (7, 7)
        os.chown(device, 0, 1234)
    group = device.stat().st_gid
    assert jail.identity(7, Accelerator.KVM) == (7, group)
    device.chmod(0o600)
    assert jail.identity(7, Accelerator.KVM) == (7, 7)


def test_a_confined_process_leaves_no_core_and_goes_first() -> None:
    child = spawn(["sleep", "600"])
    try:
        jail.confine(child.pid, None)
        limits = Path(f"/proc/{child.pid}/limits").read_text("ascii")
        hard = {line[:26].strip(): line[26:].split()[1] for line in limits.splitlines()[1:]}
        assert hard["Max core file size"] == "0"
        assert int(hard["Max open files"]) <= jail.OPEN_FILES
        score = Path(f"/proc/{child.pid}/oom_score_adj").read_text("ascii")
        assert int(score) == jail.OOM_SCORE
    finally:
        child.kill()
        child.wait()
    jail.confine(child.pid, None)  # one that has gone is no error

"""ELF kernels out of bzImages."""

import pytest

from hutch.errors import HutchError
from hutch.images.vmlinux import extract, version
from tests.unit.images.kernels import COMPRESSORS, VERSION, vmlinux, vmlinuz


@pytest.mark.parametrize("how", list(COMPRESSORS))
def test_every_compression(how: str) -> None:
    elf = vmlinux() + bytes(9 << 20)  # more than one lz4 block
    assert extract(vmlinuz(elf, how)) == elf


def test_an_elf_kernel_is_taken_as_it_is() -> None:
    assert extract(vmlinux()) == vmlinux()
    assert version(vmlinux()) == VERSION


@pytest.mark.parametrize(
    ("image", "part"),
    [
        (b"", "neither"),
        (b"#!/bin/sh", "neither"),
        (bytes(4096), "neither"),
        (vmlinux(pvh=False), "PVH"),
        (vmlinuz(b"no elf" * 100), "no ELF"),
        (vmlinux()[:70], "damaged"),
        (vmlinux()[:4], "damaged"),
    ],
)
def test_what_is_no_kernel(image: bytes, part: str) -> None:
    with pytest.raises(HutchError, match=part) as caught:
        extract(image)
    assert caught.value.code == "bad_image"


@pytest.mark.parametrize("how", list(COMPRESSORS))
def test_damage_is_found(how: str) -> None:
    image = bytearray(vmlinuz(vmlinux() + bytes(100_000), how))
    with pytest.raises(HutchError):
        extract(bytes(image[:1700]))
    image[1640:1700] = b"\xaa" * 60
    with pytest.raises(HutchError):
        extract(bytes(image))


def test_a_kernel_without_a_version() -> None:
    with pytest.raises(HutchError):
        version(b"\x7fELF nothing")

"""Kernels, modules and packages made for tests: the least that has the right shape."""

import bz2
import gzip
import io
import lzma
import struct
import tarfile
from collections.abc import Mapping
from pathlib import Path

import lz4.block
import zstandard

VERSION = "6.6.6-test"


def vmlinux(version: str = VERSION, *, pvh: bool = True) -> bytes:
    """A 64-bit ELF file with a PVH note and a version."""
    note = struct.pack("<III", 4, 8, 18 if pvh else 1) + b"Xen\0" + bytes(8)
    other = struct.pack("<III", 4, 3, 7) + b"GNU\0" + b"abc\0"
    notes = other + note
    text = f"Linux version {version} (test@test) #1".encode() + bytes(5000)
    header = b"\x7fELF\x02\x01\x01".ljust(16, b"\0") + struct.pack(
        "<HHIQQQIHHHHHH", 2, 62, 1, 0, 64, 0, 0, 64, 56, 1, 0, 0, 0
    )
    program = struct.pack("<IIQQQQQQ", 4, 4, 120, 0, 0, len(notes), len(notes), 4)
    return header + program + notes + text


def lz4_legacy(body: bytes) -> bytes:
    out = b"\x02\x21\x4c\x18"
    for at in range(0, len(body), 8 << 20):
        block = lz4.block.compress(body[at : at + (8 << 20)], store_size=False)
        out += struct.pack("<I", len(block)) + block
    return out


COMPRESSORS = {
    "gzip": gzip.compress,
    "xz": lambda body: lzma.compress(body, check=lzma.CHECK_CRC32),
    "bzip2": bz2.compress,
    "zstd": lambda body: zstandard.ZstdCompressor().compress(body),
    "lz4": lz4_legacy,
}


def vmlinuz(elf: bytes, how: str = "zstd") -> bytes:
    """A bzImage around a kernel."""
    payload = COMPRESSORS[how](elf)
    if how != "gzip":  # whose own end says the size
        payload += struct.pack("<I", len(elf))
    head = bytearray(3 * 512)
    head[0x1F1] = 2
    head[0x202:0x206] = b"HdrS"
    struct.pack_into("<II", head, 0x248, 100, len(payload))
    return bytes(head) + bytes(100) + payload + bytes(50)


def module(depends: str = "", **fields: str) -> bytes:
    """A 64-bit ELF file with a .modinfo section."""
    info = b"".join(f"{k}={v}".encode() + b"\0" for k, v in {"depends": depends, **fields}.items())
    strings = b"\0.modinfo\0.shstrtab\0"
    body = info + strings
    header = b"\x7fELF\x02\x01\x01".ljust(16, b"\0") + struct.pack(
        "<HHIQQQIHHHHHH", 1, 62, 1, 0, 0, 64 + len(body), 0, 64, 0, 0, 64, 3, 2
    )
    sections = bytes(64)
    sections += struct.pack("<IIQQQQIIQQ", 1, 1, 0, 0, 64, len(info), 0, 0, 1, 0)
    sections += struct.pack("<IIQQQQIIQQ", 10, 3, 0, 0, 64 + len(info), len(strings), 0, 0, 1, 0)
    return header + body + sections


def module_tree(directory: Path, modules: Mapping[str, bytes], builtin: str = "") -> Path:
    """Write a /lib/modules/<version> directory; names are files relative to kernel/."""
    for name, body in modules.items():
        path = directory / "kernel" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(body)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "modules.builtin").write_text(builtin)
    return directory


def package(path: Path, files: Mapping[str, bytes], how: str = "xz") -> Path:
    """Write a Debian package."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, body in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(body)
            archive.addfile(info, io.BytesIO(body))
    suffix = {"xz": ".xz", "zstd": ".zst", "gzip": ".gz", "": ""}[how]
    data = COMPRESSORS[how](out.getvalue()) if how else out.getvalue()
    parts = {"debian-binary": b"2.0\n", "control.tar.xz": b"odd", f"data.tar{suffix}": data}
    body = b"!<arch>\n"
    for name, part in parts.items():
        body += f"{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(part):<10}".encode() + b"`\n" + part
        body += b"\n" * (len(part) % 2)
    path.write_bytes(body)
    return path

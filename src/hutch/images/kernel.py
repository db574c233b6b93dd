"""The kernel store: kernels with their modules, each with an initramfs that is made when it is
needed.

Below `$HUTCH_HOME/kernels`: a directory per kernel (`vmlinux`, `modules/`, `kernel.json`,
`initramfs-<key>.cpio`) and the file `active`. A kernel is put together beside its place and renamed
into it.
"""

import contextlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from hutch.content import KernelInfo
from hutch.errors import HutchError, error
from hutch.images import deb, initramfs, rootfs, vmlinux
from hutch.images.agent import agent_binary
from hutch.images.base import Kernel, Report
from hutch.images.config import bad_image
from hutch.images.flight import Flights
from hutch.images.layout import write_atomic
from hutch.images.modules import BOOT, EXTRA, FILESYSTEMS, Module, ModuleTree
from hutch.models import Progress, Removed
from hutch.settings import Settings
from hutch.tasks import in_thread, settle_in_thread

# Cloud kernels have few modules and quick boots; the last is what every Debian has.
_PACKAGES = ("linux-image-cloud-amd64", "linux-image-virtual", "linux-image-amd64")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+~-]{0,127}")
_WANTED = re.compile(
    r"boot/vmlinu[xz]-.+|(?:usr/)?lib/modules/[^/]+/(?:vmlinuz|modules\.builtin|kernel/.+\.ko(?:\.\w+)?)"
)
_HOSTS = ("/boot/vmlinuz-{release}", "/lib/modules/{release}")
_KEPT_INITRAMFS = 3
_FILE_LIMIT = 512 << 20
_WAYS = (
    "give Hutch one: `hutch kernel pull` (needs apt), `hutch kernel import VMLINUZ --modules DIR`, "
    "or install a kernel on this host (`apt-get install linux-image-cloud-amd64`)"
)


class KernelStore:
    """Implements `hutch.images.base.Kernels` on a directory."""

    def __init__(self, home: Path, settings: Settings) -> None:
        self._settings = settings
        self._root = home / "kernels"
        self._images = home / "images" / "rootfs"
        self._flights = Flights()
        self._known: dict[str, tuple[tuple[object, ...], Kernel]] = {}
        self._builds: str | None = None
        self._swept = False

    async def ensure(self, name: str | None, report: Report) -> Kernel:
        """Return the named or the active kernel with an initramfs of the present agent.

        An empty store is filled first: from the distribution, else from this host. Raises
        kernel_not_found, kernel_missing, agent_missing.
        """
        ready = await in_thread(self._ready, name)
        # In the midst of a removal its files may go one after the other.
        if ready is not None and not self._flights.busy(f"kernel {ready.name}"):
            return ready
        await in_thread(self._sweep)
        wanted = name or self._settings.kernel or await in_thread(self._active)
        if not wanted:
            async with self._flights.over("first"):
                wanted = await in_thread(self._active) or (await self._first(report)).name
        async with self._flights.over(f"kernel {wanted}"):
            return await in_thread(self._prepared, wanted, await self._filesystems())

    async def list(self) -> Sequence[KernelInfo]:
        """Return all kernels by name."""
        return await in_thread(lambda: [self._info(name) for name in self._names()])

    async def pull(self, report: Report, *, package: str | None = None) -> KernelInfo:
        """Fetch a kernel package (default: the distribution's cloud kernel) without installing it.

        Raises kernel_missing when apt has none, tool_missing, bad_image.
        """
        failure: HutchError | None = None
        for candidate in (package,) if package else _PACKAGES:
            report(Progress("kernel", candidate, message="downloading the package"))
            try:
                async with self._flights.over("pull"):
                    return await self._pull(candidate, report)
            except HutchError as cause:
                if cause.code != "registry_failed":
                    raise
                failure = failure or cause
        assert failure is not None
        raise error(
            "kernel_missing",
            f"the package manager has no kernel: {failure.message}",
            hint="run `apt-get update`, or " + _WAYS,
        ) from failure

    async def load(
        self, path: Path, *, modules: Path | None = None, name: str | None = None
    ) -> KernelInfo:
        """Import a vmlinuz or vmlinux with its modules directory.

        Raises kernel_not_found for a missing file, bad_request, bad_image.
        """
        if name is not None and not _NAME.fullmatch(name):
            raise error("bad_request", f"{name!r} is no name for a kernel")
        async with self._flights.over("load"):
            return await settle_in_thread(self._install, path, modules, name, None)

    async def use(self, name: str) -> KernelInfo:
        """Make a kernel the one that sandboxes boot. Raises kernel_not_found."""
        info = await in_thread(self._info, name)
        await in_thread(write_atomic, self._root / "active", f"{name}\n".encode())
        return await in_thread(self._info, info.name)

    async def remove(self, name: str, *, used: Sequence[str] = ()) -> Removed:
        """Remove a kernel that no sandbox uses. Raises kernel_not_found, in_use."""
        info = await in_thread(self._info, name)
        if name in used:
            raise error(
                "in_use",
                f"the kernel {name} is used by a sandbox",
                hint="see which with `hutch inspect`, and remove it first",
            )
        async with self._flights.over(f"kernel {name}"):
            await in_thread(shutil.rmtree, self._root / name)
        return Removed([name], info.size)

    # filling

    def _sweep(self) -> None:
        """Remove, once, what a killed process left half-made."""
        if not self._swept:
            self._swept = True
            for leftover in (*self._root.glob(".new-*"), *self._root.glob("*/.new-*")):
                if leftover.is_dir():
                    shutil.rmtree(leftover, ignore_errors=True)
                else:
                    leftover.unlink(missing_ok=True)

    async def _first(self, report: Report) -> KernelInfo:
        reasons: list[str] = []
        try:
            return await self.pull(report)
        except HutchError as cause:
            reasons.append(cause.message)
        try:
            return await settle_in_thread(self._take_hosts)
        except (HutchError, OSError) as cause:
            reasons.append(str(cause))
        raise error(
            "kernel_missing", f"there is no kernel to boot: {'; '.join(reasons)}", hint=_WAYS
        )

    async def _pull(self, package: str, report: Report) -> KernelInfo:
        await in_thread(self._root.mkdir, parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self._root, prefix=".new-") as scratch:
            directory = Path(scratch)
            packages = await deb.download_kernel(package, directory)
            report(Progress("kernel", package, message="unpacking"))
            return await settle_in_thread(self._install_packages, directory, packages, package)

    def _install_packages(
        self, directory: Path, packages: Sequence[Path], package: str
    ) -> KernelInfo:
        tree = directory / "tree"
        names = [name for path in packages for name in deb.unpack(path, tree, _WANTED)]
        kernels = [name for name in names if re.search(r"(?:^|/)vmlinu[xz](?:-[^/]*)?$", name)]
        if not kernels:
            raise error("registry_failed", f"the package {package} holds no kernel")
        roots = sorted({name.partition("/kernel/")[0] for name in names if "/kernel/" in name})
        modules = tree / roots[0] if roots else None
        return self._install(tree / kernels[0], modules, None, package)

    def _take_hosts(self) -> KernelInfo:
        release = os.uname().release
        kernel, modules = (Path(path.format(release=release)) for path in _HOSTS)
        return self._install(kernel, modules if modules.is_dir() else None, None, "host")

    def _install(
        self, kernel: Path, modules: Path | None, name: str | None, source: str | None
    ) -> KernelInfo:
        if not kernel.is_file():
            raise error("kernel_not_found", f"there is no kernel file {kernel}")
        if not os.access(kernel, os.R_OK):
            raise error("kernel_not_found", f"the kernel {kernel} is for another user's eyes only")
        if modules is not None and not modules.is_dir():
            raise error("kernel_not_found", f"there is no modules directory {modules}")
        if kernel.stat().st_size > _FILE_LIMIT:
            raise bad_image(f"{kernel} is too large for a kernel")
        elf = vmlinux.extract(kernel.read_bytes())
        version = vmlinux.version(elf)
        name = name or version
        if not _NAME.fullmatch(name):
            raise bad_image(f"the kernel's version {name!r} is no name for a directory")
        self._root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self._root, prefix=".new-") as scratch:
            made = Path(scratch) / "kernel"
            (made / "modules").mkdir(parents=True)
            if modules is not None:
                shutil.copytree(modules, made / "modules", symlinks=True, dirs_exist_ok=True,
                                ignore=shutil.ignore_patterns("build", "source"))  # fmt: skip
            tree = ModuleTree(made / "modules")
            found = [m.name for m in tree.closure((*BOOT, *FILESYSTEMS, *EXTRA))]
            (made / "vmlinux").write_bytes(elf)
            record = {
                "version": version,
                "source": source or os.path.abspath(kernel),
                "modules": found,
            }
            write_atomic(made / "kernel.json", json.dumps(record, indent=1).encode())
            old = self._root / name
            if old.exists():
                os.replace(old, Path(scratch) / "old")
            os.replace(made, old)
        if self._chosen() not in self._names():
            write_atomic(self._root / "active", f"{name}\n".encode())
        return self._info(name)

    # looking

    async def _filesystems(self) -> tuple[str, ...]:
        """Return the kinds of root images that VMs of this home boot from: what is built here, and
        what was.
        """
        if self._builds is None:
            try:
                self._builds = (await rootfs.choose_builder()).fstype
            except (
                HutchError
            ):  # none installed: squashfs is the kind that any distribution can build
                self._builds = FILESYSTEMS[0]
        return await in_thread(self._present, self._builds)

    def _present(self, builds: str) -> tuple[str, ...]:
        """Return the kinds of root images that are here, or are built here."""
        present = {path.suffix for path in self._images.glob("*.*")}
        return tuple(kind for kind in FILESYSTEMS if kind == builds or f".{kind}" in present)

    def _ready(self, name: str | None) -> Kernel | None:
        """Return the kernel for which nothing has to be done, in one look; None: `ensure` has to.

        Each start asks for its kernel, and nearly always it is this.
        """
        if self._builds is None:
            return None
        wanted = name or self._settings.kernel or self._active()
        if not wanted or wanted not in self._known:
            return None
        with contextlib.suppress(FileNotFoundError):
            return self._unchanged(wanted, self._key(wanted, self._present(self._builds)))
        return None

    def _prepared(self, name: str, filesystems: tuple[str, ...]) -> Kernel:
        """Return the kernel from memory while nothing that it is made of has changed."""
        if not _NAME.fullmatch(name) or not (self._root / name / "kernel.json").is_file():
            self._info(name)
        key = self._key(name, filesystems)
        kernel = self._unchanged(name, key)
        if kernel is None:
            kernel = self._prepare(name, filesystems)
            self._known[name] = (key, kernel)
        return kernel

    def _key(self, name: str, filesystems: tuple[str, ...]) -> tuple[object, ...]:
        """Return what tells whether something has changed. Raises FileNotFoundError."""
        agent, stamp = agent_binary().stat(), (self._root / name / "kernel.json").stat()
        return (filesystems, agent.st_mtime_ns, agent.st_size, stamp.st_mtime_ns, stamp.st_ino)

    def _unchanged(self, name: str, key: tuple[object, ...]) -> Kernel | None:
        known = self._known.get(name)
        return known[1] if known and known[0] == key and known[1].initramfs.exists() else None

    def _prepare(self, name: str, filesystems: tuple[str, ...]) -> Kernel:
        info = self._info(name)
        directory = self._root / name
        agent = agent_binary().read_bytes()
        tree = ModuleTree(directory / "modules")
        boot = tree.closure((*BOOT, *filesystems))
        modules: Sequence[Module] = tree.closure((*BOOT, *filesystems, *EXTRA))
        key = initramfs.key(agent, modules, len(boot))
        path = directory / f"initramfs-{key}.cpio"
        if not path.exists():
            write_atomic(path, initramfs.build(agent, modules, len(boot)))
            self._drop_old(directory)
        return Kernel(name, info.version, directory / "vmlinux", path)

    def _drop_old(self, directory: Path) -> None:
        """Remove initramfs files of former agents, but not what a VM may be starting from."""
        paths = sorted(directory.glob("initramfs-*.cpio"), key=lambda p: p.stat().st_mtime)
        for path in paths[:-_KEPT_INITRAMFS]:
            path.unlink(missing_ok=True)

    def _names(self) -> Sequence[str]:
        if not self._root.is_dir():
            return []
        return sorted(p.parent.name for p in self._root.glob("*/kernel.json"))

    def _chosen(self) -> str:
        try:
            return (self._root / "active").read_text("utf-8").strip()
        except FileNotFoundError:
            return ""

    def _active(self) -> str | None:
        """Return the chosen kernel, or any when that is gone."""
        name, names = self._chosen(), self._names()
        if name in names:
            return name
        return names[-1] if names else None

    def _info(self, name: str) -> KernelInfo:
        directory = self._root / name
        if not _NAME.fullmatch(name) or not (directory / "kernel.json").is_file():
            raise error(
                "kernel_not_found", f"no kernel {name} in the store", hint="see `hutch kernel ls`"
            )
        record = json.loads((directory / "kernel.json").read_text("utf-8"))
        size = sum(p.stat().st_size for p in directory.rglob("*") if p.is_file())
        return KernelInfo(
            name,
            record["version"],
            record["source"],
            size,
            record["modules"],
            name == self._active(),
        )

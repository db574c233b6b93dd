"""One image and kernel store for all tests with real VMs, and homes that begin with its content.

Fetching a kernel, building a root file system and trying accelerators take seconds to minutes, so
they are done once and kept between runs, in $HUTCH_TEST_CACHE (default: below /var/tmp). A test's
own home gets the big files as hard links, which is why the homes live on the same file system.
"""

import asyncio
import fcntl
import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hutch import images
from hutch.engine.base import BootFiles
from hutch.engine.qemu import QemuEngine
from hutch.images.base import Image, Kernel, no_report
from hutch.images.kernel import KernelStore
from hutch.images.store import ImageStore
from hutch.models import PullPolicy
from hutch.settings import Settings, load_settings
from tests.harness.hutch import Hutch

_LINKED = 1 << 16
"""Files from this size on are linked; smaller ones are copied, since they may be rewritten."""
_BUILT = ("disks", "templates")
"""The parts of a home that hold templates and what they are based on."""
_STALE = 86400.0
"""Seconds after which a store of other sources is removed."""


def _base() -> Path:
    chosen = os.environ.get("HUTCH_TEST_CACHE")
    return Path(chosen) if chosen else Path(f"/var/tmp/hutch-test-{os.getuid()}")


def _key() -> str:
    """Name a store by the code that fills it: other code gets another store."""
    digest = hashlib.sha256()
    for path in sorted(Path(images.__path__[0]).rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


@contextmanager
def _locked(base: Path) -> Iterator[None]:
    with open(base / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


class SharedStore:
    """The store of this run, with an active kernel and the built-in busybox image."""

    def __init__(self) -> None:
        self._built: Path | None = None
        base = _base()
        base.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.home = base / f"store-{_key()}"
        self._homes = base / "homes"
        self._homes.mkdir(exist_ok=True)
        with _locked(base):
            for old in base.glob("store-*"):
                if old != self.home and old.stat().st_mtime < time.time() - _STALE:
                    shutil.rmtree(old, ignore_errors=True)
            self.home.mkdir(exist_ok=True)
            os.utime(self.home)
            self.kernel, self.busybox = asyncio.run(self._fill())

    @property
    def settings(self) -> Settings:
        """The settings of this store's home, with nothing from the machine."""
        return load_settings(env={"HUTCH_HOME": str(self.home), "HUTCH_CONFIG": "/nonexistent"})

    async def _fill(self) -> tuple[Kernel, Image]:
        kernel = await KernelStore(self.home, self.settings).ensure(None, no_report)
        # The verdict on accelerators takes a VM and some seconds; every home is of this host.
        boot = BootFiles(kernel.vmlinux, kernel.initramfs)
        await QemuEngine(self.settings).probe(boot)
        store = ImageStore(self.home, self.settings)
        return kernel, await store.ensure("busybox", PullPolicy.MISSING, no_report)

    def new_home(self, *, empty: bool = False, templates: bool = False) -> Path:
        """Return a new home, with the content of this store unless `empty`.

        With `templates` it begins with those of busybox in the usual size, whose files are not to
        be written to: they are those of other homes, too.
        """
        home = Path(tempfile.mkdtemp(dir=self._homes))
        if empty:
            return home
        _copy(self.home, home)
        if templates:
            for part in _BUILT:
                _copy(self._built_home() / part, home / part)
        return home

    def close(self) -> None:
        """Remove what was built for this run."""
        if self._built is not None:
            shutil.rmtree(self._built, ignore_errors=True)

    def _built_home(self) -> Path:
        """Return the home in which templates were built, by the code as it is in this run."""
        if self._built is None:
            runtime = Path(tempfile.mkdtemp(prefix="h-", dir="/tmp"))
            hutch = Hutch(self.new_home(), runtime, {})
            try:
                hutch.run("template", "build", "busybox")
                hutch.run("daemon", "stop")
            except BaseException:
                hutch.close()
                raise
            finally:
                shutil.rmtree(runtime, ignore_errors=True)  # the daemon may still be leaving it
            # It stays: whether a template is stale is told by the files that it was made of.
            self._built = hutch.home
        return self._built


def _copy(source: Path, target: Path) -> None:
    shutil.copytree(
        source,
        target,
        symlinks=True,
        ignore=shutil.ignore_patterns("*.lock", "daemon.*"),
        copy_function=_link_or_copy,
        dirs_exist_ok=True,
    )


def _link_or_copy(source: str, target: str) -> None:
    if os.path.getsize(source) >= _LINKED:
        os.link(source, target)
    else:
        shutil.copy2(source, target)

"""What of a machine a frozen one depends on: the program that ran it and the devices it had.

Pure but for a look at the program's file. The command line is the layout: equal ones, but for
names, files and descriptors, can take up each other's state.
"""

import dataclasses
from pathlib import Path

from hutch.engine.argv import Descriptors, DriveDescriptors, build_argv
from hutch.engine.base import MachineSpec
from hutch.errors import error


def program_identity(program: Path) -> str:
    """Return what tells a program from another build of it. Raises Missing (engine_missing)."""
    try:
        info = program.stat()
    except OSError as cause:
        raise error("engine_missing", f"{program} cannot be read: {cause.strerror}") from cause
    return f"{program.name} {info.st_size} {info.st_mtime_ns}"


def layout(spec: MachineSpec, *, jail: bool) -> str:
    """Return the command line of a machine without what is its own: its id, files and layers."""
    drives = [dataclasses.replace(drive, layers=()) for drive in spec.drives]
    fds = Descriptors(
        kernel=0,
        initramfs=0,
        qmp=0,
        console=0,
        agent=0,
        drives=[DriveDescriptors(0, None if drive.backing is None else 0) for drive in drives],
        tap=None if spec.tap is None else 0,
    )
    common = dataclasses.replace(spec, id="", drives=drives, freezable=False)
    return " ".join(build_argv("", common, fds, jail=jail))

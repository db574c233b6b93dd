"""Kills a daemon right before one of its outward acts: a rename, a new file, a process, a commit, a
command to an engine.

On PYTHONPATH of daemons that tests/fault/crash.py starts. `$CRASH_FILE` names a file; while it is
there, acts are counted by kind, each is written to `<file>.acts` (`COUNT KIND`), and the one that
the file names is never done: the process is killed with SIGKILL, wherever its other threads are.
With `stop ` before the act it is stopped there instead, until it gets SIGCONT. Another file counts
anew.
"""

import os
import re
import signal
import sqlite3
import sys
import threading
from collections import Counter
from typing import Any

_PATHS = {"os.rename", "os.link", "os.symlink", "os.mkdir", "os.rmdir", "os.remove", "os.truncate"}
_OTHERS = {"subprocess.Popen", "os.posix_spawn", "socket.bind"}
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
_PASSING = re.compile(
    r"\b(?:[a-z]{2}_)?[0-9a-f]{12}-[0-9a-f]{6}\b|\b[a-z]{2}_[0-9a-f]{12}\b|\.new-\w+|\btmp\w+"
    r"|[0-9a-f]{32,}"
)
"""What is another one each time."""
_COMMITS = ("INSERT", "UPDATE", "DELETE", "COMMIT")


class _Crash:
    def __init__(self, path: str, places: tuple[str, ...]) -> None:
        self._path = path
        self._places = places
        self._counts: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._inside = threading.local()
        self._engines = False
        self._file_id = (0, 0)

    def audit(self, event: str, args: tuple[Any, ...]) -> None:
        if not self._engines:
            self._engines = self._watch_engines()
        if event in _OTHERS:
            self.act(f"{event} {args[-1] if event == 'socket.bind' else args[0]}")
        elif event in _PATHS and (self._ours(args[0]) or _below_directory(args)):
            self.act(f"{event} {args[0]}")
        elif event == "open" and self._ours(args[0]) and int(args[2] or 0) & _WRITING:
            self.act(f"open {args[0]}")

    def _watch_engines(self) -> bool:
        """See the commands to engines from now on, if that module is loaded already."""
        qmp: Any = getattr(sys.modules.get("hutch.engine.qmp"), "Qmp", None)
        if qmp is None:
            return False
        execute = qmp.execute

        def watched(session: Any, command: str, *args: Any, **options: Any) -> Any:
            self.act(f"qmp {command}")
            return execute(session, command, *args, **options)

        qmp.execute = watched
        return True

    def _ours(self, path: object) -> bool:
        return isinstance(path, str | os.PathLike) and os.fspath(path).startswith(self._places)

    def act(self, what: str) -> None:
        if getattr(self._inside, "it", False):
            return
        self._inside.it = True
        try:
            with self._lock:
                self._act(what)
        finally:
            self._inside.it = False

    def _act(self, what: str) -> None:
        try:
            with open(self._path) as file:
                fatal, status = file.read(), os.fstat(file.fileno())
        except FileNotFoundError:
            return
        if (file_id := (status.st_ino, status.st_mtime_ns)) != self._file_id:
            self._file_id = file_id
            self._counts.clear()
        kind = _PASSING.sub("*", what).replace("\n", " ")
        self._counts[kind] += 1
        act = f"{self._counts[kind]} {kind}"
        with open(self._path + ".acts", "a") as acts:
            acts.write(act + "\n")
        if act == fatal:
            os.kill(os.getpid(), signal.SIGKILL)
        elif fatal == f"stop {act}":
            os.kill(os.getpid(), signal.SIGSTOP)


def _below_directory(args: tuple[object, ...]) -> bool:
    """Tell whether a path is relative to an open directory, as when a tree is removed."""
    return args[-1] not in (-1, None) and isinstance(args[0], str) and "/" not in args[0]


def _watch() -> None:
    places = os.environ["HUTCH_HOME"], os.environ["HUTCH_RUNTIME_DIR"]
    crash = _Crash(os.environ["CRASH_FILE"], places)
    sys.addaudithook(crash.audit)

    class Connection(sqlite3.Connection):
        def execute(self, sql: str, *args: object) -> sqlite3.Cursor:
            if sql.lstrip().upper().startswith(_COMMITS):
                crash.act(f"sql {sql[:40]}")
            return super().execute(sql, *args)

    plain = sqlite3.connect

    def connect(*args: object, **options: object) -> sqlite3.Connection:
        return plain(*args, **({"factory": Connection} | options))

    sqlite3.connect = connect


if "hutch.api.daemon" in sys.orig_argv and "CRASH_FILE" in os.environ:
    _watch()

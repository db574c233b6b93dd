"""The daemon's own log: a line of JSON for each record, rotated and capped.

What the interpreter and libraries write to stdout and stderr goes to the same file.
"""

import io
import json
import logging
import logging.handlers
import os
from pathlib import Path

from hutch.models import timestamp

_TEXT_LIMIT = 64 << 10


class JsonFormatter(logging.Formatter):
    """One JSON object in one line: time, level, logger, message, and the trace of a failure."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line of a record."""
        line = {
            "time": timestamp(record.created),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage()[:_TEXT_LIMIT],
        }
        if record.exc_info:
            line["trace"] = self.formatException(record.exc_info)[-_TEXT_LIMIT:]
        return json.dumps(line)


class DaemonLogHandler(logging.handlers.RotatingFileHandler):
    """The rotated file, which stdout and stderr follow."""

    def __init__(self, path: Path, size: int, files: int) -> None:
        super().__init__(path, maxBytes=size, backupCount=max(files, 1), encoding="utf-8")
        self.setFormatter(JsonFormatter())
        self._follow = False

    def _open(self) -> io.TextIOWrapper:
        # Private, also the one after a rollover, and one that was there.
        stream = super()._open()
        os.chmod(stream.fileno(), 0o600)
        return stream

    def take_output(self) -> None:
        """From now on descriptors 1 and 2 write to this file."""
        self._follow = True
        self._redirect()

    def doRollover(self) -> None:
        """Start a new file."""
        super().doRollover()
        if self._follow:
            self._redirect()

    def _redirect(self) -> None:
        if self.stream is not None:
            for fd in (1, 2):
                os.dup2(self.stream.fileno(), fd)


def open_log(path: Path, size: int, files: int, level: str) -> DaemonLogHandler:
    """Send all logging to `path`, at most (`files` + 1) × `size` bytes, from `level` on."""
    handler = DaemonLogHandler(path, size, files)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    logging.getLogger("uvicorn.error").setLevel(max(root.level, logging.WARNING))
    logging.getLogger("httpx").setLevel(max(root.level, logging.WARNING))
    return handler

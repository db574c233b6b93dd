import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from hutch.api.daemonlog import JsonFormatter


def record(message: str) -> logging.LogRecord:
    return logging.LogRecord("hutch.x", logging.WARNING, "f", 1, message, (), None)


def test_a_record_is_one_line_of_json() -> None:
    line = JsonFormatter().format(record("two\nlines"))
    assert "\n" not in line
    body = json.loads(line)
    assert (body["level"], body["logger"], body["message"]) == ("warning", "hutch.x", "two\nlines")
    assert body["time"].endswith("Z")


def test_a_trace_is_part_of_it() -> None:
    try:
        raise ZeroDivisionError("a bug")
    except ZeroDivisionError:
        made = record("failed")
        made.exc_info = sys.exc_info()
    assert "ZeroDivisionError: a bug" in json.loads(JsonFormatter().format(made))["trace"]


def test_messages_are_bounded() -> None:
    assert len(JsonFormatter().format(record("x" * (1 << 20)))) < 1 << 17


def test_the_file_is_private_rotated_and_followed_by_stderr(tmp_path: Path) -> None:
    code = (
        "import logging, os, sys\n"
        "from pathlib import Path\n"
        "from hutch.api.daemonlog import open_log\n"
        "handler = open_log(Path(sys.argv[1]), 2000, 2, 'info')\n"
        "handler.take_output()\n"
        "for number in range(200):\n"
        "    logging.info('line %d', number)\n"
        "os.write(2, b'from stderr\\n')\n"
    )
    path = tmp_path / "daemon.log"
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, timeout=60, check=True
    )
    assert (done.stdout, done.stderr) == (b"", b"")
    assert sorted(os.listdir(tmp_path)) == ["daemon.log", "daemon.log.1", "daemon.log.2"]
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) < 6100
    assert path.read_text().endswith("from stderr\n")
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("level", ["debug", "error"])
def test_levels(tmp_path: Path, level: str) -> None:
    code = (
        "import logging, sys\n"
        "from pathlib import Path\n"
        "from hutch.api.daemonlog import open_log\n"
        "open_log(Path(sys.argv[1]), 10000, 1, sys.argv[2])\n"
        "logging.getLogger('a').debug('low')\n"
        "logging.getLogger('a').error('high')\n"
    )
    path = tmp_path / "log"
    subprocess.run([sys.executable, "-c", code, str(path), level], timeout=60, check=True)
    assert ("low" in path.read_text(), "high" in path.read_text()) == (level == "debug", True)

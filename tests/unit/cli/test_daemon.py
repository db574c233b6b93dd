"""`hutch daemon` and `version` as processes."""

import json
import signal

from hutch import __version__
from tests.unit.cli.conftest import Cli


def test_start_status_restart_stop(own_hutch: Cli) -> None:
    assert own_hutch("daemon", "status", code=1).stdout == b"stopped\n"
    assert own_hutch("daemon", "stop").stdout == b"it was not running\n"
    assert json.loads(own_hutch("daemon", "start", "--json").stdout)["state"] == "running"
    assert own_hutch("daemon", "status").stdout.startswith(b"state:      running")
    own_hutch("daemon", "restart")
    body = json.loads(own_hutch("daemon", "stop", "--sandboxes", "--json").stdout)
    assert body == {"state": "stopped", "was_running": True}


def test_version_starts_no_daemon(own_hutch: Cli) -> None:
    body = json.loads(own_hutch("version", "--json").stdout)
    assert body == {"client": __version__, "daemon": None}
    own_hutch("ps")
    assert json.loads(own_hutch("version", "--json").stdout)["daemon"] == __version__


def test_run_in_the_foreground_until_sigterm(own_hutch: Cli) -> None:
    with own_hutch.start("daemon", "run", "--cpus", "3", "--log-level", "debug") as child:
        while b"stopped" in own_hutch("daemon", "status", code=None).stdout:
            assert child.poll() is None
        assert json.loads(own_hutch("ps", "--json").stdout)[0]["name"] == "box"
        child.send_signal(signal.SIGTERM)
        assert child.wait(60) == 0


def test_run_refuses_wrong_settings(own_hutch: Cli) -> None:
    refused = own_hutch("daemon", "run", "--memory", "lots", code=125).stderr
    assert b"--memory: 'lots' is not a size (bad_setting)" in refused


def test_logs(own_hutch: Cli) -> None:
    assert b"no daemon has run" in own_hutch("daemon", "logs", code=125).stderr
    own_hutch("ps")
    lines = own_hutch("daemon", "logs").stdout.splitlines()
    assert json.loads(lines[0])
    assert own_hutch("daemon", "logs", "-n", "1").stdout.splitlines() == lines[-1:]
    with own_hutch.start("daemon", "logs", "-f", "-n", "1") as child:
        assert child.stdout is not None
        assert child.stdout.readline() == lines[-1] + b"\n"  # so that it follows from here
        own_hutch("daemon", "stop")
        assert child.stdout.readline().startswith(b"{")
        child.send_signal(signal.SIGINT)
        child.stdout.read()
        assert child.wait(60) == 130

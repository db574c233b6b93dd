"""A command that does nothing: over the raw protocol, the SDK and the command line.

The command is `true` under a name that exists in that one machine only (see `Lab.put_marker`), so
its success proves for each sample which machine ran it.
"""

import asyncio
import sys
import time

from hutch.models import SandboxInfo
from hutch.sdk import AsyncClient, AsyncSandbox
from tests.bench import bare
from tests.bench.bare import BareMachine
from tests.bench.lab import Lab, Usage, mark, measure
from tests.bench.samples import Check, Measured, Series, alternate, ratio

_SDK_LIMIT = 2.0
_CLI_LIMIT = 8.0
_CLI_SHARE_LIMIT = 0.050


def round_trip(lab: Lab) -> Measured:
    """Measure `true` through the SDK's async client against the raw protocol."""
    with lab.sandbox() as info, bare.boot(lab.recipe(info)) as machine:
        machine.make_ready(lab.store.busybox.rootfs.fstype)
        with asyncio.Runner() as runner:
            client = AsyncClient(lab.settings)
            box = runner.run(AsyncSandbox.connect(info.id, client=client))
            program = lab.put_marker(info)

            def through_sdk() -> float:
                started = time.monotonic()
                result = runner.run(box.commands.run([program]))
                seconds = time.monotonic() - started
                assert result.exit_code == 0, result
                return seconds

            takers = {"raw": _raw(machine), "sdk": through_sdk}
            found = alternate(takers, lab.rounds(150, 20), warm=lab.rounds(20, 5))
            runner.run(client.close())
    raw = Series("raw protocol", "s", found["raw"])
    sdk = Series("AsyncSandbox.commands.run", "s", found["sdk"])
    return Measured(
        "`exec true`, round trip",
        [raw, sdk],
        [ratio("SDK, of the raw agent round trip", sdk, raw, _SDK_LIMIT)],
    )


def _raw(machine: BareMachine):  # type: ignore[no-untyped-def]
    program = mark(machine.agent)

    def sample() -> float:
        started = time.monotonic()
        code, _ = machine.agent.run(program)
        seconds = time.monotonic() - started
        assert code == 0, code
        machine.agent.release()
        return seconds

    return sample


def command_line(lab: Lab) -> Measured:
    """Measure `hutch exec NAME true` as a process against Python doing nothing."""
    with lab.sandbox() as info:
        program = lab.put_marker(info)
        used: list[Usage] = []

        def through_cli() -> float:
            used.append(lab.command("exec", info.name, program))
            return used[-1].wall

        def python() -> float:
            return measure([sys.executable, "-c", "pass"]).wall

        warm, rounds = lab.rounds(5, 2), lab.rounds(60, 10)
        found = alternate({"python": python, "cli": through_cli}, rounds, warm=warm)
        _assert_elsewhere_fails(lab, info)
    base = Series("python -c pass", "s", found["python"])
    whole = Series("hutch exec NAME true", "s", found["cli"])
    share = Series("processor time of the hutch process", "s", [u.cpu for u in used[warm:]])
    return Measured(
        "`hutch exec NAME true`, the whole process",
        [base, whole, share],
        [
            ratio("hutch exec, of python -c pass", whole, base, _CLI_LIMIT),
            Check("the command line's own share of it", share.median, _CLI_SHARE_LIMIT, "s"),
        ],
        "The own share is the process's user and system time: the interpreter's start, imports, "
        "parsing and rendering; waiting for the daemon and the VM is not in it.",
    )


def _assert_elsewhere_fails(lab: Lab, info: SandboxInfo) -> None:
    """Prove that the marker is one: no other sandbox has the program."""
    with lab.sandbox() as other:
        program = lab.put_marker(other)
        lab.hutch.run("exec", info.name, program, expect=127)

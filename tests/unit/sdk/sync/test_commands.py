from hutch.sdk import Client, Sandbox
from tests.unit.api.conftest import Served


def test_a_handle(served: Served) -> None:
    with Client(socket=served.path) as client:
        box = Sandbox.connect("box", client=client)
        with box.commands.run(["cat"], stdin=True, background=True) as handle:
            handle.send_stdin("one\n")
            assert next(iter(handle)).data == b"one\n"
            handle.close_stdin()
            assert handle.wait().exit_code == 0


def test_leaving_a_handle_kills(served: Served) -> None:
    with Client(socket=served.path) as client:
        box = Sandbox.connect("box", client=client)
        with box.pty.create(["hang"]) as handle:
            assert next(iter(handle)).data == b"ready\n"
        box.commands.run(["true"])
    running = served.fake.execs.all[handle.id]
    served.call(running.program.until(lambda: bool(running.closes)))
    assert running.cancelled

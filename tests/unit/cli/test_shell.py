"""`hutch shell` with a script on stdin, and `attach`."""

from tests.unit.cli.conftest import Cli


def test_a_script_on_stdin(hutch: Cli) -> None:
    done = hutch(
        "shell", "-e", "A=1", "box", stdin=b"echo $A; read x; echo $x\nword\nexit 6\n", code=6
    )
    assert done.stdout == b"1\nword\n"


def test_connect_is_the_same(hutch: Cli) -> None:
    assert hutch("connect", "box", stdin=b"echo ok").stdout == b"ok\n"


def test_attach_to_main(own_hutch: Cli) -> None:
    own_hutch("run", "-d", "-i", "--name", "reader", "busybox", "cat")
    done = own_hutch("attach", "reader", stdin=b"hello")
    assert done.stdout == b"hello"


def test_attach_to_what_is_not_there(hutch: Cli) -> None:
    assert b"(exec_not_found)" in hutch("attach", "box", "ex_none", code=125).stderr


def test_a_closed_reader_of_attach_leaves_the_program(own_hutch: Cli) -> None:
    own_hutch("run", "-d", "--name", "writer", "busybox", "bytes", "3000000")
    with own_hutch.start("attach", "writer") as child:
        assert child.stdout is not None
        child.stdout.close()
        assert child.wait(60) == 141

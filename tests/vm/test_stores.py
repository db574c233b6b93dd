"""Images and kernels that sandboxes use: kept while they do, chosen by name, gone afterwards."""

from tests.harness.hutch import Hutch


def code(hutch: Hutch, *args: str) -> str:
    """Return the code of the failure that a command ends with."""
    found = hutch.run("--json", *args, expect=125).json
    failure = found[0] if isinstance(found, list) else found
    return str(failure["error"]["code"])


def test_an_image_in_use_stays(hutch: Hutch) -> None:
    hutch.run("create", "--name", "user", "busybox")
    assert code(hutch, "image", "rm", "busybox") == "in_use"
    hutch.run("image", "prune", "--all")
    hutch.run("image", "rm", "--force", "busybox")  # the name only
    hutch.run("start", "user")
    assert hutch.run("exec", "user", "echo", "runs").text == "runs"
    hutch.run("rm", "-f", "user")
    assert hutch.json("image", "prune")["bytes"] > 1 << 20
    assert hutch.json("image", "ls") == []
    assert list((hutch.home / "images" / "rootfs").iterdir()) == []


def test_a_kernel_is_imported_chosen_and_kept_while_it_is_in_use(hutch: Hutch) -> None:
    (first,) = hutch.json("kernel", "ls")
    store = hutch.home / "kernels" / first["name"]
    where = ("--modules", str(store / "modules"), str(store / "vmlinux"))
    assert hutch.run("kernel", "import", "--name", "other", *where).text == "other"
    assert code(hutch, "run", "--kernel", "third", "busybox") == "kernel_not_found"

    release = hutch.run("run", "--name", "user", "--kernel", "other", "busybox", "uname", "-r")
    assert release.text == first["version"]
    assert hutch.json("inspect", "user")[0]["kernel"] == "other"
    assert code(hutch, "kernel", "rm", "other") == "in_use"

    hutch.run("kernel", "use", "other")
    assert [row["name"] for row in hutch.json("kernel", "ls") if row["active"]] == ["other"]
    hutch.run("kernel", "rm", first["name"])
    hutch.run("rm", "user")
    assert hutch.run("run", "--rm", "busybox", "echo", "boots").text == "boots"
    hutch.run("kernel", "rm", "other")
    assert hutch.json("kernel", "ls") == []

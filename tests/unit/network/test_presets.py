"""Policies of files: what they extend, and what is wrong with them."""

import json
import os
from pathlib import Path

import pytest

from hutch.errors import HutchError, InvalidInput, NotFound
from hutch.network.policy import Rules
from hutch.network.presets import (
    BUILT_IN,
    DEPTH_MAX,
    FILE_MAX,
    PARTS_MAX,
    extended,
    is_reference,
    known,
    load,
)
from hutch.networking import NetworkMode, NetworkPolicy

WORK = """
mode = "deny"
allow = ["example.com", "*.example.org:443"]
deny = ["bad.example.org"]
allow_host = [5432]

[presets.ci]
extends = "#base"
allow = ["ci.example.com"]
allow_host = [80]

[presets.base]
extends = "public"
deny = ["bad.example.com"]
allow_lan = true
"""


@pytest.fixture
def policies(tmp_path: Path) -> Path:
    directory = tmp_path / "policies"
    directory.mkdir()
    (directory / "work.toml").write_text(WORK)
    return directory


def write(directory: Path, name: str, text: str) -> str:
    (directory / name).write_text(text)
    return str(directory / name)


def test_built_in(tmp_path: Path) -> None:
    for name, policy in BUILT_IN.items():
        assert load(name, tmp_path) == policy
        assert policy.preset == name
        Rules.of(policy)
    assert load("offline", tmp_path).mode is NetworkMode.NONE


def test_a_file_of_the_directory(policies: Path) -> None:
    assert load("work", policies) == NetworkPolicy(
        NetworkMode.DENY,
        ["example.com", "*.example.org:443"],
        ["bad.example.org"],
        [5432],
        preset="work",
    )


def test_a_preset_extends_another(policies: Path) -> None:
    assert load("work#ci", policies) == NetworkPolicy(
        NetworkMode.PUBLIC,
        ["ci.example.com"],
        ["bad.example.com"],
        [80],
        allow_lan=True,
        preset="work#ci",
    )


def test_files_by_their_paths(
    policies: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(
        tmp_path, "mine.toml", 'extends = ["work", "policies/work.toml#ci"]\nmode = "deny"'
    )
    mine = load(path, policies)
    assert mine.preset == path
    assert mine.mode is NetworkMode.DENY
    assert mine.allow == ["example.com", "*.example.org:443", "ci.example.com"]
    assert mine.deny == ["bad.example.org", "bad.example.com"]
    assert mine.allow_host == [5432, 80]
    assert mine.allow_lan
    monkeypatch.chdir(tmp_path)
    assert load("mine.toml", policies).allow == mine.allow
    assert load("./mine.toml", policies).allow == mine.allow
    assert load("policies/work.toml#ci", policies).allow == ["ci.example.com"]


def test_json(tmp_path: Path) -> None:
    write(tmp_path, "a.json", json.dumps({"mode": "open", "deny": ["a.example"]}))
    assert load("a", tmp_path).deny == ["a.example"]


def test_what_is_extended_is_taken_back_by_nothing_but_the_mode_and_the_lan(tmp_path: Path) -> None:
    write(tmp_path, "a.toml", 'mode = "open"\nallow_lan = true\nallow = ["a.example"]')
    write(tmp_path, "b.toml", 'extends = "a"\nmode = "deny"\nallow_lan = false')
    assert load("b", tmp_path) == NetworkPolicy(NetworkMode.DENY, allow=["a.example"], preset="b")


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("allow = [", "it is no TOML", None),
        ('allow = ["a.example"]', "it has neither `mode` nor `extends`", "begin it with"),
        ('mode = "closed"', "'closed' is no mode", "public, deny, open, none"),
        ("mode = 1", "'1' is no mode", None),
        ('mode = "deny"\nalow = []', "no field 'alow'", "the fields are mode, extends"),
        ('mode = "deny"\nallow = "a.example"', "`allow` is no list of texts", None),
        ('mode = "deny"\nallow = [1]', "`allow` is no list of texts", None),
        ('mode = "deny"\nallow_host = ["80"]', "`allow_host` is no list of numbers", None),
        ('mode = "deny"\nallow_host = [true]', "`allow_host` is no list of numbers", None),
        ('mode = "deny"\nallow_host = [70000]', "'70000' in `allow_host` is no port", "give ports"),
        ('mode = "deny"\nallow_lan = 1', "`allow_lan` is neither", None),
        ('mode = "deny"\ndeny = ["10.0.0.1/8"]', "'10.0.0.1/8' cannot be", "write 10.0.0.0/8"),
        ('mode = "deny"\npresets = 1', "`presets` is no table", None),
        ('extends = 1\nmode = "deny"', "`extends` is no list of texts", None),
        ('extends = "#x"', "no preset 'x'", "it has none"),
        ('extends = "nothing"', "no policy 'nothing'", "`hutch policy ls`"),
        ('extends = "no/such.toml"', "no such file", None),
        ('extends = "bad"', "it extends itself", "take it out"),
        ('extends = "#a"\n[presets.a]\nextends = "bad"', "it extends itself", None),
        ('[presets.a]\nmode = "deny"', "it holds only presets", "give one of bad#a"),
        ("mode = " + "[" * 100_000, "it is no TOML", None),
        ("#" * (FILE_MAX + 1), "larger than 1 MiB", None),
    ],
)
def test_broken_files(tmp_path: Path, text: str, message: str, hint: str | None) -> None:
    write(tmp_path, "bad.toml", text)
    with pytest.raises(HutchError) as caught:
        load("bad", tmp_path)
    assert caught.value.code in ("bad_policy", "policy_not_found")
    assert message in caught.value.message
    if hint is not None:
        assert caught.value.hint is not None
        assert hint in caught.value.hint


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"mode": "deny", "mode": "open"}', "a field is given twice"),
        ("[]", "it holds no object"),
        ("[" * 100_000, "it is no JSON"),
        ("{", "it is no JSON"),
        ("\xff", "it is no JSON"),
    ],
)
def test_broken_json(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "bad.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(InvalidInput, match=message):
        load("bad", tmp_path)


def test_what_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "a.toml").mkdir()
    os.mkfifo(tmp_path / "b.toml")
    (tmp_path / "c.toml").symlink_to("/dev/zero")
    for name in "abc":
        with pytest.raises(InvalidInput):
            load(name, tmp_path)


@pytest.mark.parametrize("name", ["nothing", "../work", "a b", "", "x" * 100, "work#nothing"])
def test_what_there_is_not(policies: Path, name: str) -> None:
    with pytest.raises(NotFound) as caught:
        load(name, policies)
    assert caught.value.code == "policy_not_found"


def test_chains_and_trees_have_an_end(tmp_path: Path) -> None:
    for number in range(DEPTH_MAX + 1):
        write(tmp_path, f"c{number}.toml", f'extends = "c{number + 1}"')
    write(tmp_path, f"c{DEPTH_MAX + 1}.toml", 'mode = "deny"')
    assert load("c2", tmp_path).mode is NetworkMode.DENY
    with pytest.raises(InvalidInput, match="extend one another"):
        load("c0", tmp_path)
    for number in range(PARTS_MAX + 1):
        write(tmp_path, f"w{number}.toml", 'mode = "deny"')
    wide = json.dumps([f"w{number}" for number in range(PARTS_MAX + 1)])
    write(tmp_path, "wide.toml", f"extends = {wide}")
    with pytest.raises(InvalidInput, match="made of more than"):
        load("wide", tmp_path)
    for number in range(6):
        below = [f"t{number + 1}.toml", f"./t{number + 1}.toml", f"t{number + 1}"]
        write(tmp_path, f"t{number}.toml", f"extends = {json.dumps(below * 20)}")
    write(tmp_path, "t6.toml", 'mode = "deny"')
    assert load("t0", tmp_path).mode is NetworkMode.DENY


def test_known(policies: Path) -> None:
    write(policies, "broken.toml", "mode =")
    write(policies, "public.toml", 'mode = "open"')
    write(policies, "a b.toml", 'mode = "open"')
    write(policies, "notes.txt", "nothing")
    write(policies, "only.toml", '[presets.x]\nmode = "deny"\n[presets.y]\nmode = "off"')
    found = {preset.reference: preset for preset in known(policies)}
    assert list(found)[: len(BUILT_IN)] == list(BUILT_IN)
    assert list(found)[len(BUILT_IN) :] == [
        *("a b", "broken", "only#x", "only#y", "work", "work#ci", "work#base")
    ]
    assert found["work#ci"].policy == load("work#ci", policies)
    assert found["work#ci"].origin == str(policies / "work.toml")
    assert found["public"].error == "its name is a built-in policy's"
    assert "no TOML" in (found["broken"].error or "")
    assert "is no mode" in (found["only#y"].error or "")
    assert found["only#y"].policy is None
    assert load("public", policies).mode is NetworkMode.PUBLIC


def test_no_directory(tmp_path: Path) -> None:
    assert [preset.reference for preset in known(tmp_path / "nothing")] == list(BUILT_IN)


def test_extended() -> None:
    base = NetworkPolicy(NetworkMode.PUBLIC, ["a.example"], [], [80], preset="work")
    more = extended(base, allow=["a.example", "b.example"], deny=["c.example"], allow_host=[81])
    assert more == NetworkPolicy(
        NetworkMode.PUBLIC, ["a.example", "b.example"], ["c.example"], [80, 81], preset="work"
    )
    assert extended(base, mode=NetworkMode.DENY, allow_lan=True).mode is NetworkMode.DENY
    assert base.allow == ["a.example"]


def test_what_looks_like_a_reference() -> None:
    for text in ("work#ci", "ci.toml", "./ci", "ci.json", "/etc/x"):
        assert is_reference(text), text
    for text in ("example.com", "https://example.com/", "work", "10.0.0.1:80", "[::1]:80"):
        assert not is_reference(text), text

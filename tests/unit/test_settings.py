import contextlib
import os
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hutch.errors import InvalidInput
from hutch.settings import (
    GIB,
    KIB,
    MIB,
    SETTINGS,
    Settings,
    config_path,
    default_home,
    default_memory_reserve,
    default_runtime_base,
    load_settings,
    parse_bool,
    parse_duration,
    parse_factor,
    parse_list,
    parse_networks,
    parse_reserve,
    parse_server,
    parse_servers,
    parse_size,
    resolve_settings,
)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("1", 1),
        ("1048576", MIB),
        ("512m", 512 * MIB),
        ("512M", 512 * MIB),
        ("512mb", 512 * MIB),
        ("512MiB", 512 * MIB),
        (" 2g ", 2 * GIB),
        ("1.5GiB", 3 * GIB // 2),
        ("4k", 4 * KIB),
        ("7b", 7),
        ("1t", GIB << 10),
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text",
    ["", " ", "m", "b", "ib", "mib", "0", "0.1", "-1", "-5m", "1x", "1mm", "1 2", "1_000", "\u0661"]
    + ["nan", "inf", "1e", "1e3", "0x10", "99999999t", "9" * 400, "1.", ".5g", "5m\n5"],
)
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        parse_size(text)
    assert caught.value.code == "bad_size"
    assert repr(text) in caught.value.message


@given(st.integers(1, 1 << 50))
def test_a_number_of_bytes_is_itself(size: int) -> None:
    assert parse_size(str(size)) == size


@given(st.text("0123456789.kmgtibshd -_", max_size=8) | st.text(max_size=12))
def test_any_text_is_a_size_or_a_clear_error(text: str) -> None:
    with contextlib.suppress(InvalidInput):
        assert 0 < parse_size(text) < 1 << 62


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0", 0.0),
        ("30", 30.0),
        ("1.5", 1.5),
        ("30s", 30.0),
        ("1500ms", 1.5),
        ("5m", 300.0),
        ("2h30m", 9000.0),
        ("1d", 86400.0),
        (" 1H ", 3600.0),
    ],
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "text", ["", "s", "5x", "-5", "1.2.3", "5 m", "1m!", "nan", "inf", "5mm", "9" * 400]
)
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        parse_duration(text)
    assert caught.value.code == "bad_request"


@given(st.integers(0, 10**5), st.integers(0, 59), st.integers(0, 59))
def test_parts_of_a_duration_add_up(hours: int, minutes: int, seconds: int) -> None:
    expected = hours * 3600 + minutes * 60 + seconds
    assert parse_duration(f"{hours}h{minutes}m{seconds}s") == expected


@given(st.text("0123456789.kmgtibshd -_", max_size=8) | st.text(max_size=12))
def test_any_text_is_a_duration_or_a_clear_error(text: str) -> None:
    with contextlib.suppress(InvalidInput):
        assert 0 <= parse_duration(text) < float("inf")


@pytest.mark.parametrize("text", ["1", "true", "YES", " on "])
def test_true(text: str) -> None:
    assert parse_bool(text) is True


@pytest.mark.parametrize("text", ["0", "false", "No", "off"])
def test_false(text: str) -> None:
    assert parse_bool(text) is False


def test_neither_true_nor_false() -> None:
    with pytest.raises(InvalidInput):
        parse_bool("maybe")


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("accelerator", "xen"),
        ("machine", "pc"),
        ("log_level", "loud"),
        ("cpus", "0"),
        ("cpus", "many"),
        ("log_files", "-1"),
        ("log_files", "0"),
        ("pull_parallel", "0"),  # would wait for ever
        ("uid_count", "1.5"),
        ("uid_base", "0"),  # would be root
        ("uid_base", "9" * 30),
        ("jail", "maybe"),
        ("memory", "much"),
        ("memory_reserve", "-1"),
        ("disk_reserve", "0.1"),
        ("memory_overcommit", "0"),
        ("memory_overcommit", "-2"),
        ("memory_overcommit", "nan"),
        ("memory_overcommit", "1e3"),
        ("memory_overcommit", "1001"),
        ("boot_timeout", "soon"),
        ("network_public_routes", "10.0.0.1/8"),
        ("network_public_routes", "default"),
    ],
)
def test_a_value_that_cannot_be_is_told_where_it_stands(key: str, text: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        load_settings(env={f"HUTCH_{key.upper()}": text, "HUTCH_CONFIG": "/nonexistent"})
    assert caught.value.code == "bad_setting"
    assert caught.value.message.startswith(f"HUTCH_{key.upper()}: ")
    assert text in caught.value.message


def test_reserves_and_factors() -> None:
    assert [parse_reserve(text) for text in ("0", " 0 ", "512m")] == [0, 0, 512 * MIB]
    assert [parse_factor(text) for text in ("4", " 1.5 ", "0.25")] == [4.0, 1.5, 0.25]
    assert 0 < default_memory_reserve() < os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def test_words_are_read_in_any_case() -> None:
    env = {"HUTCH_ACCELERATOR": " TCG", "HUTCH_LOG_LEVEL": "Debug", "HUTCH_CONFIG": "/nonexistent"}
    settings = load_settings(env=env)
    assert (settings.accelerator, settings.log_level) == ("tcg", "debug")


def test_lists() -> None:
    assert parse_list(" a, b,,c ,") == ("a", "b", "c")
    assert parse_list("") == ()


def test_networks() -> None:
    assert parse_networks("0.0.0.0/1, 128.0.0.0/1") == ("0.0.0.0/1", "128.0.0.0/1")
    assert parse_networks("2000:0::/3") == ("2000::/3",)
    assert parse_networks("") == ()


def write_config(text: str) -> dict[str, str]:
    """Write the configuration file of this test; returns an environment that names it."""
    path = Path(os.environ["HUTCH_CONFIG"])
    path.write_text(text)
    return {"HUTCH_CONFIG": str(path)}


def test_the_nearest_source_wins() -> None:
    env = write_config("cpus = 3\nmemory = '1g'\ndisk = '5g'\nboot_timeout = 9\n")
    env |= {"HUTCH_CPUS": "2", "HUTCH_MEMORY": "256m"}
    found = resolve_settings({"cpus": 8, "memory": None}, env)
    assert found["cpus"] == (8, "flag")
    assert found["memory"] == (256 * MIB, "environment")
    assert found["disk"] == (5 * GIB, "file")
    assert found["boot_timeout"] == (9.0, "file")
    assert found["stop_timeout"] == (10.0, "default")


def test_an_empty_variable_is_not_given() -> None:
    assert resolve_settings(None, {"HUTCH_CPUS": "", "HUTCH_CONFIG": "/nonexistent"})["cpus"] == (
        1,
        "default",
    )


def test_toml_types_are_read_as_such() -> None:
    env = write_config("jail = false\nregistry_mirrors = ['a=b', 'c=d']\nhome = '/data'\n")
    settings = load_settings(None, env)
    assert settings.jail is False
    assert settings.registry_mirrors == ("a=b", "c=d")
    assert settings.home == Path("/data")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("cpu = 3\n", "no setting 'cpu'"),
        ("cpus = 'many'\n", "cpus"),
        ("cpus = \n", "cannot be read"),
        ("memory = '-1'\n", "'-1' is not a size"),
        ('cpus = "\\udcff"', "cannot be read"),
    ],
)
def test_a_wrong_file_is_named(text: str, said: str) -> None:
    env = write_config(text)
    with pytest.raises(InvalidInput) as caught:
        load_settings(None, env)
    assert said in caught.value.message


def test_a_wrong_variable_is_named() -> None:
    with pytest.raises(InvalidInput) as caught:
        load_settings(None, {"HUTCH_CPUS": "many", "HUTCH_CONFIG": "/nonexistent"})
    assert caught.value.code == "bad_setting"
    assert "HUTCH_CPUS" in caught.value.message


def test_the_table_and_the_dataclass_agree() -> None:
    assert [field.name for field in fields(Settings)] == [row.key for row in SETTINGS]
    for row in SETTINGS:
        assert row.help, row.key
        assert row.env == f"HUTCH_{row.key.upper()}"
        assert row.flag == "--" + row.key.replace("_", "-")


def test_every_default_has_the_type_of_its_field() -> None:
    settings = load_settings(None, {"HUTCH_CONFIG": "/nonexistent"})
    for field in fields(Settings):
        value: Any = getattr(settings, field.name)
        lists = ("registry_mirrors", "plain_", "dns_servers", "network_public_routes")
        expected = tuple if field.name.startswith(lists) else field.type
        assert isinstance(value, expected), field.name  # type: ignore[arg-type]


def test_paths_of_root_and_of_users(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert default_home() == Path("/var/lib/hutch")
    assert default_runtime_base() == Path("/run/hutch")
    assert config_path({}) == Path("/etc/hutch/config.toml")

    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(os, "getuid", lambda: 1000)
    monkeypatch.setenv("HOME", "/home/u")
    for name in ("XDG_DATA_HOME", "XDG_RUNTIME_DIR", "TMPDIR"):
        monkeypatch.delenv(name, raising=False)
    assert default_home() == Path("/home/u/.local/share/hutch")
    assert default_runtime_base().name == "hutch-1000"
    assert config_path({}) == Path("/home/u/.config/hutch/config.toml")
    assert config_path({"XDG_CONFIG_HOME": "/c"}) == Path("/c/hutch/config.toml")
    assert config_path({"HUTCH_CONFIG": "/x.toml"}) == Path("/x.toml")

    monkeypatch.setenv("XDG_DATA_HOME", "/d")
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/r")
    assert default_home() == Path("/d/hutch")
    assert default_runtime_base() == Path("/r/hutch")


@pytest.mark.parametrize(
    ("text", "server"),
    [
        ("9.9.9.9", ("9.9.9.9", 53)),
        ("127.0.0.1:5353", ("127.0.0.1", 5353)),
        ("2620:fe::fe", ("2620:fe::fe", 53)),
        ("[2620:fe::fe]:5353", ("2620:fe::fe", 5353)),
    ],
)
def test_a_server(text: str, server: tuple[str, int]) -> None:
    assert parse_server(text) == server
    assert parse_servers(f"{text}, {text}") == (text, text)


@pytest.mark.parametrize(
    "text", ["dns.example", "1.2.3", "1.2.3.4:0", "1.2.3.4:x", "1.2.3.4:70000"]
)
def test_no_server(text: str) -> None:
    with pytest.raises(InvalidInput, match="is no server"):
        parse_servers(text)

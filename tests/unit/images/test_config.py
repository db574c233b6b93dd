"""Manifests and configs of strangers."""

import json
from typing import Any

import pytest

from hutch.content import ImageConfig
from hutch.errors import HutchError
from hutch.images import config

D = "sha256:" + "a" * 64
E = "sha256:" + "b" * 64


def descriptor(digest: str = D, **more: Any) -> dict[str, Any]:
    return {"mediaType": config.OCI_MANIFEST, "digest": digest, "size": 5, **more}


def index(*items: dict[str, Any]) -> bytes:
    return json.dumps({"manifests": list(items)}).encode()


def on(architecture: str, variant: str = "", os: str = "linux") -> dict[str, Any]:
    return {"platform": {"os": os, "architecture": architecture, "variant": variant}}


def test_the_plainest_variant_is_chosen() -> None:
    body = index(
        descriptor(E, **on("amd64", "v3")),
        descriptor(D, **on("amd64")),
        descriptor(E, **on("arm64")),
    )
    assert config.choose_platform(body, "x", "amd64").digest == D


def test_attestations_and_foreign_systems_are_passed_over() -> None:
    body = index(
        descriptor(E, **on("unknown", os="unknown")),
        descriptor(E, **on("amd64", os="windows")),
        {**descriptor(E, **on("amd64")), "mediaType": "application/x-other"},
        descriptor(D, **on("amd64", "v2")),
    )
    assert config.choose_platform(body, "x", "amd64").digest == D


def test_an_only_entry_needs_no_platform() -> None:
    assert config.choose_platform(index(descriptor()), "x", "amd64").digest == D
    with pytest.raises(HutchError) as caught:
        config.choose_platform(index(descriptor(), descriptor(E)), "x", "amd64")
    assert caught.value.code == "no_platform"


@pytest.mark.parametrize(
    "value",
    [
        None, 5, [], {}, {"digest": D}, descriptor("sha256:short"), descriptor("md5:" + "a" * 32),
        {**descriptor(), "size": -1}, {**descriptor(), "size": "5"}, {**descriptor(), "size": True},
        {**descriptor(), "mediaType": 5}, descriptor("sha256:" + "A" * 64),
        descriptor("sha256:" + "../" * 21 + "a"),
    ],
)  # fmt: skip
def test_malformed_descriptors(value: Any) -> None:
    with pytest.raises(HutchError) as caught:
        config.parse_descriptor(value, "x")
    assert caught.value.code == "bad_image"


@pytest.mark.parametrize(
    "change",
    [
        {"rootfs": None}, {"rootfs": {"diff_ids": [5]}}, {"rootfs": {"diff_ids": ["x"]}}, {"os": 5},
        {"config": []}, {"config": {"Env": "A=1"}}, {"config": {"Cmd": [1]}},
        {"config": {"Cmd": ["a\0b"]}}, {"config": {"Labels": []}}, {"config": {"Volumes": ["/x"]}},
        {"config": {"User": 0}}, {"config": {"WorkingDir": "a\0"}},
    ],
)  # fmt: skip
def test_malformed_configs(change: dict[str, Any]) -> None:
    value = {"architecture": "amd64", "os": "linux", "rootfs": {"diff_ids": [D]}, **change}
    with pytest.raises(HutchError) as caught:
        config.parse_config(json.dumps(value).encode(), "x")
    assert caught.value.code == "bad_image"


def test_nulls_mean_defaults() -> None:
    run = {
        "Entrypoint": None,
        "Cmd": None,
        "Env": None,
        "WorkingDir": "",
        "User": "",
        "Labels": None,
    }
    value = {"architecture": "amd64", "os": "linux", "rootfs": {"diff_ids": []}, "config": run}
    assert config.parse_config(json.dumps(value).encode(), "x").run == ImageConfig()
    del value["config"]
    assert config.parse_config(json.dumps(value).encode(), "x").run == ImageConfig()


def test_a_relative_working_directory_is_below_the_root() -> None:
    value = {"architecture": "amd64", "os": "linux", "rootfs": {"diff_ids": []}}
    body = json.dumps(value | {"config": {"WorkingDir": "srv/app"}}).encode()
    assert config.parse_config(body, "x").run.workdir == "/srv/app"


def test_what_is_made_is_read_back() -> None:
    run = ImageConfig(["/e"], ["c"], {"A": "b"}, "/w", labels={"k": "v"})
    body = config.make_config(run, [D, E], created_by="test", created=5.0)
    found = config.parse_config(body, "x")
    assert found.run == run
    assert found.diff_ids == (D, E)
    config.check_platform(found, "x")
    # Other tools count the history against the layers.
    assert len(json.loads(body)["history"]) == 2


def test_too_many_layers() -> None:
    body = json.dumps({"config": descriptor(), "layers": [descriptor()] * 2000}).encode()
    with pytest.raises(HutchError):
        config.parse_manifest(body, "x")

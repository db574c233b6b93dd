from hutch.models import SandboxSpec, from_json, to_json
from hutch.networking import NetworkMode, NetworkPolicy, PublishedPort


def test_a_policy_crosses_the_api_unchanged() -> None:
    spec = SandboxSpec(
        image="busybox",
        network=NetworkPolicy(
            mode=NetworkMode.DENY, allow=["example.com:22"], deny=["10.0.0.0/8"], allow_host=[5432]
        ),
        ports=[PublishedPort(80, 8080)],
    )

    assert from_json(SandboxSpec, to_json(spec)) == spec


def test_a_request_without_a_network_leaves_it_to_the_settings() -> None:
    assert from_json(SandboxSpec, {"image": "busybox"}).network is None

"""The filter of a TAP's frames: the messages are taken as `nft` would have written them."""

import os
import subprocess

import pytest

from hutch.network import firewall, tap
from hutch.network.nfnetlink import FrameFilter, batch, frame_filter_removal
from tests.unit.network.netspace import in_namespace, needs_taps

pytestmark = needs_taps


def nft(*words: str, stdin: str | None = None) -> str:
    done = subprocess.run(
        ["nft", *words], check=True, capture_output=True, input=stdin, encoding="utf-8"
    )
    return done.stdout


def test_a_tap_gets_a_chain_that_can_be_removed() -> None:
    def run() -> None:
        nft("-f", "-", stdin=firewall.RULES_FRAMES)
        fd = tap.make("ht0")
        frames = FrameFilter()
        frames.add("ht0")
        shown = nft("list", "chain", "netdev", "hutch", "ht0")
        assert 'hook ingress device "ht0"' in shown
        assert "policy drop" in shown
        assert "goto frames" in shown
        frames.remove("ht0")
        assert "ht0" not in nft("list", "table", "netdev", "hutch")
        frames.remove("ht0")
        frames.add("ht0")
        os.close(fd)
        frames.remove("ht0")
        assert "ht0" not in nft("list", "table", "netdev", "hutch")
        frames.close()

    in_namespace(run)


def test_what_the_kernel_refuses_is_told() -> None:
    def run() -> None:
        frames = FrameFilter()
        fd = tap.make("ht0")
        with pytest.raises(FileNotFoundError, match="the filter of ht0: "):
            frames.add("ht0")
        nft("-f", "-", stdin=firewall.RULES_FRAMES)
        frames.add("ht0")  # and no answer of before is taken for one of now
        os.close(fd)
        frames.close()

    in_namespace(run)


def test_the_answer_to_what_nobody_waits_for_any_more_is_passed_over() -> None:
    def run() -> None:
        nft("-f", "-", stdin=firewall.RULES_FRAMES)
        fd = tap.make("ht0")
        frames = FrameFilter()
        for _ in range(3):  # as if these had taken too long
            number = next(frames._numbers)
            frames._sock.send(batch(frame_filter_removal("ht9", number + 1), number))
        frames.add("ht0")
        assert "goto frames" in nft("list", "chain", "netdev", "hutch", "ht0")
        os.close(fd)
        frames.close()

    in_namespace(run)

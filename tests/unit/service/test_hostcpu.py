import dataclasses

from hutch.models import CpuInfo
from hutch.service.hostcpu import lacking, missing_features, other_kind

CPU = CpuInfo("host", "GenuineIntel", ["avx2", "fpu"])


def test_a_cpu_that_does_more_will_do() -> None:
    more = dataclasses.replace(CPU, features=["avx2", "avx512f", "fpu"])
    assert (missing_features(CPU, more), other_kind(CPU, more)) == ([], [])
    assert missing_features(more, CPU) == ["avx512f"]


def test_what_must_be_the_same_is_named_with_both() -> None:
    other = dataclasses.replace(CPU, vendor="AuthenticAMD")
    assert other_kind(CPU, other) == ["its vendor (GenuineIntel against AuthenticAMD)"]
    (what,) = other_kind(CPU, dataclasses.replace(CPU, model="max"))
    assert what == "the CPU's model (host against max)"


def test_nothing_is_known_against_one_that_no_canary_has_seen() -> None:
    assert (missing_features(CPU, None), other_kind(CPU, None)) == ([], [])


def test_all_that_is_missing_is_named() -> None:
    assert lacking(["avx2", "fma"]) == "this host's CPU lacks avx2, fma"

"""What conversions cost, measured once for a target and kept; and the store that keeps it."""

from __future__ import annotations

from pathlib import Path

import pytest

from graphopt.measurement import Target, detect
from graphopt.placement import conversions as module
from graphopt.placement import store
from graphopt.placement.conversions import KINDS, Conversions, pool


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(module, "_SECONDS", 0.05)
    return tmp_path / "cache" / "graphopt" / "latency"


CASES = [(kind, (1, 40, 24, 24)) for kind in KINDS]


def test_every_kind_takes_time_and_more_for_more() -> None:
    found = Conversions(detect("cpu", 1))
    large = [(kind, (1, 40, 192, 192)) for kind in KINDS]
    found.measure([*CASES, *large])
    for small, more in zip(CASES, large, strict=True):
        assert 0 < found.ms(*small) < found.ms(*more)


def test_a_second_run_measures_nothing(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = Conversions(detect("cpu", 1))
    first.measure(CASES)
    assert first.measured == len(CASES) == len(list(cache.iterdir()))
    monkeypatch.setattr(module, "time_kernels", None)
    second = Conversions(detect("cpu", 1))
    second.measure(CASES)
    assert second.measured == 0
    assert [second.ms(*case) for case in CASES] == [first.ms(*case) for case in CASES]


def test_another_target_or_type_is_another_measurement() -> None:
    case = ("quantize", (1, 64))
    Conversions(detect("cpu", 1)).measure([case])
    for other in (Conversions(detect("cpu", 1), signed=True), Conversions(Target("cpu", "another", 1, "avx2"))):
        other.measure([case])
        assert other.measured == 1


def test_to_what_goes_number_by_number_only_how_many_matter() -> None:
    found = Conversions(detect("cpu", 1))
    found.measure([("quantize", (1, 64)), ("quantize", (8, 8)), ("dequantize", (2, 32)), ("dequantize", (64,))])
    assert found.measured == 2
    assert found.ms("quantize", (1, 64)) == found.ms("quantize", (4, 16))


def test_a_pool_on_narrow_numbers() -> None:
    found = Conversions(detect("cpu", 1))
    kind = pool({"strides": (2, 2), "kernel_shape": (3, 3)})
    assert kind == pool({"kernel_shape": (3, 3), "strides": (2, 2)}) != pool({"kernel_shape": (2, 2), "strides": (2, 2)})
    found.measure([(kind, (1, 16, 64, 64)), ("quantize", (1, 16, 64, 64))])
    assert found.ms(kind, (1, 16, 64, 64)) > found.ms("quantize", (1, 16, 64, 64))


def test_what_the_runtime_never_does_costs_nothing() -> None:
    found = Conversions(detect("cpu", 1))
    found.measure([("to-last", (3, 4)), ("block", (1, 3, 8, 8)), ("quantize", (0, 4))])
    assert found.measured == 0
    assert found.ms("block", (1, 3, 8, 8)) == found.ms("quantize", (0, 4)) == 0


def test_a_broken_cache_is_no_error(cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    store.put("a", [1, 2])
    assert store.get("a") == [1, 2]
    (cache / "a.json").write_text("{")
    assert store.get("a") is None
    assert store.get("b") is None
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    store.put("a", 1)
    assert store.get("a") is None


def test_the_oldest_go(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "_MOST_FILES", 3)
    for name in "abcde":
        store.put(name, name)
    assert len(list(cache.iterdir())) == 3
    assert store.get("e") == "e"

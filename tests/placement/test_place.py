"""Placement on the graphs that the runtime really makes, with a clock that says what each kernel takes."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from graphopt.measurement import Target
from graphopt.pipeline.runner import Candidate, Hold
from graphopt.placement import conversions, place
from graphopt.placement.place import Placer, Unplaceable
from graphopt.placement.units import narrowing
from tests.placement.nets import TARGET, Bench, clock, mixed

NAME = "quantize-static"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(conversions, "_SECONDS", 0.02)
    monkeypatch.setattr(conversions.Conversions, "ms", lambda self, kind, shape: 0.2 if kind.endswith("quantize") else 0.0)


def kernel_ms(kernel) -> float:
    """A convolution takes 1 ms in float and 0.5 on integers, a conversion 0.2."""
    return {
        "Conv": 1.0, "FusedConv": 1.0, "QLinearConv": 0.5, "Gemm": 1.0, "QGemm": 0.3, "QuantizeLinear": 0.2, "DequantizeLinear": 0.2,
        "Elu": 0.1, "Exp": 0.1, "Add": 0.1, "QLinearAdd": 0.05,
    }.get(kernel.operator.split("::")[-1], 0.01)  # fmt: skip


def candidates(bench: Bench) -> tuple[Candidate, Candidate, dict]:
    full = bench.build()
    return bench.build(Hold(passes=frozenset({NAME}))), full, narrowing(full, [NAME])


def placed(bench: Bench, monkeypatch: pytest.MonkeyPatch, ms=kernel_ms):
    monkeypatch.setattr(place, "time_kernels", clock(ms))
    plain, full, applications = candidates(bench)
    placer = Placer(bench.keep, bench.feeds(), TARGET)
    return placer, placer.place(plain, full, applications), {a.label: n for n, a in applications.items()}


def traced(bench: Bench, hold: frozenset[int], ms=kernel_ms) -> float:
    path = bench.keep(bench.build(Hold(applications=hold)))
    (timing,) = clock(ms)([path], {})
    return timing.run_ms


def test_everything_where_everything_gains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(mixed(), tmp_path)
    _, found, _ = placed(bench, monkeypatch)
    assert found.hold == frozenset()
    assert all(unit.narrow and unit.saves_ms > 0 for unit in found.units)
    assert found.predicted_ms["all"] == found.predicted_ms["placed"] < found.predicted_ms["float"]
    assert found.predicted_ms["all"] == pytest.approx(traced(bench, frozenset()), rel=0.02)


def test_what_conversions_cost_more_than_they_save_stays_in_float(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def ms(kernel) -> float:
        return 0.3 if kernel.operator in ("QuantizeLinear", "DequantizeLinear") else kernel_ms(kernel)

    bench = Bench(mixed(), tmp_path)
    placer, found, number = placed(bench, monkeypatch, ms)
    assert found.hold == {number["lone"], number["two"]}
    units = {unit.label: unit for unit in found.units}
    assert units["lone"].why == "conversions would cost what its kernel saves"
    assert units["lone"].saves_ms == pytest.approx(1.0 - 0.5 - 0.3 - 0.3, abs=0.05)
    assert units["b"].why == "faster on integers"
    assert (units["b"].float_ms, units["b"].narrow_ms) == pytest.approx((1.0, 0.5), abs=0.05)
    # Beside all choices of units: what the runtime makes of each, by the same clock.
    everything = frozenset(number.values())
    all_ms = {hold: traced(bench, frozenset(hold), ms) for n in range(3) for hold in itertools.combinations(sorted(everything), n)}
    assert traced(bench, found.hold, ms) == min(all_ms.values())
    assert found.predicted_ms["placed"] == pytest.approx(traced(bench, found.hold, ms), rel=0.03)
    refined, seen_ms = placer.refine(bench.build(Hold(applications=found.hold)), bench.build())
    assert refined.hold == found.hold
    assert seen_ms == pytest.approx(traced(bench, found.hold, ms))
    assert placer.settled(found).saves[number["lone"]] == pytest.approx(found.saves[number["lone"]], abs=0.1)


def test_a_kernel_that_loses_stays_in_float(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(mixed(), tmp_path)
    _, found, number = placed(bench, monkeypatch, lambda k: 3.0 if k.operator.endswith("QGemm") else kernel_ms(k))
    assert found.hold == {number["g"]}
    unit = next(u for u in found.units if u.label == "g")
    assert unit.why == "its kernel is slower on integers"
    assert unit.narrow_ms == pytest.approx(3.0, abs=0.1)
    assert unit.saves_ms == pytest.approx(1.0 - 3.0 - 0.2, abs=0.1)


def test_nothing_where_integers_lose(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def ms(kernel) -> float:
        return 5.0 if "QLinear" in kernel.operator or "QGemm" in kernel.operator else kernel_ms(kernel)

    bench = Bench(mixed(), tmp_path)
    _, found, number = placed(bench, monkeypatch, ms)
    assert found.hold == frozenset(number.values())
    assert found.predicted_ms["placed"] == found.predicted_ms["float"]


def test_figures_of_an_earlier_run_are_not_taken_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[int] = []
    monkeypatch.setattr(place, "time_kernels", clock(kernel_ms, taken))
    found = []
    for _ in range(2):
        bench = Bench(mixed(), tmp_path / str(len(found)))
        bench.folder.mkdir()
        found.append(Placer(bench.keep, bench.feeds(), TARGET).place(*candidates(bench)))
    assert taken == [2]
    assert found[0] == found[1]
    bench = Bench(mixed(), tmp_path)
    Placer(bench.keep, bench.feeds(), Target("cpu", "another machine", 1, "avx512-vnni")).place(*candidates(bench))
    assert taken == [2, 2]


def test_where_kernels_cannot_be_told_apart_nothing_is_placed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(mixed(), tmp_path)
    plain, full, applications = candidates(bench)
    monkeypatch.setattr(place.runtime, "resolve_provider", lambda name: "CUDAExecutionProvider")
    with pytest.raises(Unplaceable, match="not known on cuda"):
        Placer(bench.keep, bench.feeds(), Target("cuda", "a GPU", 1, "sm_90")).place(plain, full, applications)
    monkeypatch.undo()
    monkeypatch.setattr(place, "_LARGEST", 1000)
    with pytest.raises(Unplaceable, match="too large"):
        Placer(bench.keep, bench.feeds(), TARGET).place(plain, full, applications)


def test_real_clocks_agree_on_what_there_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(place, "_SECONDS", (0.2, 0.2))
    bench = Bench(mixed(), tmp_path)
    found = Placer(bench.keep, bench.feeds(), TARGET).place(*candidates(bench))
    assert len(found.units) == 7
    assert all(unit.float_ms >= 0 and unit.narrow_ms >= 0 for unit in found.units)
    assert sum(unit.float_ms for unit in found.units) < 1.5 * found.predicted_ms["float"]
    assert found.predicted_ms["placed"] <= 1.05 * min(found.predicted_ms["float"], found.predicted_ms["all"])

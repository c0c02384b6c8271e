"""The comparison of quantizers: figures of quality, scores, what is kept between runs, and what the tables say."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import numpy as np
import pytest

from benchmarks.quantization import cases, data, metrics, quality, table, tasks, tools
from benchmarks.quantization.measure import Model
from benchmarks.quantization.results import Results, digest
from benchmarks.quantization.tools import TOOLS, Run

# --- quality --------------------------------------------------------------------------------------------------------


def outputs(*rows: list[float]) -> list[dict[str, np.ndarray]]:
    return [{"y": np.array([row], np.float32)} for row in rows]


def test_agreement_with_the_float_model() -> None:
    near = quality.agreement(outputs([3, 4], [0, 1]), outputs([4, 3], [0, 1]), "y")
    assert near.cosine == pytest.approx((24 / 25 + 1) / 2)
    assert near.snr == pytest.approx(10 * math.log10(26 / 2))
    assert near.top1 == 0.5
    same = quality.agreement(outputs([1, 2]), outputs([1, 2]))
    assert (same.cosine, same.snr, same.top1) == (pytest.approx(1), math.inf, None)


def test_the_worst_output_counts() -> None:
    expected = [{"a": np.ones(3), "b": np.array([1.0, 0.0])}]
    near = quality.agreement(expected, [{"a": np.ones(3), "b": np.array([0.0, 1.0])}])
    assert near.cosine == 0 and near.snr == pytest.approx(-10 * math.log10(2))


@pytest.mark.parametrize("wrong", [[np.nan, 1.0], [1.0, 1.0, 1.0]])
def test_what_is_not_finite_or_has_another_shape_agrees_in_nothing(wrong: list[float]) -> None:
    near = quality.agreement(outputs([1, 2]), outputs(wrong))
    assert (near.cosine, near.snr) == (-1, -math.inf)
    assert quality.loss(None, None, near) == 2


def test_cosine_of_zeros() -> None:
    zero, one = np.zeros(2), np.ones(2)
    assert quality.cosine(zero, zero) == 1 and quality.cosine(zero, one) == 0


@pytest.mark.parametrize(
    ("before", "after", "cosine", "lost"),
    [(0.8, 0.6, 0.9, 0.25), (0.8, 0.9, 0.9, 0), (None, None, 0.9, 0.1), (0.8, math.nan, 1.0, 1)],
)
def test_loss(before: float | None, after: float | None, cosine: float, lost: float) -> None:
    assert quality.loss(before, after, quality.Agreement(cosine, 20.0)) == pytest.approx(lost)


# --- scores ---------------------------------------------------------------------------------------------------------


def test_greedy_ctc() -> None:
    frames = np.eye(5)[[0, 1, 1, 0, 1, 2, 4, 4, 3, 0]]
    assert tasks.read_text(frames, ["a", "b", "c"]) == "aab c"
    assert tasks.letters_right("aab c", "abc") == 3
    assert tasks.letters_right("", "abc") == 0


def test_tones_have_the_pitch_that_they_are_said_to_have() -> None:
    waves, pitches = data.tones("evaluation", 4, 1.0, 16000)
    for wave, pitch in zip(waves, pitches, strict=True):
        later = wave[round(16000 / pitch) :]
        assert np.corrcoef(wave[: len(later)], later)[0, 1] > 0.95
    assert not np.allclose(pitches, data.tones("calibration", 4, 1.0, 16000)[1])


def test_pitch_is_read_from_where_the_salience_is() -> None:
    pitches = iter(data.tones("validation", 32, 0.256, 16000)[1])

    def run(fed: dict, off: float = 0) -> dict:
        cents = 1200 * np.log2(next(pitches) / 10) + off
        bins = np.arange(360) * 20 + 1997.3794084376191
        return {"salience": np.tile(np.exp(-(((bins - cents) / 25) ** 2)), (len(fed["frames"]), 1))}

    assert tasks.PITCH.score(run, "validation", run) == 1
    pitches = iter(data.tones("validation", 32, 0.256, 16000)[1])
    assert tasks.PITCH.score(lambda fed: run(fed, 100), "validation", run) == 0


def test_sentences_are_to_find_their_paraphrase(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "data").mkdir()
    ids = np.array([[1, 2, 0], [3, 4, 0], [5, 6, 7], [8, 0, 0]])
    np.savez(tmp_path / "data" / "sentences.npz", evaluation=ids, evaluation_label=1)
    monkeypatch.setenv("GRAPHOPT_QUANTIZATION_WORK", str(tmp_path))
    data.collected.cache_clear()
    table_of = {1: [1.0, 0.1], 3: [1.0, 0.2], 5: [0.0, 1.0], 8: [-1.0, 0.0]}

    def run(fed: dict) -> dict:
        first = int(fed["input_ids"][0, 0])
        return {"last_hidden_state": np.tile(table_of[first], (1, fed["input_ids"].shape[1], 1))}

    task = tasks.sentences(kinds=False)
    assert [fed["input_ids"].shape[1] for fed in task.feeds("evaluation", run)] == [2, 2, 3, 1]
    assert task.score(run, "evaluation", run) == 1
    table_of[3] = [-1.0, 0.1]
    assert task.score(run, "evaluation", run) == 0
    data.collected.cache_clear()


def test_samples_of_the_splits_are_not_the_same() -> None:
    case = cases._digits()
    calibration, validation, evaluation = (
        {image.tobytes() for fed in case.task.feeds(split, lambda fed: {}) for image in fed["image"]} for split in data.SPLITS
    )
    assert not calibration & validation and not calibration & evaluation and not validation & evaluation


def test_metrics_are_named_after_models() -> None:
    from graphopt import runtime

    session = runtime.session(cases._digits().path(), threads=1)
    assert metrics.digits(lambda fed: runtime.run(session, fed)) == pytest.approx(1.0, abs=0.02)
    with pytest.raises(AttributeError):
        _ = metrics.nonsense
    with pytest.raises(AttributeError):
        _ = metrics.vit_s_focus  # a model without a score


# --- what is kept ---------------------------------------------------------------------------------------------------


def test_results_outlive_a_run_that_was_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "sub" / "results.jsonl"
    Results(path).add("speed", "m", "tool", 2, ratio=1.5)
    with path.open("a") as file:
        file.write('{"key": ["speed", "m"')
    again = Results(path)
    assert again.get("speed", "m", "tool", 2)["ratio"] == 1.5 and again.get("speed", "m", "tool", 1) is None
    again.add("speed", "m", "tool", 1, ratio=1.2)
    again.add("speed", "m", "tool", 2, ratio=1.6)
    third = Results(path)
    assert [third.get("speed", "m", "tool", t)["ratio"] for t in (1, 2)] == [1.2, 1.6]


def test_a_model_is_made_scored_and_timed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case, tool, ran = cases._digits(), TOOLS["ort_static"], []

    def copied(tool, case, calibration, target, **_):
        ran.append(sorted(path.name for path in calibration.iterdir())[:2])
        shutil.copy(case.path(), target)
        return Run("ok", 1.0)

    monkeypatch.setattr(tools, "run", copied)
    timed = []
    monkeypatch.setattr("benchmarks.quantization.measure.race", lambda contenders, **_: timed.append(len(contenders)) or [_Speed()])
    for _ in range(2):
        model = Model(case, tmp_path, Results(tmp_path / "results.jsonl"))
        model.make(tool, python=Path("python"), threads=1, timeout=1)
        assert model.judge(tool)["loss"] == 0 and model.judge(tool)["cosine"] == pytest.approx(1)
        model.time([tool], 2, 0.1)
    assert ran == [["000.npz", "001.npz"]] and timed == [2]
    row = model.row([tool, TOOLS["nncf"]], [1, 2])
    assert row["tools"]["ort_static"]["speed"][2]["ratio"] == 1.5 and list(row["tools"]["ort_static"]["speed"]) == [2]
    assert row["tools"]["ort_static"]["quality"]["float"]["Conv"] == 9 and "nncf" not in row["tools"]
    monkeypatch.setattr(tools, "fingerprint", lambda tool: "another version")
    model.make(tool, python=Path("python"), threads=1, timeout=1)
    assert len(ran) == 2


class _Speed:
    ratio, low, high, before_ms, after_ms, pairs = 1.5, 1.4, 1.6, 3.0, 2.0, 9


def test_a_result_that_does_not_run_is_said_to_be_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case, tool = cases._digits(), TOOLS["nncf"]

    def wrote_nonsense(tool, case, calibration, target, **_):
        target.write_bytes(b"")
        return Run("ok", 1.0)

    monkeypatch.setattr(tools, "run", wrote_nonsense)
    model = Model(case, tmp_path, Results(tmp_path / "results.jsonl"))
    model.make(tool, python=Path("python"), threads=1, timeout=1)
    assert model.judge(tool)["fault"]
    model.time([tool], 1, 0.1)
    assert model.row([tool], [1])["tools"]["nncf"]["speed"] == {}


def test_digests(tmp_path: Path) -> None:
    file = tmp_path / "f"
    file.write_text("a")
    first = digest(file, "x")
    file.write_text("b")
    assert digest(file, "x") != first and digest("x") != digest("y")


# --- tools ----------------------------------------------------------------------------------------------------------


def test_every_tool_is_run_by_the_script_in_the_other_environment() -> None:
    script = tools.RUN_TOOL.read_text(encoding="utf-8")
    for tool in TOOLS.values():
        assert tool.preset is not None or f"\ndef {tool.name}(source, target, folder, architecture)" in script
    assert tools.fingerprint(TOOLS["nncf"]) != tools.fingerprint(TOOLS["olive"])


def test_command_lines() -> None:
    case = cases._digits()

    def line(name: str) -> str:
        return " ".join(tools.command(TOOLS[name], case, Path("samples"), Path("out.onnx"), Path("python"), 1))

    assert line("nncf").startswith("python") and " nncf " in line("nncf") and "samples" in line("nncf")
    assert "--preset int8 " in line("graphopt_int8") and "--calibration samples" in line("graphopt_int8")
    assert line("graphopt_int8").endswith("--budget 0.01 --metric benchmarks.quantization.metrics:digits")
    assert "--budget" not in line("graphopt") and "--calibration" not in line("graphopt")  # the default would turn samples down
    assert tools.COSINE == "cos:0.99"


def test_what_is_quantized_already_is_for_graphopt_alone() -> None:
    known = {case.name: case for case in cases.cases(None)}
    quantized = known["minilm_l6_int8"]
    assert [name for name, tool in TOOLS.items() if tools.applies(tool, quantized)] == ["graphopt", "graphopt_int8"]
    assert tools.applies(TOOLS["ort_dynamic_matmul"], known["minilm_l6_fp32_dynamo"])
    assert not tools.applies(TOOLS["ort_dynamic_matmul"], known["effnet_lite0_dynamo"])


# --- tables ---------------------------------------------------------------------------------------------------------


def result(ratio: float, lost: float = 0.0, spread: float = 0.01, **more) -> dict:
    near = {"cosine": 1 - lost / 2, "snr": 30.0, "top1": None, "score": 1 - lost, "loss": lost}
    speed = {1: {"ratio": ratio, "low": ratio - spread, "high": ratio + spread}}
    return {"status": "ok", "error": "", "notes": "", "bytes": 25, "quality": near, "speed": speed, **more}


CRASH = {"status": "crash", "error": "no", "notes": "", "bytes": None, "quality": None, "speed": {}}


def row(name: str = "m", headline: bool = True, **by_tool: dict) -> dict:
    return {"model": name, "kind": "cnn", "headline": headline, "what": "", "float": {"score": 1.0, "bytes": 100}, "tools": by_tool}


def test_cells() -> None:
    found = row(ort_static=result(1.5, 0.2), nncf=CRASH, olive=result(2, 0.004, spread=0.5), graphopt=result(1.1))
    assert table.speeds([found], [1]).splitlines()[-1] == (
        "| m | 1.000 | 1.50; **20.0 %, 0.900** | **crash** | ~2.00; 0.4 %, 0.998 | 1.10 |"
    )
    fault = row(ort_static={**result(1), "quality": {"fault": "no kernel"}})
    assert "**does not run**" in table.speeds([fault], [1])
    assert "ort_static: no kernel" in table.remarks([fault])


def test_a_collapsed_or_missing_result_is_worth_the_float_model() -> None:
    assert table.usable(result(3.0, 0.5), 1) == 1
    assert table.usable(CRASH, 1) == 1 and table.usable(None, 1) == 1
    assert table.usable(result(0.5), 1) == 0.5  # slower is what its user gets
    assert table.usable(result(2.0), 2) is None


def test_the_best_peer_is_within_the_budget() -> None:
    found = row(ort_static=result(3.0, 0.5), nncf=result(1.4), olive=result(0.9), graphopt_int8=result(5.0))
    assert table.best_peer(found, 1) == ("nncf", 1.4)
    assert table.best_peer(row(ort_static=result(3.0, 0.5), olive=result(0.9)), 1) == ("float", 1.0)
    assert table.best_of_ours(found, 1) == 5.0


def test_geometric_means_are_over_the_headline_models() -> None:
    rows = [
        row(ort_static=result(4.0), graphopt_int8=result(2.0)),
        row(ort_static=result(4.0, 0.5), graphopt_int8=result(2.0)),
        row(headline=False, ort_static=result(9.0), graphopt_int8=result(0.5)),
    ]
    lines = table.summary(rows, [1]).splitlines()
    assert "| ort_static | 3 | 0 | 1 | 0 | 4.00 / 2.00 |" in lines
    assert "| graphopt_int8 | 3 | 0 | 0 | 1 | 2.00 / 2.00 |" in lines
    assert lines[-2] == "| best other tool, by hindsight |  |  |  |  | 2.00 |"
    assert math.isnan(table.geometric_mean([])) and table.geometric_mean([1, 4]) == pytest.approx(2)


@pytest.mark.parametrize(
    ("mine", "said"),
    [
        (result(2.0), []),
        (result(2.0, 0.02), ["m, graphopt_int8: loses 2.0 % (cosine 0.990), silently"]),
        (result(2.0, 0.02, notes="warning: beyond the budget"), ["m, graphopt_int8: loses 2.0 % (cosine 0.990)"]),
        (result(0.9), ["m, graphopt_int8: 1 threads: 0.90 (0.89 to 0.91) of float"]),
        (result(1.5), ["m, graphopt_int8: 1 threads: 1.50 (to 1.51); ort_static has 2.00"]),
        (result(1.97, spread=0.03), []),
        (CRASH, ["m, graphopt_int8: no"]),
    ],
)
def test_what_falls_short(mine: dict, said: list[str]) -> None:
    found = row(ort_static=result(2.0), nncf=result(5.0, 0.5), graphopt_int8=mine)
    assert table.shortfalls([found], [1]) == said


def test_sizes_and_kernels() -> None:
    near = {**result(2)["quality"], "integer": {"QLinearConv": 4}, "float": {"LSTM": 1}, "conversions": 3}
    found = row(ort_static=CRASH, graphopt_int8=result(2, quality=near))
    assert table.sizes([found]).splitlines()[-1] == "| m | 100 |  | 0.25 |"
    assert table.kernels([found]).splitlines()[-1] == "| m | 4 QLinearConv | 1 LSTM | 3 |"
    assert table.kernels([row(graphopt_int8=CRASH)]) == ""
    assert "falls short nowhere" in table.report([found], [1], {"isa": "AVX"})

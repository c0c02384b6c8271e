# ruff: noqa: RUF001  (typography that a reader sees)
"""The report as a person sees it."""

import io
import re

import pytest

from graphopt.reporting import PassRecord, Refusal, words
from graphopt.reporting.terminal import print_report, render

GOLDEN = """\
Model       models/effnet.onnx (opset 17)
Target      cpu, AMD EPYC, 2 threads, avx2

Pass                             Effect    Applied  Refused        Nodes    Time
fold-constants                   exact       1,410             613 → 203   1.2 s
fuse-conv-bn                     rounding       49       13    203 → 154   34 ms
eliminate-common-subexpressions  exact           3              154 → 94   10 ms
quantize-weights                 lossy           9           rolled back  500 ms
my-pass                          exact           0                failed    1 ms
No change   eliminate-identity, infer-shapes, inline-functions,
            merge-equal-initializers, flush-denormals
            quantize-weights: output 'logits' off by 0.3
            my-pass: ValueError: [/red] no such axis

Refused     matches that a guard turned down
            fuse-conv-bn
              12 × Conv output has several consumers (e.g. node 'c0')
              1 × BatchNormalization in training mode (node 'b<1> [bold]')

Verified    equivalent: outputs differ by rounding only; 4 samples, 2 sizes
Worst error 3.2e-06, relative 1.2e-05, cosine 0.999999 (output 'logits')
Speed       1.23x faster (1.21–1.25, 40 pairs, 2 threads)
            46.6 ms → 37.9 ms a run; 210 ms → 80 ms to make a session
Size        18.9 MB → 18.7 MB (−1.1 %)
Nodes       613 → 94 (−84.7 %)
Parameters  4,630,000, as before
Quality     accuracy 0.9806 → 0.9806 (360 samples)
Time        load 30 ms, passes 1.9 s, verify 4.2 s, bench 6.0 s, save 40 ms
Written to  models/a/rather/deep/folder/for/the/results/of/this/run/effnet.optimized.onnx
Note        the batch size is dynamic
Warning     the output 'aux' is constant on every sample
            <script>alert(1)</script>, which proves nothing of it
"""


def test_golden(report):
    assert render(report) == GOLDEN


def test_piped_it_is_plain_and_80_wide(report):
    out = io.StringIO()
    print_report(report, out)
    assert out.getvalue() == GOLDEN
    assert all(len(line) <= 80 for line in GOLDEN.splitlines() if "effnet.optimized" not in line)


def test_a_terminal_gets_colours_and_the_same_words(report, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.delenv("NO_COLOR", raising=False)
    out = Terminal()
    print_report(report, out, width=80)
    assert "\x1b[" in out.getvalue()
    bare = re.sub(r"\x1b\[[0-9;]*m", "", out.getvalue())
    assert [line.rstrip() for line in bare.splitlines()] == GOLDEN.splitlines()
    monkeypatch.setenv("NO_COLOR", "1")
    out = Terminal()
    print_report(report, out, width=80)
    assert "\x1b[" not in out.getvalue()


def test_an_output_without_unicode(report):
    raw = io.BytesIO()
    out = io.TextIOWrapper(raw, encoding="ascii", write_through=True)  # kept: its end would close `raw`
    print_report(report, out)
    text = raw.getvalue().decode("ascii")
    assert "613 -> 94 (-84.7 %)" in text and "12 x Conv" in text and "(1.21-1.25, 40" in text


def test_nothing_verified_measured_or_written(report):
    report.verification = report.speed = report.quality = report.output = None
    report.passes = []
    text = render(report)
    assert "Verified    not verified (switched off)" in text
    assert "Speed       not measured" in text
    assert "Written to  nothing was written" in text
    assert "Pass " not in text and "Refused" not in text


def test_a_failing_output_is_named(report):
    report.verification["verdict"] = "different"
    report.verification["outputs"] += [
        {"name": "boxes", "max_abs": float("nan"), "max_rel": float("nan"), "cosine": float("nan"), "ok": False},
        {"name": "label", "max_abs": None, "max_rel": None, "cosine": None, "ok": False},
        {"name": "mask", "max_abs": None, "ok": False, "reason": "NaN where the original has none"},
    ]
    text = render(report)
    assert "different: outputs differ by more than is allowed" in text
    assert "Worst error nan, relative nan, cosine nan (output 'boxes')" in text
    for line in ("output 'boxes' differs by nan\n", "output 'label' differs\n", "output 'mask': NaN where the original has none\n"):
        assert line in text


def test_what_verification_covered():
    sizes = [{"x": [1, 3]}, {"x": [2, 3]}]
    text = words.verdict({"verdict": "identical", "samples": 1, "sizes": sizes, "exercised": 0.999})
    assert text == "identical: every output is the same bit for bit; 1 sample, 2 sizes; 99 % of the graph exercised"
    assert words.verdict({"verdict": "unverified", "samples": 0, "sizes": []}) == "unverified: nothing was proved"


def test_control_characters_in_names_do_not_reach_the_terminal(report):
    report.notes = ["node '\x1b[2J\x07evil'"]
    assert "\x1b" not in render(report) and "evil" in render(report)


@pytest.mark.parametrize(
    ("figures", "text"),
    [
        ((1.234, 1.21, 1.25), "1.23x faster (1.21–1.25, 40 pairs, 2 threads)"),
        ((0.8, 0.75, 0.85), "1.25x slower (1.18–1.33, 40 pairs, 2 threads)"),
        ((1.01, 0.99, 1.03), "no measurable change (1.01x, 0.99–1.03, 40 pairs, 2 threads)"),
        ((1.01, None, None), "no measurable change (1.01x, no interval, 40 pairs, 2 threads)"),
    ],
)
def test_speed_in_words(figures, text):
    assert words.speed(dict(zip(("ratio", "low", "high"), figures, strict=True), pairs=40), 2) == text


def test_speed_judged_by_the_stage_that_measured():
    figures = {"ratio": 1.002, "low": 1.001, "high": 1.003, "pairs": 1, "faster": False, "slower": False}
    assert words.speed(figures, 1) == "no measurable change (1.00x, 1.00–1.00, 1 pair, 1 thread)"


@pytest.mark.parametrize(
    ("bytes_", "text"),
    [
        (None, "?"),
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (123_456, "123 kB"),
        (999_600, "1.0 MB"),
        (18_912_345, "18.9 MB"),
        (2_500_000_000, "2.50 GB"),
    ],
)
def test_sizes(bytes_, text):
    assert words.size(bytes_) == text


def test_refusals_beyond_the_most_frequent_reasons_are_counted():
    refused = [Refusal(f"n{i}", f"reason {i % 9}") for i in range(20)]
    lines = words.refusals(PassRecord("p", "exact", 0, refused, 1, 1, 0.0, "no-change"), most=2)
    assert lines == [
        "3 × reason 0 (e.g. node 'n0')",
        "3 × reason 1 (e.g. node 'n1')",
        "14 × for 7 other reasons (all of them are in the JSON report)",
    ]


@pytest.mark.parametrize(("value", "text"), [(1.0, "1"), (0.99999999, "0.999999"), (0.5, "0.500000"), (-0.25, "-0.250000")])
def test_a_cosine_is_never_rounded_up(value, text):
    assert words.cosine(value) == text


SETTINGS = {
    "graph_optimization_level": "extended",
    "disabled_optimizers": ["A", "B"],
    "intra_op_num_threads": 1,
    "config": {"session.intra_op.allow_spinning": "0"},
}
INTERVAL = {"low": 1.05, "high": 1.1, "pairs": 40}


def test_settings_of_the_session(report):
    report.extra["session"] = {"file": "m.session.json", "settings": SETTINGS, "ratio": 1.08} | INTERVAL
    shown = " ".join(render(report, width=300).split())
    assert (
        "Session 1.08x faster still (1.05–1.10, 40 pairs) with the settings in m.session.json: "
        "A, B off; optimization level extended; 1 thread; session.intra_op.allow_spinning = 0"
    ) in shown


@pytest.mark.parametrize(
    ("figures", "says"),
    [
        ({"ratio": 1.08, "faster": True} | INTERVAL, "preset other: 1.08x faster than this result (1.05–1.10, 40 pairs)"),
        ({"ratio": 0.5, "slower": True, "low": 0.4, "high": 0.6, "pairs": 1},
         "preset other: 2.00x slower than this result (1.67–2.50, 1 pair)"),
        ({"ratio": 1.0, "low": 0.99, "high": 1.01, "pairs": 9, "faster": False}, "preset other: no measurable change (1.00x, 0.99–1.01)"),
        ({"ratio": 1.0, "low": 1.0, "high": 1.0, "pairs": 0}, "preset other: no change, the runtime ends with the same graph"),
        ({"ratio": None, "low": None, "high": None, "pairs": 0}, "preset other: different"),
    ],
)
def test_other_presets(report, figures, says):
    report.extra["alternatives"] = [{"preset": "other", "verdict": "different" if figures["ratio"] is None else "identical"} | figures]
    assert f"Alternative {says}\n" in render(report, width=200)

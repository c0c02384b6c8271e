"""What is told of the precision of a result, in lines and in pictures."""

from __future__ import annotations

import re
from typing import Any
from xml.etree import ElementTree

from graphopt.reporting import Report, html, precision, terminal
from tests.reporting.test_html import parsed


def unit(number: int, node: str, kind: str = "int8", noise: float | None = 0.01, **more: Any) -> dict[str, Any]:
    alone = {"snr": 20.0 - number, "cosine": 0.99, "top1": 1.0, "metric": None, "loss": None, "fault": "", "noise": noise}
    return {
        "application": number, "pass": "quantize-static", "node": node, "operator": "Conv", "precision": kind, "why": "within the budget",
        "alone": alone, "grouped": False, "saves": 2.0, "float_ms": None, "narrow_ms": None,
    } | more  # fmt: skip


def point(held: int, saved: float, snr: float | None, inside: bool) -> dict[str, Any]:
    figures = {"snr": snr, "cosine": 0.98765, "top1": 0.5, "metric": None, "loss": None, "fault": ""}
    return {"back_in_float": held, "saved": saved, "inside": inside, **figures}


def story(**more: Any) -> dict[str, Any]:
    broken = {"snr": None, "cosine": 0.0, "top1": None, "metric": None, "loss": None, "fault": "NaN", "noise": None}
    units = [
        unit(1, "<first>"),
        unit(2, "second", "float", 0.5, why="went back to float for the budget"),
        unit(3, "third", alone=broken),
    ]
    worst = {"node": "second", "operator": "Conv", "weight": {"name": "w", "low": -1.5, "high": 2.5, "counts": [4, 0, 100]},
             "activations": [{"name": "x & y", "low": 0.0, "high": 9.0, "counts": [1, 2, 3]}]}  # fmt: skip
    return {
        "budget": "30dB", "judged_by": "outputs", "searched": True, "complete": True, "seconds": 1.0, "from_journal": 0,
        "saves_unit": "multiplications", "predicted_ms": None, "units": units, "worst": [worst],
        "quality": {"snr": 31.26, "cosine": 0.99969, "top1": 0.984, "fault": ""},
        "curve": [point(0, 1.0, 12.0, False), point(1, 0.75, 31.0, True), point(3, 0.0, None, True)],
    } | more  # fmt: skip


def test_in_lines() -> None:
    assert precision.lines(story()) == [
        ("Precision", "2 of 3 units narrow (2 int8); in float: 1 went back to float for the budget"),
        ("Budget", "30dB of the outputs: 31.3 dB, cosine 0.9996, top-1 agreement 98.4 %"),
        ("Costliest", "third (Conv, int8): breaks the outputs, saves 33.3 % of the multiplications"),
        ("", "second (Conv, float): 18.0 dB alone, saves 33.3 % of the multiplications"),
        ("", "<first> (Conv, int8): 19.0 dB alone, saves 33.3 % of the multiplications"),
    ]


def test_measured_times() -> None:
    timed = story(saves_unit="ms", units=[unit(1, "c", saves=0.123, float_ms=0.5, narrow_ms=0.25)])
    assert precision.lines(timed)[2][1] == "c (Conv, int8): 19.0 dB alone, saves 0.123 ms"
    assert "<td>0.5 ms</td><td>0.25 ms</td>" in precision.html(timed)


def test_nothing_to_tell() -> None:
    assert precision.lines(None) == []
    assert precision.html(None) == ""
    assert precision.html(story(units=[])) == ""


def test_pictures_are_well_formed_and_hold_every_figure() -> None:
    page = precision.html(story())
    pictures = [ElementTree.fromstring(svg) for svg in re.findall(r"<svg.*?</svg>", page, re.DOTALL)]
    curve, weight, activation = pictures
    name = "{http://www.w3.org/2000/svg}"
    circles = curve.findall(f"{name}circle")
    assert len(circles) == 2  # what has no figure has no place
    assert float(circles[0].get("cx")) > float(circles[1].get("cx"))  # keeps more
    assert float(circles[0].get("cy")) > float(circles[1].get("cy"))  # and is worse
    assert circles[0].get("fill") != circles[1].get("fill")
    bars = weight.findall(f"{name}rect")
    assert len(bars) == 2  # an empty bin has none
    assert abs(float(bars[1].get("height")) / float(bars[0].get("height")) - 5) < 0.1  # the square root of 100 / 4
    assert len(activation.findall(f"{name}rect")) == 3
    assert [t.text for t in weight.findall(f"{name}text")] == ["weight w", "-1.5", "2.5"]
    assert "&lt;first&gt;" in page
    assert "<first>" not in page


def test_as_part_of_the_whole_report(report: Report) -> None:
    report.extra["precision"] = story()
    checker = parsed(html.render(report))
    assert checker.tags.count("svg") == 5
    assert "Precision" in checker.text
    text = terminal.render(report)
    assert "Costliest   third (Conv, int8): breaks the outputs" in text


def test_many_units_are_cut_short() -> None:
    page = precision.html(story(units=[unit(i, f"c{i}") for i in range(250)]))
    assert page.count("<tr>") == 201
    assert "and 50 further units" in page

# ruff: noqa: RUF001  (typography that a reader sees)
"""The page of HTML: well formed, self-contained, escaped."""

import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser

from graphopt.reporting.html import operators_chart, render, speed_chart


class Checker(HTMLParser):
    """Every element that is opened is closed, in order."""

    def __init__(self):
        super().__init__()
        self.open, self.tags, self.text = [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def parsed(page):
    checker = Checker()
    checker.feed(page)
    checker.close()
    assert checker.open == []
    return checker


def test_it_holds_what_the_terminal_says(report):
    text = " ".join(parsed(render(report)).text)
    for part in (
        "models/effnet.onnx", "fold-constants", "infer-shapes", "rolled back", "output 'logits' off by 0.3", "1.23x faster",
        "12 × Conv output has several consumers", "equivalent: outputs differ by rounding only", "18.9 MB → 18.7 MB",
        "accuracy 0.9806", "the batch size is dynamic", "tensor(float) [batch, 3, 224, ?]", "0.999999", "effnet.optimized.onnx",
    ):  # fmt: skip
        assert part in text, part


def test_nothing_from_outside_is_markup_or_loaded(report):
    report.model["path"] = "<img src=x onerror=alert(1)>.onnx"
    report.before["operators"]["<svg/onload=alert(1)>"] = 3
    report.passes[0].note = "</td></table><script>"
    page = render(report)
    tags = set(parsed(page).tags)
    assert not tags & {"script", "img", "link", "iframe"}
    assert "<script" not in page and "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert not re.search(r"(?:src|href)=|url\(|@import", re.sub(r"&lt;.*?&gt;", "", page))
    assert set(re.findall(r"https?://[^\s\"]*", page)) == {"http://www.w3.org/2000/svg"}


def test_an_empty_report(report):
    report.verification = report.speed = report.quality = report.output = None
    report.passes, report.notes, report.warnings = [], [], []
    report.before["operators"] = report.after["operators"] = {}
    page = render(report)
    assert "<svg" not in page and "not measured" in page
    parsed(page)


def bars(svg):
    root = ET.fromstring(svg)
    return [float(r.get("width")) for r in root.iter("{http://www.w3.org/2000/svg}rect") if r.get("y") != "4"]


def test_bars_are_to_scale():
    assert bars(operators_chart({"Cast": 300, "Conv": 49}, {"Conv": 49})) == [380.0, 0.0, 62.1, 62.1]


def test_rare_operators_are_only_counted():
    chart = operators_chart({f"Op{i}": i + 1 for i in range(30)}, {})
    assert chart.endswith('<p class="dim">and 6 rarer operators</p>')
    assert len(bars(chart.partition("<p")[0])) == 48


def test_the_interval_lies_where_it_should():
    root = ET.fromstring(speed_chart({"ratio": 1.1, "low": 1.05, "high": 1.2}).removeprefix("<br>"))
    svg = "{http://www.w3.org/2000/svg}"
    one, low_high = [(float(e.get("x1")), float(e.get("x2"))) for e in root.iter(f"{svg}line")][1:]
    ratio = float(root.find(f"{svg}circle").get("cx"))
    assert one[0] < low_high[0] < ratio < low_high[1]
    assert abs((ratio - one[0]) - 2 * (low_high[0] - one[0])) < 0.5
    assert speed_chart(None) == speed_chart({"ratio": 1.0, "low": float("nan"), "high": 1.0}) == ""

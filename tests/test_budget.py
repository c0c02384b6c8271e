"""Budgets: how they are written, what they allow."""

from __future__ import annotations

import math

import pytest

from graphopt.budget import METRIC, OUTPUTS, Budget, decibels
from graphopt.errors import OptionError
from graphopt.request import Request


@pytest.mark.parametrize(
    ("text", "budget"),
    [
        (0.05, Budget("loss", 0.05)),
        (0, Budget("loss", 0.0)),
        ("0.01", Budget("loss", 0.01)),
        ("1e-3", Budget("loss", 0.001)),
        ("1%", Budget("loss", 0.01)),
        (" 2.5 % ", Budget("loss", 0.025)),
        ("30dB", Budget("snr", 30.0)),
        ("30 db", Budget("snr", 30.0)),
        ("cos:0.99", Budget("cosine", 0.99)),
        ("cosine:0.99", Budget("cosine", 0.99)),
        ("cos=1", Budget("cosine", 1.0)),
    ],
)
def test_ways_to_write_one(text: str | float, budget: Budget) -> None:
    assert Budget.of(text) == budget
    assert Budget.of(str(budget)) == budget


BAD = ["", "much", "-1", "-30dB", "cos:1.2", "cos:-0.5", "cos", "0.1 0.2", "nan", "inf", "1e999", "30 db 2", -0.1, math.nan]


@pytest.mark.parametrize("text", BAD)
def test_what_is_none(text: str | float) -> None:
    with pytest.raises(OptionError, match="budget"):
        Budget.of(text)


def test_what_each_allows() -> None:
    """30 dB is a distance of 10^-1.5; outputs that are no floats may differ as far as the same part of their elements."""
    assert Budget("loss", 0.1).allows(0.1, 0.0, 0.1)
    assert not Budget("loss", 0.1).allows(0.11, 1.0, 0.0)
    assert not Budget("loss", 0.1).allows(0.0, 1.0, 0.11)
    assert Budget("snr", 30).allows(10**-1.5, 0.0, 0.0)
    assert not Budget("snr", 30).allows(0.032, 1.0, 0.0)
    assert Budget("cosine", 0.99).allows(math.inf, 0.99, 0.01)
    assert not Budget("cosine", 0.99).allows(0.0, 0.989, 0.0)
    for budget in (Budget("loss", 1.0), Budget("snr", 0.0), Budget("cosine", 0.0)):
        assert not budget.allows(math.nan, math.nan, 0.0)


def test_a_distance_in_decibels() -> None:
    assert decibels(0.1) == pytest.approx(20.0)
    assert decibels(0.0) == math.inf
    assert decibels(math.inf) == -math.inf


def test_what_is_accepted_where_nobody_said(tmp_path) -> None:
    model = tmp_path / "m.onnx"
    assert Request(model).accepted == OUTPUTS
    assert Request(model, metric="m:f").accepted == METRIC
    assert Request(model, metric="m:f").metric_judges
    assert not Request(model, metric="m:f", budget="30dB").metric_judges
    assert Request(model, budget="cos:0.9").accepted == Budget("cosine", 0.9)

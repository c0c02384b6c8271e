"""Attention of opset 23: which spellings become it, and which stay."""

from __future__ import annotations

import onnx
import pytest

from tests.passes.attention.spelled import Spelled
from tests.support import assert_same, ops, reasons, run_pass

NAME = "fuse-attention"


def fused(spelled: Spelled, **sizes: int) -> onnx.ModelProto:
    before = spelled.build()
    after, log = run_pass(before, NAME)
    count = ops(after)
    assert count["Attention"] == 1 and not count["Softmax"] and not count["MatMul"], reasons(log)
    for seed in range(2):
        assert_same(before, after, spelled.feeds(seed, **sizes), rtol=2e-5)
    return after


def refused(spelled: Spelled, reason: str) -> None:
    before = spelled.build()
    after, log = run_pass(before, NAME)
    assert ops(after) == ops(before)
    assert any(reason in r for r in reasons(log)), reasons(log)


@pytest.mark.parametrize("mask", ["", "table", "added-table", "compared", "trilu"])
@pytest.mark.parametrize("options", [
    {}, {"transpose": "two"}, {"transpose": "flat"}, {"scale": "both"}, {"scale": "none"}, {"flat": True}, {"merge": "rows"},
    {"merge": "none"}, {"guard": True}, {"groups": 2, "transpose": "two"}, {"split": "qkv", "transpose": "two"},
    {"size": 7, "value_size": 5},
])  # fmt: skip
def test_spellings(mask: str, options: dict) -> None:
    fused(Spelled(mask=mask, opset=23, **options))


@pytest.mark.parametrize("lengths", [("s", "t"), (1, "t")])
@pytest.mark.parametrize("groups", [4, 2])
def test_symbolic_sizes(lengths: tuple, groups: int) -> None:
    for sizes in ({"b": 1, "s": 6, "t": 3}, {"b": 3, "s": 1, "t": 4}):
        fused(Spelled(batch="b", lengths=lengths, groups=groups, transpose="two", opset=23), **sizes)


def test_causal_between_different_lengths() -> None:
    """A query sees the keys up to its own position, counted from the first key: the operator counts alike."""
    for lengths in ((3, 5), (5, 3)):
        fused(Spelled(mask="static", lengths=lengths, opset=23))


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"opset": 22}, "Attention needs opset 23, and the model has 22"),
        ({"mask": "padding"}, "may hide a row throughout"),
        ({"mask": "choice"}, "may hide a row throughout"),
        ({"extra": ("p",)}, "'p', inside it, is also needed elsewhere"),
        ({"dtype": onnx.TensorProto.DOUBLE}, "not known to be of float32"),
        ({"scale": "late", "mask": "table"}, "the scale is applied after the mask"),
    ],
)
def test_refusals(options: dict, reason: str) -> None:
    refused(Spelled(**({"opset": 23} | options)), reason)

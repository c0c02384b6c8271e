"""Attention of any query to any key: which spellings become MultiHeadAttention, and which stay."""

from __future__ import annotations

from functools import partial

import numpy as np
import onnx
import pytest

from tests.passes.attention import checks
from tests.passes.attention.spelled import LOWEST, Spelled
from tests.support import assert_same, ops, session

NAME = "fuse-multi-head-attention"
OP = "MultiHeadAttention"
MASKS = ["", "padding", "full", "heads", "matrix", "choice", "chosen"]
fused = partial(checks.fused, NAME, OP)
refused = partial(checks.refused, NAME)


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("lengths", [(5, 5), (3, 6)])
@pytest.mark.parametrize("transpose", ["one", "two", "flat"])
def test_masks(mask: str, lengths: tuple[int, int], transpose: str) -> None:
    fused(Spelled(mask=mask, lengths=lengths, transpose=transpose))


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("lengths", [("s", "s"), ("s", "t"), (1, "t")])
def test_symbolic_sizes(mask: str, lengths: tuple[str, str]) -> None:
    for sizes in ({"b": 1, "s": 6, "t": 3}, {"b": 3, "s": 1, "t": 4}):
        fused(Spelled(mask=mask, batch="b", lengths=lengths), **sizes)


@pytest.mark.parametrize("mask", ["table", "compared", "trilu-added"])
@pytest.mark.parametrize("size", [8, 6])
def test_causal(mask: str, size: int) -> None:
    fused(Spelled(mask=mask, size=size, value_size=size))


@pytest.mark.parametrize("scale", ["div", "mul", "query", "both", "none"])
@pytest.mark.parametrize("options", [{}, {"transpose": "two"}, {"flat": True}, {"merge": "rows"}, {"size": 7, "value_size": 5}])
def test_scales(scale: str, options: dict) -> None:
    fused(Spelled(scale=scale, **options))


@pytest.mark.parametrize("opset", [11, 13, 17, 21])
def test_opsets(opset: int) -> None:
    spelled = Spelled(mask="padding", opset=opset, axis=3)
    fused(spelled)
    fused(Spelled(split="qkv", transpose="two", opset=opset, axis=3))


@pytest.mark.parametrize("mask", ["choice", "chosen", "full"])
@pytest.mark.parametrize("fill", [LOWEST, float("-inf")])
def test_rows_that_are_masked_throughout(mask: str, fill: float) -> None:
    """The lowest number leaves their keys alike, -inf makes NaN of them, and a guard 0; so it stays."""
    for guard in (False, True):
        spelled = Spelled(mask=mask, fill=fill, guard=guard)
        before = spelled.build()
        after = fused(spelled)
        feeds = spelled.feeds()
        feeds["keep" if "keep" in feeds else "mask"][1, :, 2] = False if "keep" in feeds else fill
        assert_same(before, after, feeds, rtol=2e-5)
        (result,) = session(after).run(None, feeds)
        assert np.isnan(result).any() == (not guard and fill < LOWEST)


def test_a_finite_mask_needs_no_guard() -> None:
    assert ops(fused(Spelled(mask="chosen", guard=True)))["IsNaN"] == 0
    assert ops(fused(Spelled(mask="", guard=True)))["IsNaN"] == 0
    assert ops(fused(Spelled(mask="padding", guard=True)))["IsNaN"] == 1


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"groups": 2}, "its heads share keys and values"),
        ({"merge": "none"}, "not brought to heads side by side"),
        ({"mask": "choice", "fill": -1e4}, "a number that does not remove them"),
        ({"dtype": onnx.TensorProto.DOUBLE}, "not known to be of float32"),
        ({"scale": "late", "mask": "full"}, "the scale is applied after the mask"),
        ({"mask": "static", "lengths": (3, 5)}, "not known to be of one length"),
        ({"extra": ("scaled",)}, "'scaled', inside it, is also needed elsewhere"),
    ],
)
def test_refusals(options: dict, reason: str) -> None:
    refused(Spelled(**options).build(), reason)


def test_a_mask_of_several_batches_of_heads_is_refused() -> None:
    spelled = Spelled(mask="full", batch="b")
    before = spelled.build()
    next(i for i in before.graph.input if i.name == "mask").type.tensor_type.shape.dim[0].dim_param = "c"
    refused(before, "batch and heads of the mask")

"""A Softmax is spelled out where that is faster, and never fused again."""

import numpy as np
import pytest

from tests.passes.fusion.expressions import Expression, fused, refused, unmatched
from tests.support import array, assert_same

NAME = "spell-out-softmax"
PARTS = {"ReduceMax": 1, "Sub": 1, "Exp": 1, "ReduceSum": 1, "Div": 1}


def softmax(x, *, opset: int = 17, dtype: str = "float32", **attributes):
    e = Expression(dtype, opset)
    e.Softmax("x", output="y", **attributes)
    return e.model({"x": x}, ["y"])


@pytest.mark.parametrize("opset", [13, 17, 18])
@pytest.mark.parametrize(("x", "axis"), [((2, 5, 32, 32), 1), (("n", "c", 32, 32), -3), ((3, 1024), 0), ((2, 3, 40, 30), -3)])
def test_spelled_out(opset, x, axis) -> None:
    before = softmax(x, opset=opset, axis=axis)
    after = fused(NAME, before, PARTS)
    feed = 40 * array(*(3 if isinstance(d, str) else d for d in x))
    feed.reshape(-1)[:3] = np.float32(-1e30)
    assert_same(before, after, {"x": feed})
    refused("fuse-softmax", after, "not over the last axis")


@pytest.mark.parametrize(
    ("x", "attributes", "opset"),
    [
        ((2, 5, 32, 32), {}, 17), ((2, 5, 32, 32), {"axis": 3}, 17), ((2, 5, 8, 8), {"axis": 1}, 17), ((2, 5, 32, 32), {"axis": 1}, 12),
        ((2, 5, 1024), {"axis": 2}, 17),
    ],
)  # fmt: skip
def test_where_it_does_not_pay(x, attributes, opset) -> None:
    unmatched(NAME, softmax(x, opset=opset, **attributes))


def test_refusals() -> None:
    refused(NAME, softmax((1, 2, "h", "w"), axis=1), "is not known")
    refused(NAME, softmax((1, 2, 64, 64), axis=1, dtype="float64"), "float32")

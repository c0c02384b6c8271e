"""A reduction keeps or drops its dimensions as the operator behind it would have it."""

import pytest

from tests.passes.fusion.expressions import Expression, fused, refused, unmatched
from tests.support import array, assert_same

NAME = "merge-reductions-with-reshapes"
X = (2, 3, 4, 5)


def reduced(axes, keepdims, then, argument=None, *, op_type="ReduceMean", opset=17, x=X, outputs=("y",)):
    e = Expression(opset=opset)
    value = e.reduce(op_type, "x", axes, keepdims)
    if then == "Flatten":
        e.Flatten(value, output="y")
    elif then == "Reshape" or opset >= 13:
        e.op(then, value, list(argument), output="y")
    else:
        e.op(then, value, axes=list(argument), output="y")
    return e.model({"x": x}, list(outputs))


CASES = [
    ((2, 3), 1, "Flatten", None), ((2, 3), 1, "Reshape", (0, -1)), ((2, 3), 1, "Squeeze", (2, 3)), ((-1, -2), 1, "Squeeze", (-2, -1)),
    ((2, 3), 0, "Unsqueeze", (2, 3)), ((1,), 0, "Reshape", (2, 1, 4, 5)), ((1,), 1, "Reshape", (2, 4, 5)), ((0, 1, 2, 3), 1, "Reshape", ()),
]  # fmt: skip


@pytest.mark.parametrize(("axes", "keepdims", "then", "argument"), CASES)
@pytest.mark.parametrize("opset", [11, 18])
@pytest.mark.parametrize("op_type", ["ReduceMean", "ReduceMax", "ReduceSum"])
def test_merged(axes, keepdims, then, argument, opset, op_type) -> None:
    before = reduced(axes, keepdims, then, argument, op_type=op_type, opset=opset)
    assert_same(before, fused(NAME, before, {op_type: 1}), {"x": array(*X)}, exact=True)


def test_symbolic_sizes() -> None:
    before = reduced((2, 3), 1, "Reshape", (0, 3), x=("n", 3, "h", "w"))
    assert_same(before, fused(NAME, before, {"ReduceMean": 1}), {"x": array(*X)}, exact=True)


def test_arg_max() -> None:
    e = Expression(opset=13)
    e.Squeeze(e.ArgMax("x", axis=1), [1], output="y")
    before = e.model({"x": X}, ["y"], types={"y": 7})
    assert_same(before, fused(NAME, before, {"ArgMax": 1}), {"x": array(*X)}, exact=True)


@pytest.mark.parametrize(
    ("axes", "keepdims", "then", "argument"),
    [((2, 3), 1, "Squeeze", (2,)), ((2, 3), 0, "Unsqueeze", (0, 1)), ((2, 3), 1, "Reshape", (6,)), ((2, 3), 0, "Reshape", (3, 2, 1, 1))],
)
def test_other_shapes(axes, keepdims, then, argument) -> None:
    unmatched(NAME, reduced(axes, keepdims, then, argument))


def test_refusals() -> None:
    refused(NAME, reduced((2, 3), 1, "Squeeze", (2, 3), outputs=("y", "v0")), "graph output")

"""Consecutive ranges become one that answers the same everywhere: NaN, infinities and disjoint ranges included."""

import itertools

import numpy as np
import pytest

from tests.passes.fusion.expressions import Expression, refused, unmatched
from tests.support import array, assert_same, ops, reasons, run_pass

MERGE, FUSE = "merge-clips", "fuse-clip"
SPECIAL = np.array([np.nan, np.inf, -np.inf, -0.0, 0.0, 1e-40, -7, -5, -3, -1, -0.5, 0.5, 1, 2, 3, 5, 6, 7, 1e38, -1e38], "f4")
RANGES = {
    "relu": None, "0..6": (0, 6), "-5..-1": (-5, -1), "-1..1": (-1, 1),
    "2..": (2, None), "..3": (None, 3), "5..2": (5, 2), "..": (None, None),
}


def confine(e: Expression, x: str, bounds, output: str) -> str:
    if bounds is None:
        return e.Relu(x, output=output)
    low, high = bounds
    if e.opset < 11:
        given = {k: float(v) for k, v in (("min", low), ("max", high)) if v is not None}
        return e.Clip(x, output=output, **given)
    inputs = ["" if low is None else float(low), "" if high is None else float(high)]
    while inputs and inputs[-1] == "":
        inputs.pop()
    return e.Clip(x, *inputs, output=output)


def chain(first, second, *, opset=17, dtype="float32", **kwargs):
    e = Expression(dtype, opset)
    confine(e, confine(e, "x", first, "m"), second, "y")
    return e.model({"x": ("n",)}, ["y"], **kwargs)


@pytest.mark.parametrize(("first", "second"), list(itertools.product(RANGES, RANGES)))
@pytest.mark.parametrize("opset", [10, 17])
def test_every_pair_of_ranges(first, second, opset) -> None:
    if opset == 10 and "5..2" in (first, second):
        return  # the runtime has no such Clip
    before = chain(RANGES[first], RANGES[second], opset=opset)
    if first == "-5..-1" and second in ("relu", "0..6"):
        refused(MERGE, before, "its sign would change")  # 0.0 becomes -0.0 where x is -0.0
        return
    after, log = run_pass(before, MERGE)
    assert log.applied == 1 and ops(after).total() == 1, reasons(log)
    assert ops(after)["Relu"] == (first == second == "relu")
    assert_same(before, after, {"x": np.concatenate([SPECIAL, array(40) * 5])}, exact=True)


@pytest.mark.parametrize("dtype", ["float64", "float16"])
def test_types(dtype) -> None:
    before = chain((-1, 4), None, dtype=dtype)
    after, log = run_pass(before, MERGE)
    assert log.applied == 1 and ops(after) == {"Clip": 1}
    with np.errstate(over="ignore"):
        assert_same(before, after, {"x": SPECIAL.astype(dtype)}, exact=True)


def test_three_in_a_row() -> None:
    e = Expression()
    confine(e, e.Relu(confine(e, "x", (-1, 6), "a")), (None, 4), "y")
    before = e.model({"x": ("n",)}, ["y"])
    after, _ = run_pass(before, MERGE)
    assert ops(after) == {"Clip": 1}
    assert_same(before, after, {"x": SPECIAL}, exact=True)


def test_refusals() -> None:
    refused(MERGE, chain((-5, 0), None), "its sign would change")
    e = Expression()
    e.Neg(confine(e, "x", (0, 6), "m"), output="z")
    confine(e, "m", None, "y")
    refused(MERGE, e.model({"x": (3,)}, ["y", "z"]), "2 consumers")
    e = Expression()
    confine(e, confine(e, "x", (0, 6), "m"), None, "y")
    refused(MERGE, e.model({"x": (3,)}, ["y", "m"]), "graph output")
    refused(MERGE, chain((0, 6), (1, 3), dtype="int32"), "float32, float64 or float16")


def test_bounds_that_are_not_known() -> None:
    e = Expression()
    e.Relu(e.Clip("x", "low"), output="y")
    unmatched(MERGE, e.model({"x": (3,), "low": []}, ["y"]))
    e = Expression()
    e.initializers["low"] = np.float32(0)
    e.Relu(e.Clip("x", "low"), output="y")
    unmatched(MERGE, e.model({"x": (3,)}, ["y"], overridable=["low"]))
    unmatched(MERGE, chain((float("nan"), 1), None))


# --- Min and Max ------------------------------------------------------------------------------------------------------


def min_max(first, second, *, opset=17, dtype="float32", x=("n",)):
    e = Expression(dtype, opset)
    value = "x"
    for i, (kind, bound) in enumerate((first, second)):
        operands = (value,) if bound is None else (value, bound) if i else (bound, value)
        value = e.op(kind, *operands)
    e.nodes[-1].output[0] = "y"
    return e.model({"x": x}, ["y"])


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (("Min", 6.0), ("Max", 0.0)), (("Max", -1.0), ("Min", 2.0)), (("Max", 3.0), ("Min", 1.0)), (("Min", 1.0), ("Max", 3.0)),
        (("Relu", None), ("Min", 6.0)), (("Min", 6.0), ("Relu", None)), (("Clip", None), ("Max", 1.0)),
    ],
)
@pytest.mark.parametrize("opset", [10, 17])
def test_min_and_max(first, second, opset) -> None:
    before = min_max(first, second, opset=opset)
    after, log = run_pass(before, FUSE)
    assert log.applied == 1 and ops(after) == {"Clip": 1}, reasons(log)
    assert_same(before, after, {"x": np.concatenate([SPECIAL, array(40) * 5])}, rtol=0)


def test_double_needs_its_opset() -> None:
    pair = (("Max", 0.0), ("Min", 6.0))
    refused(FUSE, min_max(*pair, dtype="float64", opset=11), "opset 12")
    before = min_max(*pair, dtype="float64", opset=12)
    after, _ = run_pass(before, FUSE)
    assert ops(after) == {"Clip": 1}
    assert_same(before, after, {"x": SPECIAL.astype("f8")}, rtol=0)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (("Max", 1.0), ("Max", 2.0)), (("Relu", None), ("Max", 2.0)), (("Max", 1.0), ("Relu", None)),
        (("Max", np.zeros((1, 1), "f4")), ("Min", 2.0)), (("Max", np.arange(3, dtype="f4")), ("Min", 2.0)),
        (("Max", float("nan")), ("Min", 2.0)),
    ],
)
def test_one_sided_or_not_scalar(first, second) -> None:
    unmatched(FUSE, min_max(first, second, x=(3,)))


def test_other_consumers() -> None:
    e = Expression()
    e.Min(e.Max("x", 0.0, output="m"), 6.0, output="y")
    refused(FUSE, e.model({"x": (3,)}, ["y", "m"]), "graph output")

"""Softmax and LogSoftmax, spelled out with the maximum taken off and without."""

import onnx
import pytest

from tests.passes.fusion.expressions import Expression, fused, refused, unmatched
from tests.support import array, assert_same

SOFTMAX, LOG = "fuse-softmax", "fuse-log-softmax"
X = (2, 5, 8)


def spelled(
    kind: str, *, axis=-1, opset=17, shift=True, dtype="float32", total_axis=None, keepdims=1, outputs=("y",), x=X
) -> onnx.ModelProto:
    e = Expression(dtype, opset)
    value = e.Sub("x", e.reduce("ReduceMax", "x", [axis], keepdims)) if shift else "x"
    exp = e.Exp(value)
    total = e.reduce("ReduceSum", exp, [axis if total_axis is None else total_axis])
    e.Div(exp, total, output="y") if kind == "softmax" else e.Sub(value, e.Log(total), output="y")
    return e.model({"x": x}, list(outputs))


@pytest.mark.parametrize(("kind", "name", "op_type"), [("softmax", SOFTMAX, "Softmax"), ("log", LOG, "LogSoftmax")])
@pytest.mark.parametrize(("axis", "opset"), [(-1, 17), (2, 18), (2, 11), (-1, 12)])
def test_spelled_out(kind, name, op_type, axis, opset) -> None:
    before = spelled(kind, axis=axis, opset=opset)
    after = fused(name, before, {op_type: 1})
    assert_same(before, after, {"x": 50 * array(*X)})


@pytest.mark.parametrize(("dtype", "rtol"), [("float64", 1e-12), ("float16", 2e-3)])
def test_types(dtype, rtol) -> None:
    before = spelled("softmax", dtype=dtype)
    assert_same(before, fused(SOFTMAX, before, {"Softmax": 1}), {"x": array(*X, dtype=dtype)}, rtol=rtol)


@pytest.mark.parametrize(("kind", "name"), [("softmax", SOFTMAX), ("log", LOG)])
def test_refusals(kind, name) -> None:
    refused(name, spelled(kind, shift=False), "the maximum is not taken off")
    refused(name, spelled(kind, axis=1), "not over the last axis")
    refused(name, spelled(kind, keepdims=0, x=(8, 8), axis=0), "with the dimension kept")
    refused(name, spelled(kind, outputs=("y", "v1")), "graph output")
    unmatched(name, spelled(kind, total_axis=1))


def log_of_softmax(*, opset=17, outputs=("y",), **attributes) -> onnx.ModelProto:
    e = Expression(opset=opset)
    e.Log(e.Softmax("x", output="p", **attributes), output="y")
    return e.model({"x": X}, list(outputs))


@pytest.mark.parametrize(("attributes", "opset"), [({}, 17), ({"axis": 1}, 17), ({}, 11), ({"axis": 2}, 11), ({"axis": -2}, 13)])
def test_logarithm_of_a_softmax(attributes, opset) -> None:
    before = log_of_softmax(opset=opset, **attributes)
    assert_same(before, fused(LOG, before, {"LogSoftmax": 1}), {"x": 3 * array(*X)})
    refused(LOG, log_of_softmax(opset=opset, outputs=("y", "p"), **attributes), "graph output")


def test_a_logarithm_of_something_added() -> None:
    e = Expression()
    e.Log(e.Add(e.Softmax("x"), 1e-10), output="y")
    unmatched(LOG, e.model({"x": X}, ["y"]))


def test_other_values() -> None:
    e = Expression()
    shifted = e.Sub("x", e.reduce("ReduceMax", "x", [-1]))
    e.Div(e.Exp(shifted), e.reduce("ReduceSum", e.Exp("x"), [-1]), output="y")
    unmatched(SOFTMAX, e.model({"x": X}, ["y"]))
    e = Expression()
    shifted = e.Sub("x", e.reduce("ReduceMax", "z", [-1]))
    exp = e.Exp(shifted)
    e.Div(exp, e.reduce("ReduceSum", exp, [-1]), output="y")
    refused(SOFTMAX, e.model({"x": X, "z": X}, ["y"]), "the maximum is not taken off")

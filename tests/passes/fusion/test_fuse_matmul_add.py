"""MatMul and Add become Gemm only where both operands are matrices."""

from collections import Counter

import onnx
import onnxruntime as ort
import pytest

from tests.passes.fusion.expressions import Expression, fused, refused, unmatched
from tests.support import array, assert_same, ops, run_pass

NAME = "fuse-matmul-add"


def linear(*, x=(3, 4), bias=(5,), opset=17, dtype="float32", reshape=None, **kwargs) -> onnx.ModelProto:
    e = Expression(dtype, opset)
    value = e.Reshape("x", reshape) if reshape else "x"
    e.Add(array(*bias, seed=1, dtype=dtype), e.MatMul(value, array(4, 5, dtype=dtype)), output="y")
    return e.model({"x": x}, ["y"], **kwargs)


@pytest.mark.parametrize("bias", [(5,), (1, 5), (1,), (), (1, 1)])
@pytest.mark.parametrize("x", [(3, 4), ("n", 4)])
def test_matrices(bias, x) -> None:
    before = linear(bias=bias, x=x)
    assert_same(before, fused(NAME, before, {"Gemm": 1}), {"x": array(3, 4)})


def test_rank_from_a_reshape() -> None:
    before = linear(x=("n", 2, 2), reshape=[-1, 4])
    assert_same(before, fused(NAME, before, {"Reshape": 1, "Gemm": 1}), {"x": array(3, 2, 2)})


@pytest.mark.parametrize(("dtype", "rtol"), [("float64", 1e-12), ("float16", 5e-3)])
def test_types(dtype, rtol) -> None:
    before = linear(dtype=dtype)
    assert_same(before, fused(NAME, before, {"Gemm": 1}), {"x": array(3, 4, dtype=dtype)}, rtol=rtol)


def test_the_other_operand_need_not_be_constant() -> None:
    e = Expression()
    e.Add(e.MatMul("x", "z"), array(5), output="y")
    before = e.model({"x": (3, 4), "z": (4, 5)}, ["y"])
    assert_same(before, fused(NAME, before, {"Gemm": 1}), {"x": array(3, 4), "z": array(4, 5)})


@pytest.mark.parametrize(
    "kwargs", [{"x": (2, 3, 4)}, {"x": (4,)}, {"bias": (3, 1)}, {"bias": (3, 5)}, {"bias": (1, 1, 5)}, {"bias": (2, 1, 1)}]
)
def test_not_a_matrix_with_a_bias(kwargs) -> None:
    unmatched(NAME, linear(**kwargs))


def test_refusals() -> None:
    e = Expression()
    e.Add(e.MatMul("x", array(4, 5), output="m"), array(5), output="y")
    refused(NAME, e.model({"x": (3, 4)}, ["y", "m"]), "graph output")
    e.Neg("m", output="z")
    refused(NAME, e.model({"x": (3, 4)}, ["y", "z"]), "2 consumers")
    refused(NAME, linear(opset=9, dtype="int32"), "floating-point")
    e = Expression()
    e.initializers["b"] = array(5)
    e.Add(e.MatMul("x", array(4, 5)), "b", output="y")
    unmatched(NAME, e.model({"x": (3, 4)}, ["y"], overridable=["b"]))


@pytest.mark.parametrize("following", ["Relu", "Gelu", "Sigmoid"])
def test_the_runtime_ends_with_the_same(following, tmp_path) -> None:
    def runtime_ops(proto: onnx.ModelProto) -> Counter[str]:
        options = ort.SessionOptions()
        options.log_severity_level = 4
        options.optimized_model_filepath = str(tmp_path / "m.onnx")
        ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
        return ops(onnx.load(tmp_path / "m.onnx"))

    e = Expression(opset=20)
    e.op(following, e.Add(e.MatMul("x", array(4, 5)), array(5)), output="y")
    before = e.model({"x": (3, 4)}, ["y"])
    after, _ = run_pass(before, NAME)
    assert runtime_ops(before) == runtime_ops(after)

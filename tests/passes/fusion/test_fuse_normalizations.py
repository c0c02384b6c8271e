"""Normalizations in the spellings of the exporters, over the last axes, over spatial axes, without a mean."""

from collections import Counter

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import helper

from tests.passes.fusion.expressions import Expression, fused, refused, unmatched
from tests.support import array, assert_same, ops, run_pass

LAYER, INSTANCE, RMS = "fuse-layer-normalization", "fuse-instance-normalization", "fuse-rms-normalization"
X = (2, 5, 8)
FORMS = ["torch", "two subtractions", "reciprocal", "power", "quotient", "scale first", "keras"]


def norm(
    e: Expression, x: str, scale=None, bias=None, *, form: str = "torch", axes=(-1,), eps=1e-5, square: str = "pow", more_axes=None
) -> str:
    """The normalized x, output "y"."""
    mean = e.reduce("ReduceMean", x, axes)
    deviation = e.Sub(x, mean)
    squared = e.Mul(deviation, deviation) if square == "mul" else e.Pow(deviation, 2.0)
    total = e.Add(e.reduce("ReduceMean", squared, more_axes or axes), eps)
    if form == "two subtractions":
        deviation = e.Sub(x, mean)
    if form in ("torch", "two subtractions"):
        steps = [e.Div(deviation, e.Sqrt(total))]
    else:
        if form == "power":
            inverse = e.Pow(total, -0.5)
        else:
            inverse = e.Div(1.0, e.Sqrt(total)) if form == "quotient" else e.Reciprocal(e.Sqrt(total))
        if form in ("scale first", "keras") and scale is not None:
            inverse = e.Mul(inverse, scale)
            scale = None
        if form == "keras":
            shift = e.Mul(mean, inverse)
            last = e.Add(e.Mul(x, inverse), e.Sub(bias, shift)) if bias is not None else e.Sub(e.Mul(x, inverse), shift)
            e.nodes[-1].output[0] = "y"
            return last
        steps = [e.Mul(deviation, inverse)]
    if scale is not None:
        steps.append(e.Mul(scale, steps[-1]))
    if bias is not None:
        steps.append(e.Add(steps[-1], bias))
    e.nodes[-1].output[0] = "y"
    return "y"


def layer(*, opset: int = 17, dtype: str = "float32", x=X, scale=True, bias=True, **kwargs) -> onnx.ModelProto:
    e = Expression(dtype, opset)
    size = array(8, low=0.5, dtype=dtype)
    scale = size if scale is True else None if scale is False else scale
    bias = array(8, seed=1, dtype=dtype) if bias is True else None if bias is False else bias
    norm(e, e.Neg("x"), scale, bias, **kwargs)
    return e.model({"x": x}, ["y"])


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("scale", "bias"), [(True, True), (True, False), (False, False), (False, True)])
@pytest.mark.parametrize("opset", [17, 18])
def test_layer_normalization(form, scale, bias, opset) -> None:
    before = layer(form=form, scale=scale, bias=bias, opset=opset)
    after = fused(LAYER, before, {"Neg": 1, "LayerNormalization": 1})
    assert len(after.graph.node[-1].input) == 2 + bias
    # The deviation is rounded to 1e-7 of x, and the mean of the test data is about as large as their spread.
    assert_same(before, after, {"x": 1 + array(*X)})


@pytest.mark.parametrize("axes", [(2,), (1, 2), (-1, -2), (0, 1, 2)])
@pytest.mark.parametrize("affine", [True, False])
def test_axes(axes, affine) -> None:
    dims = tuple(X[a] for a in sorted(a % 3 for a in axes))
    scale, bias = (array(*dims, low=0.5), array(*dims, seed=2)) if affine else (False, False)
    before = layer(axes=axes, scale=scale, bias=bias, square="mul")
    after = fused(LAYER, before, {"Neg": 1, "LayerNormalization": 1})
    assert after.graph.node[-1].attribute[0].i == -len(axes)
    assert_same(before, after, {"x": array(*X)})


@pytest.mark.parametrize("shape", [(1, 1, 8), (1,), (1, 8), ()])
def test_affine_of_other_shapes(shape) -> None:
    before = layer(scale=array(*shape, low=0.5), bias=array(*shape))
    after = fused(LAYER, before, {"Neg": 1, "LayerNormalization": 1})
    assert [tuple(t.dims) for t in after.graph.initializer] == [(8,), (8,)]
    assert_same(before, after, {"x": array(*X)})


def test_symbolic_sizes() -> None:
    before = layer(x=("b", "s", 8))
    assert_same(before, fused(LAYER, before, {"Neg": 1, "LayerNormalization": 1}), {"x": array(*X)})
    refused(LAYER, layer(x=("b", "s", "c")), "size of the normalized axes is not known")


def test_half_precision() -> None:
    before = layer(dtype="float16", eps=np.float16(1e-5))
    after = fused(LAYER, before, {"Neg": 1, "LayerNormalization": 1})
    assert_same(before, after, {"x": array(*X, dtype="float16")}, rtol=5e-3)


def test_scale_that_a_caller_may_override() -> None:
    e = Expression()
    e.initializers["s"] = array(8, low=0.5)
    norm(e, "x", "s", array(8))
    before = e.model({"x": X}, ["y"], overridable=["s"])
    after = fused(LAYER, before, {"LayerNormalization": 1})
    assert_same(before, after, {"x": array(*X), "s": array(8, seed=9)})


def test_computed_scale_stays_behind() -> None:
    e = Expression()
    norm(e, "x", e.Neg("t"), array(8))
    before = e.model({"x": X, "t": [8]}, ["y"])
    after = fused(LAYER, before, {"Neg": 1, "LayerNormalization": 1, "Mul": 1, "Add": 1})
    assert_same(before, after, {"x": array(*X), "t": array(8)})


@pytest.mark.parametrize(
    ("kwargs", "reason"),
    [
        ({"opset": 16}, "LayerNormalization needs opset 17, and the model has 16"),
        ({"dtype": "float64"}, "float32 or float16"),
        ({"scale": array(6, 1), "x": (2, 5, 6, 8)}, "not shaped as the normalized axes"),
        ({"axes": (1, 2), "bias": array(5, 8), "scale": array(2, 5, 8)}, "not shaped as the normalized axes"),
    ],
)
def test_refusals(kwargs, reason) -> None:
    refused(LAYER, layer(**kwargs), reason)


@pytest.mark.parametrize("inner", ["v1", "v2", "v3", "v5"])
def test_inner_values_with_other_uses(inner) -> None:
    e = Expression()
    norm(e, e.Neg("x"), array(8), array(8))
    e.Neg(inner, output="z")
    refused(LAYER, e.model({"x": X}, ["y", "z"]), "other consumers")
    e = Expression()
    norm(e, e.Neg("x"), array(8), array(8))
    refused(LAYER, e.model({"x": X}, ["y", inner]), "graph output")


def test_normalized_value_with_two_consumers() -> None:
    e = Expression()
    norm(e, "x", form="reciprocal")
    e.nodes[-1].output[0] = "n"
    e.Neg("n", output="z")
    e.Mul("n", array(8), output="y")
    before = e.model({"x": X}, ["y", "z"])
    assert_same(before, fused(LAYER, before, {"LayerNormalization": 1, "Neg": 1, "Mul": 1}), {"x": array(*X)})


@pytest.mark.parametrize("axes", [(1,), (0, 2), (0,)])
def test_other_axes(axes) -> None:
    unmatched(LAYER, layer(axes=axes, scale=False, bias=False))


def test_what_is_no_normalization() -> None:
    unmatched(LAYER, layer(axes=(1, 2), more_axes=(2,), scale=False, bias=False))
    e = Expression()
    deviation = e.Sub("x", e.reduce("ReduceMean", "x", (-1,)))
    variance = e.reduce("ReduceMean", e.Pow(deviation, 2.0), (-1,))
    e.Div(deviation, e.Add(e.Sqrt(variance), 1e-5), output="y")  # epsilon beside the standard deviation
    unmatched(LAYER, e.model({"x": X}, ["y"]))
    for power, keep, eps in ((3.0, 1, 1e-5), (2.0, 1, -1e-5), (2.0, 1, array(8, low=1.0))):
        e = Expression()
        deviation = e.Sub("x", e.reduce("ReduceMean", "x", (-1,)))
        e.Div(deviation, e.Sqrt(e.Add(e.reduce("ReduceMean", e.Pow(deviation, power), (-1,), keep), eps)), output="y")
        unmatched(LAYER, e.model({"x": X}, ["y"]))
    e = Expression()
    mean = e.reduce("ReduceMean", "z", (-1,))  # of something else
    deviation = e.Sub("x", mean)
    e.Div(deviation, e.Sqrt(e.Add(e.reduce("ReduceMean", e.Pow(deviation, 2.0), (-1,)), 1e-5)), output="y")
    unmatched(LAYER, e.model({"x": X, "z": X}, ["y"]))


def test_in_a_subgraph() -> None:
    e = Expression()
    norm(e, "x", "s", "b")
    inner = helper.make_graph(
        e.nodes, "then", [], [helper.make_tensor_value_info("y", 1, None)],
        initializer=[onnx.numpy_helper.from_array(a, n) for n, a in e.initializers.items()],
    )
    other = helper.make_graph([helper.make_node("Neg", ["x"], ["e"])], "else", [], [helper.make_tensor_value_info("e", 1, None)])
    outer = Expression()
    outer.nodes = [helper.make_node("If", ["p"], ["out"], then_branch=inner, else_branch=other)]
    outer.initializers = {"s": array(8, low=0.5), "b": array(8)}
    before = outer.model({"x": X, "p": []}, {"out": X}, types={"p": 9})
    after, log = run_pass(before, LAYER)
    assert log.applied == 1
    assert_same(before, after, {"x": array(*X), "p": np.array(True)})


def test_the_runtime_ends_with_the_same(tmp_path) -> None:
    def runtime_ops(proto: onnx.ModelProto) -> Counter[str]:
        options = ort.SessionOptions()
        options.optimized_model_filepath = str(tmp_path / "m.onnx")
        ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
        return ops(onnx.load(tmp_path / "m.onnx"))

    before = layer()
    after, _ = run_pass(before, LAYER)
    assert runtime_ops(before) == runtime_ops(after)


# --- per channel ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("shape", [(4, 1, 1), (1, 4, 1, 1), (), None])
def test_instance_normalization(form, shape) -> None:
    e = Expression(opset=13)
    scale, bias = (None, None) if shape is None else (array(*shape, low=0.5), array(*shape))
    norm(e, "x", scale, bias, form=form, axes=(2, 3))
    before = e.model({"x": ("n", 4, 6, 5)}, ["y"])
    after = fused(INSTANCE, before, {"InstanceNormalization": 1})
    assert_same(before, after, {"x": array(3, 4, 6, 5)})


def test_layer_normalization_leaves_channels_alone() -> None:
    e = Expression()
    norm(e, "x", array(4, 1, 1), array(4, 1, 1), axes=(-1, -2))
    before = e.model({"x": (2, 4, 6, 5)}, ["y"])
    unmatched(LAYER, before)
    assert_same(before, fused(INSTANCE, before, {"InstanceNormalization": 1}), {"x": array(2, 4, 6, 5)})


def test_instance_refusals() -> None:
    e = Expression()
    norm(e, "x", array(4, 6, 1), None, axes=(2, 3))
    refused(INSTANCE, e.model({"x": (2, 4, 6, 5)}, ["y"]), "one value a channel")
    e = Expression()
    norm(e, "x", None, None, axes=(2, 3))
    refused(INSTANCE, e.model({"x": (2, "c", 6, 5)}, ["y"]), "number of channels is not known")
    e = Expression()
    norm(e, "x", None, None, axes=(1, 2))
    unmatched(INSTANCE, e.model({"x": (2, 3, 6, 5)}, ["y"]))


# --- without a mean ---------------------------------------------------------------------------------------------------


def rms(form: str = "reciprocal", *, opset: int = 23, scale=True, dtype: str = "float32", axes=(-1,), x=X) -> onnx.ModelProto:
    e = Expression(dtype, opset)
    v = e.Neg("x")
    weight = array(8, low=0.5, dtype=dtype)
    total = e.Add(e.reduce("ReduceMean", e.Pow(v, 2.0), axes), 1e-6)
    if form == "division":
        n = e.Div(v, e.Sqrt(total))
    else:
        inverse = e.Pow(total, -0.5) if form == "power" else e.Reciprocal(e.Sqrt(total))
        if form == "scale first":
            inverse, scale = e.Mul(inverse, weight), False
        n = e.Mul(v, inverse)
    if scale:
        n = e.Mul(weight, n)
    e.nodes[-1].output[0] = "y"
    return e.model({"x": x}, ["y"])


@pytest.mark.parametrize("form", ["reciprocal", "power", "division", "scale first"])
@pytest.mark.parametrize("scale", [True, False])
def test_rms_normalization(form, scale) -> None:
    before = rms(form, scale=scale)
    assert_same(before, fused(RMS, before, {"Neg": 1, "RMSNormalization": 1}), {"x": array(*X)})


def test_rms_refusals() -> None:
    refused(RMS, rms(opset=22), "RMSNormalization needs opset 23, and the model has 22")
    refused(RMS, rms(dtype="float64"), "float32 or float16")
    refused(RMS, rms(scale=False, x=(2, 5, "c")), "size of the normalized axes is not known")
    unmatched(RMS, rms(axes=(1,), scale=False))
    unmatched(LAYER, rms())

"""Scales moved from activations into weights: the same function, less to lose by rounding, and what is left alone."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from graphopt.passes.quantization.scaling import find_groups
from graphopt.passes.quantization.smooth_activations import Noise
from onnx import numpy_helper

from graphopt.calibration import Calibration
from graphopt.rewriting import ChangeLog, Context
from graphopt.rewriting.context import Tools
from tests.passes.quantization.test_quantize_static import data, quantize, snr
from tests.support import REGISTRY, array, assert_same, drop_inferred, model, node, ops, reasons

NAME = "smooth-activations"


def run(proto: onnx.ModelProto, samples, name: str = NAME, *, allow=None, **options) -> tuple[onnx.ModelProto, ChangeLog]:
    graph = ir.from_proto(onnx.ModelProto.FromString(proto.SerializeToString()))
    log = ChangeLog(name, allow)
    tools = Tools(Calibration.open(samples, graph))
    options = {"least_values": 0} | options if name == NAME else options
    REGISTRY.get(name).configure({k.replace("_", "-"): v for k, v in options.items()}).run(Context(graph, log, tools=tools))
    drop_inferred(graph)
    made = ir.to_proto(graph)
    onnx.checker.check_model(made)
    return made, log


def uneven(channels: int, seed: int = 0) -> np.ndarray:
    """Factors of channels of which one sticks out far."""
    factors = np.exp(array(channels, seed=seed) / 2)
    factors[1] *= 40
    return factors.astype(np.float32)


def normalized(*more: onnx.NodeProto, outputs=("a", "b"), **weights: np.ndarray) -> onnx.ModelProto:
    """LayerNormalization, whose channels differ, read by two MatMuls."""
    nodes = [
        node("LayerNormalization", ["x", "scale", "shift"], ["n"], axis=-1),
        node("MatMul", ["n", "w1"], ["a"]), node("MatMul", ["n", "w2"], ["b"]), *more,
    ]  # fmt: skip
    constants = {"scale": uneven(16), "shift": array(16, seed=1), "w1": array(16, 24, seed=2), "w2": array(16, 8, seed=3)}
    return model(nodes, {"x": [2, 5, 16]}, dict.fromkeys(outputs), constants | weights)


def constants(proto: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {t.name: numpy_helper.to_array(t) for t in proto.graph.initializer}


def test_into_a_normalization_that_several_products_read() -> None:
    before = normalized()
    after, log = run(before, data(2, 5, 16))
    assert log.applied == 1
    assert ops(after) == ops(before)
    assert_same(before, after, {"x": array(2, 5, 16, seed=9)})
    old, new = constants(before), constants(after)
    scale = old["scale"] / new["scale_folded"]
    np.testing.assert_allclose(new["shift_folded"] * scale, old["shift"], rtol=1e-5)
    np.testing.assert_allclose(new["w1_folded"], old["w1"] * scale[:, None], rtol=1e-5)
    np.testing.assert_allclose(new["w2_folded"], old["w2"] * scale[:, None], rtol=1e-5)
    assert scale[1] == scale.max()


def test_rounding_loses_less() -> None:
    before = normalized()
    after, _ = run(before, data(2, 5, 16))
    x = array(2, 5, 16, seed=9)
    plain, smoothed = (quantize(proto, data(2, 5, 16), method="min-max")[0] for proto in (before, after))
    assert snr(before, smoothed, x) > snr(before, plain, x) + 6


def test_the_formula_of_the_paper() -> None:
    before = normalized()
    after, _ = run(before, data(2, 5, 16), alpha=0.5)
    scale = constants(before)["scale"] / constants(after)["scale_folded"]
    graph = ir.from_proto(before)
    seen = Calibration.open(data(2, 5, 16), graph).statistics(graph, [], channels={"n": 2})["n"]
    largest = np.maximum(-seen.channel_low, seen.channel_high)
    weight = np.maximum(*(np.abs(constants(before)[name]).max(axis=1) for name in ("w1", "w2")))
    expected = np.sqrt(largest / weight)
    np.testing.assert_allclose(scale / scale[0], expected / expected[0], rtol=1e-5)
    assert (largest / scale).max() == pytest.approx(largest.max(), rel=1e-5)


def test_the_prediction_is_what_rounding_does() -> None:
    """Of a product whose input and weight are rounded, within a third: the noise is uniform only about."""
    before = normalized(outputs=("a", "b"))
    graph = ir.from_proto(before)
    context = Context(graph, ChangeLog(NAME), tools=Tools(Calibration.open(data(2, 5, 16, count=60), graph)))
    (group,) = find_groups(context)
    found = context.calibrate([], channels={group.value: -1}, method="min-max")[group.value]
    noise = Noise(group, found, context)
    x = array(400, 16, seed=77) * constants(before)["scale"]
    x = np.clip(x, found.channel_low, found.channel_high)
    weights = [constants(before)[name] for name in ("w1", "w2")]
    step = (found.high - found.low) / 255
    error = 0.0
    for w in weights:
        by = np.abs(w).max(axis=0) / 127
        rounded = np.rint(x / step) * step @ (np.rint(w / by) * by)
        error += float(((rounded - x @ w) ** 2).sum() / len(x))
    assert noise.at(np.ones(16)) == pytest.approx(error, rel=0.35)


@pytest.mark.parametrize(
    "between",
    [
        [node("Relu", ["c"], ["r"]), node("MaxPool", ["r"], ["p"], kernel_shape=[2, 2])],
        [node("PRelu", ["c", "slope"], ["p"])],
        [node("Mul", ["c", "slope"], ["s"]), node("Max", ["s", "c"], ["p"])],
        [node("LeakyRelu", ["c"], ["p"], alpha=0.1)],
        [node("Mul", ["c", "factor"], ["s"]), node("Add", ["term", "s"], ["p"])],
    ],
)
def test_into_weights_past_what_lets_a_scale_through(between: list[onnx.NodeProto]) -> None:
    weights = {
        "w1": array(8, 3, 3, 3, seed=1) * uneven(8)[:, None, None, None], "b1": array(8, seed=2), "w2": array(8, 8, 3, 3, seed=3),
        "slope": np.abs(array(8, 1, 1, seed=4)) / 4, "factor": array(1, 8, 1, 1, seed=5), "term": array(8, 1, 1, seed=6) * 30,
    }  # fmt: skip
    used = {"w1", "w2", "b1", *(i for n in between for i in n.input)}
    nodes = [node("Conv", ["x", "w1", "b1"], ["c"]), *between, node("Conv", ["p", "w2"], ["y"], pads=[1] * 4)]
    before = model(nodes, {"x": [1, 3, 9, 9]}, {"y": None}, {k: v for k, v in weights.items() if k in used})
    after, log = run(before, data(1, 3, 9, 9))
    assert log.applied == 1, reasons(log)
    assert ops(after) == ops(before)
    assert_same(before, after, {"x": array(1, 3, 9, 9, seed=9)})


def test_through_attention_into_the_values() -> None:
    """softmax(..) v: what scales its columns scales those of v, and so the weight of v."""
    nodes = [
        node("MatMul", ["x", "wv"], ["v"]), node("Add", ["v", "bv"], ["vb"]), node("Reshape", ["vb", "split"], ["vh"]),
        node("Transpose", ["vh"], ["vt"], perm=[0, 2, 1, 3]), node("Softmax", ["scores"], ["s"], axis=-1),
        node("MatMul", ["s", "vt"], ["o"]), node("Transpose", ["o"], ["ot"], perm=[0, 2, 1, 3]),
        node("Reshape", ["ot", "join"], ["h"]), node("MatMul", ["h", "wo"], ["y"]),
    ]  # fmt: skip
    weights = {
        "wv": array(12, 12, seed=1) * uneven(12), "bv": array(12, seed=2), "wo": array(12, 12, seed=3),
        "split": np.array([2, 5, 3, 4]), "join": np.array([2, 5, 12]),
    }  # fmt: skip
    before = model(nodes, {"x": [2, 5, 12], "scores": [2, 3, 5, 5]}, {"y": [2, 5, 12]}, weights)
    samples = [{"x": array(2, 5, 12, seed=i), "scores": array(2, 3, 5, 5, seed=100 + i)} for i in range(6)]
    after, log = run(before, samples)
    assert log.applied == 1, reasons(log)
    assert_same(before, after, samples[0])
    assert "wv_folded" in constants(after)


RESIDUAL = [node("Add", ["n", "x"], ["r"])]
GELU = [node("Gelu", ["x"], ["g"]), node("MatMul", ["g", "w"], ["y"])]


@pytest.mark.parametrize(
    ("before", "reason"),
    [
        (normalized(*RESIDUAL, outputs=("a", "b", "r")), "also consumed by r"),
        (normalized(outputs=("a", "b", "n")), "also a graph output"),
        (model(GELU, {"x": [2, 5, 16]}, {"y": [2, 5, 16]}, {"w": array(16, 16) / uneven(16)[:, None]}, opset=20), "it comes from Gelu"),
    ],
)
def test_where_nothing_can_take_the_scale(before: onnx.ModelProto, reason: str) -> None:
    samples = [array(2, 5, 16, seed=i) * uneven(16) for i in range(6)] if "Gelu" in ops(before) else data(2, 5, 16)
    after, log = run(before, samples)
    assert log.applied == 0
    assert any(reason in r for r in reasons(log)), reasons(log)
    assert "nothing to fold the scale" in reasons(log)[0]
    assert_same(before, after, {"x": samples[0]}, exact=True)
    inserted, log = run(before, samples, insert=True)
    assert log.applied == 1, reasons(log)
    assert ops(inserted) - ops(before) == {"Mul": 1}
    assert_same(before, inserted, {"x": samples[0]})


def test_what_is_left_alone() -> None:
    even = normalized(scale=np.ones(16, np.float32), shift=np.zeros(16, np.float32))
    _, log = run(even, data(2, 5, 16), least_gain=3.0)
    assert (log.applied, reasons(log)) == (0, [])  # nothing to gain
    _, log = run(normalized(scale=np.zeros(16, np.float32), shift=np.zeros(16, np.float32)), data(2, 5, 16))
    assert log.applied == 0
    assert "cannot be smoothed: it is 0 everywhere" in reasons(log)[0]
    _, log = run(normalized(w1=np.full((16, 24), np.inf, np.float32)), data(2, 5, 16))
    assert log.applied == 0
    assert "would not be finite" in reasons(log)[0]
    shared = normalized(node("MatMul", ["x", "w1"], ["c"]), outputs=("a", "b", "c"))
    _, log = run(shared, data(2, 5, 16), max_growth_bytes=0)
    assert log.applied == 0
    assert "a copy for this one would add" in reasons(log)[0]


def test_ranges_of_few_values_are_not_relied_on() -> None:
    """Each channel is stretched to the range that it was seen to take: what goes beyond is cut off in all of them."""
    _, log = run(normalized(), data(2, 5, 16), least_values=51)
    assert (log.applied, log.asked) == (0, 0)
    assert reasons(log) == ["only 50 values of each channel were seen, too few to know its range by"]
    assert run(normalized(), data(2, 5, 16), least_values=50)[1].applied == 1


def test_what_is_held_back_stays() -> None:
    before = normalized()
    after, log = run(before, data(2, 5, 16), allow=lambda number: False)
    assert (log.applied, log.asked) == (0, 1)
    assert_same(before, after, {"x": array(2, 5, 16)}, exact=True)
    assert constants(after).keys() == constants(before).keys()

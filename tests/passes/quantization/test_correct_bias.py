"""Means put back into biases: on the calibration samples exactly, wherever a bias stands; and what has none."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from graphopt.calibration import Calibration, mean_shifts
from graphopt.calibration.stepwise import thinned
from graphopt.measurement import Target, final_graph, integer_kernels
from graphopt.rewriting import ChangeLog, Context
from graphopt.rewriting.context import Tools
from tests.passes.quantization.test_quantize_static import DEFAULT_ISA, constants, data, product, residual, snr
from tests.support import REGISTRY, array, assert_same, drop_inferred, model, node, ops, reasons, session

STEPS = ("record-means", "quantize-static", "correct-bias")


class Ran:
    """A pipeline over a graph in memory, of which every pass's log is kept."""

    def __init__(self, proto: onnx.ModelProto, samples, steps=STEPS, allow=None, options=None) -> None:
        self.graph = ir.from_proto(onnx.ModelProto.FromString(proto.SerializeToString()))
        self.calibration = Calibration.open(samples, self.graph)
        tools = Tools(self.calibration, Target("cpu", "test", 1, DEFAULT_ISA))
        self.logs = {}
        context = None
        for name in steps:
            self.logs[name] = ChangeLog(name, allow if name == "correct-bias" else None)
            context = Context(self.graph, self.logs[name], context, tools)
            REGISTRY.get(name).configure((options or {}).get(name)).run(context)
        drop_inferred(self.graph)
        self.proto = ir.to_proto(self.graph)
        onnx.checker.check_model(self.proto)

    @property
    def log(self) -> ChangeLog:
        return self.logs["correct-bias"]

    def feeds(self) -> list[dict[str, np.ndarray]]:
        return [sample.feeds for sample in self.calibration.source]


def given_out(proto: onnx.ModelProto, names: list[str], feeds) -> dict[str, list[np.ndarray]]:
    """Inner values of a model on samples, by ONNX Runtime with its optimizations off."""
    copy = onnx.ModelProto.FromString(proto.SerializeToString())
    del copy.graph.output[:]
    copy.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    made = session(copy)
    results = [made.run(names, f) for f in feeds]
    return {name: [r[i] for r in results] for i, name in enumerate(names)}


def mean(arrays: list[np.ndarray], axis: int) -> np.ndarray:
    return np.concatenate([np.moveaxis(a, axis, -1).reshape(-1, a.shape[axis]) for a in arrays]).mean(axis=0, dtype=np.float64)


def bias_step(proto: onnx.ModelProto, product: onnx.NodeProto) -> np.ndarray:
    """The scale of the integers of a product's bias."""
    return next(constants(proto)[n.input[1]] for n in proto.graph.node if n.output[0] == product.input[2])


def products(proto: onnx.ModelProto) -> list[onnx.NodeProto]:
    return [n for n in proto.graph.node if n.op_type in ("Conv", "Gemm", "MatMul")]


def test_the_mean_of_every_layer_is_that_of_the_model_in_float() -> None:
    """With Relu and Clip, a residual Add, a Concat: on the samples that were calibrated on, to the bias's own rounding."""
    before = residual()
    ran = Ran(before, data(1, 3, 8, 8))
    plain = Ran(before, data(1, 3, 8, 8), STEPS[:2])
    assert ran.log.applied == 6
    wanted = given_out(before, [n.output[0] for n in products(before)], ran.feeds())
    errors: dict[str, list[np.ndarray]] = {"corrected": [], "plain": []}
    for kind, made in (("corrected", ran), ("plain", plain)):
        found = given_out(made.proto, [n.output[0] for n in products(made.proto)], made.feeds())
        for old, new in zip(products(before), products(made.proto), strict=True):
            axis = 1 if old.op_type == "Conv" else -1
            errors[kind].append(np.abs(mean(wanted[old.output[0]], axis) - mean(found[new.output[0]], axis)))
    steps = [bias_step(ran.proto, n) for n in products(ran.proto)]
    assert (errors["corrected"][0] <= 0.501 * steps[0]).all()  # nothing stands before it
    for corrected, step, uncorrected in zip(errors["corrected"], steps, errors["plain"], strict=True):
        assert (corrected <= 8 * step).all()  # what the biases before it lost by their rounding comes to it
        assert corrected.max() < uncorrected.max() / 5
    assert integer_kernels(final_graph(ran.proto.SerializeToString(), threads=1)) == integer_kernels(
        final_graph(plain.proto.SerializeToString(), threads=1)
    )


@pytest.mark.parametrize(
    "before",
    [
        product("Conv"), product("Conv", bias=False), product("Gemm", transB=1), product("Gemm", bias=False),
        model([node("MatMul", ["x", "w"], ["p"]), node("Add", ["b", "p"], ["y"])], {"x": [5, 4]}, {"y": None},
              {"w": array(4, 8, seed=1), "b": array(8, seed=2)}),
        model([node("MatMul", ["x", "w"], ["p"]), node("Add", ["p", "b"], ["y"])], {"x": [5, 4]}, {"y": None},
              {"w": array(4, 8, seed=1), "b": np.float32(0.5)}),
    ],
    ids=["conv", "conv without", "gemm", "gemm without", "matmul", "matmul and a scalar"],
)  # fmt: skip
def test_wherever_the_bias_stands(before: onnx.ModelProto) -> None:
    shape = [d.dim_value for d in before.graph.input[0].type.tensor_type.shape.dim]
    ran = Ran(before, data(*shape), options={"correct-bias": {"operators": "all"}})
    assert ran.log.applied == 1, reasons(ran.log)
    (old,), (new,) = products(before), products(ran.proto)
    added = [next((n for n in p.graph.node if n.op_type == "Add"), n) for p, n in ((before, old), (ran.proto, new))]
    axis = 1 if old.op_type == "Conv" else -1
    wanted, found = (mean(given_out(p, [n.output[0]], ran.feeds())[n.output[0]], axis) for p, n in zip((before, ran.proto), added))
    step = bias_step(ran.proto, new).max() if new.op_type != "MatMul" else 0
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=0.501 * step + 1e-6)


def test_depthwise_convolutions_gain_most() -> None:
    """What follows a Relu has a mean, which few taps carry far."""
    nodes = [node("Relu", ["x"], ["r"])]
    for i in range(4):
        last = f"r{i - 1}" if i else "r"
        nodes += [node("Conv", [last, f"w{i}"], [f"c{i}"], group=16, pads=[1] * 4), node("Relu", [f"c{i}"], [f"r{i}"])]
    weights = {f"w{i}": np.abs(array(16, 1, 3, 3, seed=i)) + 0.01 * array(16, 1, 3, 3, seed=9 + i) for i in range(4)}
    before = model([*nodes, node("Exp", ["r3"], ["e"]), node("Log", ["e"], ["y"])], {"x": [1, 16, 8, 8]}, {"y": None},
                   {k: v / 4 for k, v in weights.items()})  # fmt: skip
    samples = data(1, 16, 8, 8, count=12, low=2.0)
    plain, corrected = Ran(before, samples, STEPS[:2]).proto, Ran(before, samples).proto
    x = array(1, 16, 8, 8, seed=5, low=2.0)
    assert snr(before, corrected, x) > snr(before, plain, x) + 1


def test_what_has_no_bias_and_what_is_not_known() -> None:
    ran = Ran(product("MatMul"), data(2, 5, 4), options={"correct-bias": {"operators": "all"}})
    assert reasons(ran.log) == ["there is no bias behind it"]
    assert Ran(product("MatMul"), data(2, 5, 4)).log.asked == 0  # unless it is asked for
    ran = Ran(product("Conv"), data(1, 4, 6, 6), STEPS[1:])
    assert "record-means was not run" in reasons(ran.log)[0]
    ran = Ran(product("Conv"), data(1, 4, 6, 6), ("record-means", "correct-bias"))
    assert (ran.log.asked, reasons(ran.log)) == (0, [])  # it is in float


def test_what_is_held_back_stays_and_the_rest_is_corrected_for_that() -> None:
    before = residual()
    first = Ran(before, data(1, 3, 8, 8), allow=lambda number: number == 0)
    assert (first.log.applied, first.log.asked) == (1, 6)
    none = Ran(before, data(1, 3, 8, 8), allow=lambda number: False)
    assert_same(Ran(before, data(1, 3, 8, 8), STEPS[:2]).proto, none.proto, {"x": array(1, 3, 8, 8)}, exact=True)
    again = Ran(before, data(1, 3, 8, 8), allow=lambda number: number == 0)
    assert first.proto.SerializeToString() == again.proto.SerializeToString()


def test_shifts_of_values_that_subgraphs_stand_between() -> None:
    """x -> Conv c -> If(.. captures c ..) -> Conv d: what is missing at d is seen with c corrected."""
    branch = [onnx.helper.make_graph([node("Mul", ["c", factor], [out])], out, [], [onnx.ValueInfoProto(name=out)])
              for factor, out in (("two", "t"), ("three", "e"))]  # fmt: skip
    nodes = [
        node("Conv", ["x", "w"], ["c"]), onnx.helper.make_node("If", ["yes"], ["i"], then_branch=branch[0], else_branch=branch[1]),
        node("Conv", ["i", "v"], ["d"]), node("Add", ["c", "d"], ["y"]),
    ]  # fmt: skip
    weights = {
        "w": array(4, 3, 1, 1), "v": array(4, 4, 1, 1, seed=1), "two": np.float32(2), "three": np.float32(3), "yes": np.array(True),
    }  # fmt: skip
    graph = ir.from_proto(model(nodes, {"x": [1, 3, 4, 4]}, {"y": [1, 4, 4, 4]}, weights))
    source = Calibration.open(data(1, 3, 4, 4), graph).source
    seen = Calibration(source).statistics(graph, [], channels={"c": 1, "d": 1})
    off = {"c": (1, seen["c"].channel_mean + 1.0), "d": (1, seen["d"].channel_mean)}
    shifts = mean_shifts(graph, off, source)
    np.testing.assert_allclose(shifts["c"], 1.0, atol=1e-6)
    np.testing.assert_allclose(shifts["d"], -2 * weights["v"].sum(axis=(1, 2, 3)), rtol=1e-4, atol=1e-5)


def test_samples_are_thinned_evenly() -> None:
    graph = ir.from_proto(product("Conv"))
    source = Calibration.open(data(1, 4, 6, 6, count=10), graph).source
    assert len(source) == 8
    assert thinned(source, 8) is source
    chosen = [sample.origin for sample in thinned(source, 3)]
    everything = [sample.origin for sample in source]
    assert chosen == [everything[0], everything[4], everything[7]]


def test_means_alone_leave_the_graph_as_it_is() -> None:
    before = residual()
    ran = Ran(before, data(1, 3, 8, 8), STEPS[:1])
    assert ops(ran.proto) == ops(before)
    assert ran.logs["record-means"].asked == 0

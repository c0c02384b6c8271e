"""float16 where it holds the numbers: the borders, what stays in float32 and why, subgraphs, constants, the model's interface."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from graphopt.calibration import Calibration
from graphopt.errors import CalibrationError
from graphopt.measurement import Target
from graphopt.rewriting import ChangeLog, Context
from graphopt.rewriting.context import Tools
from tests.support import REGISTRY, array, drop_inferred, model, node, ops, reasons, session

NAME = "convert-float16"
HALF = TensorProto.FLOAT16


def convert(proto: onnx.ModelProto, samples, *, provider: str = "cpu", allow=None, **options) -> tuple[onnx.ModelProto, ChangeLog]:
    graph = ir.from_proto(onnx.ModelProto.FromString(proto.SerializeToString()))
    log = ChangeLog(NAME, allow)
    tools = Tools(Calibration.open(samples, graph), Target(provider, "test", 1, "unknown"))
    REGISTRY.get(NAME).configure({k.replace("_", "-"): v for k, v in options.items()}).run(Context(graph, log, tools=tools))
    drop_inferred(graph)
    made = ir.to_proto(graph)
    onnx.checker.check_model(made, full_check=True)
    for before, after in ((proto.graph.input, made.graph.input), (proto.graph.output, made.graph.output)):
        assert [(v.name, v.type.tensor_type.elem_type) for v in before] == [(v.name, v.type.tensor_type.elem_type) for v in after]
    return made, log


def data(*shape: int, scale: float = 1.0, low: float | None = None) -> list[np.ndarray]:
    return [array(*shape, seed=i, low=low) * np.float32(scale) for i in range(4)]


def near(before: onnx.ModelProto, after: onnx.ModelProto, feeds, distance: float = 2e-3) -> None:
    """The outputs differ by what rounding to 11 bits explains, optimized or not."""
    feeds = feeds if isinstance(feeds, dict) else {"x": feeds}
    for optimize in (False, True):
        for a, b in zip(session(before).run(None, feeds), session(after, optimize).run(None, feeds)):
            assert (a.shape, a.dtype) == (b.shape, b.dtype)
            assert np.linalg.norm((a - b).ravel()) <= distance * np.linalg.norm(a.ravel()), np.linalg.norm(a - b) / np.linalg.norm(a)


def types(proto: onnx.ModelProto) -> dict[str, int]:
    """Element types of what nodes give out, by name."""
    inferred = onnx.shape_inference.infer_shapes(proto)
    return {v.name: v.type.tensor_type.elem_type for v in (*inferred.graph.value_info, *inferred.graph.output)}


def casts(proto: onnx.ModelProto) -> list[tuple[str, str]]:
    return [(n.input[0], n.output[0]) for n in proto.graph.node if n.op_type == "Cast"]


def network() -> onnx.ModelProto:
    nodes = [
        node("Conv", ["x", "w", "b"], ["c"], pads=[1] * 4), node("Relu", ["c"], ["r"]), node("GlobalAveragePool", ["r"], ["g"]),
        node("Flatten", ["g"], ["f"]), node("Gemm", ["f", "v"], ["y"]),
    ]  # fmt: skip
    weights = {"w": array(8, 3, 3, 3) / 3, "b": array(8, seed=1), "v": array(8, 4, seed=2)}
    return model(nodes, {"x": [1, 3, 8, 8]}, {"y": [1, 4]}, weights)


def test_all_of_it_between_two_casts() -> None:
    before = network()
    after, log = convert(before, data(1, 3, 8, 8))
    assert [n.op_type for n in after.graph.node] == ["Cast", "Conv", "Relu", "GlobalAveragePool", "Flatten", "Gemm", "Cast"]
    assert {t.name: t.data_type for t in after.graph.initializer} == {"w_float16": HALF, "b_float16": HALF, "v_float16": HALF}
    assert log.applied == 5
    assert log.notes == ["5 operators in float16 with 3 constants, 0 stay in float32; 2 Casts between the two"]
    near(before, after, array(1, 3, 8, 8, seed=9))


def test_constants_are_rounded_to_even() -> None:
    after, _ = convert(network(), data(1, 3, 8, 8))
    stored = {t.name: numpy_helper.to_array(t) for t in after.graph.initializer}
    np.testing.assert_array_equal(stored["v_float16"], array(8, 4, seed=2).astype(np.float16))


def test_one_cast_for_all_that_read_a_value() -> None:
    nodes = [node("MatMul", ["x", f"w{i}"], [f"m{i}"]) for i in range(3)] + [node("Sum", ["m0", "m1", "m2"], ["y"])]
    before = model(nodes, {"x": [5, 8]}, {"y": [5, 8]}, {f"w{i}": array(8, 8, seed=i) for i in range(3)})
    after, _ = convert(before, data(5, 8))
    assert len(casts(after)) == 2
    near(before, after, array(5, 8, seed=7))


def test_an_output_that_is_read_inside() -> None:
    nodes = [node("MatMul", ["x", "w"], ["h"]), node("Relu", ["h"], ["r"]), node("MatMul", ["r", "w"], ["y"])]
    before = model(nodes, {"x": [5, 8]}, {"h": [5, 8], "y": [5, 8], "r": [5, 8]}, {"w": array(8, 8)})
    after, _ = convert(before, data(5, 8))
    assert [o.name for o in after.graph.output] == ["h", "y", "r"]
    found = types(after)
    assert all(found[name] == TensorProto.FLOAT for name in "hyr")
    assert len(casts(after)) == 4
    assert all(n.input[0] not in "hr" for n in after.graph.node if n.op_type in ("Relu", "MatMul"))  # the products read float16
    near(before, after, array(5, 8, seed=7))


def chain(middle: str, *inputs: str, scale: float = 1.0, weights=None, **attributes) -> onnx.ModelProto:
    """x -> MatMul -> m -> the operator -> n -> MatMul -> y."""
    nodes = [node("MatMul", ["x", "w"], ["m"]), node(middle, ["m", *inputs], ["n"], **attributes), node("MatMul", ["n", "v"], ["y"])]
    constants = {"w": array(8, 8) * np.float32(scale), "v": array(8, 8, seed=1), **(weights or {})}
    return model(nodes, {"x": [5, 8]}, {"y": [5, 8]}, constants)


def stays(before: onnx.ModelProto, samples, label: str, reason: str, **options) -> onnx.ModelProto:
    after, log = convert(before, samples, **options)
    assert reason in {r.node: r.reason for r in log.refusals}.get(label, ""), [(r.node, r.reason) for r in log.refusals]
    assert types(after)[label] == TensorProto.FLOAT
    return after


def test_what_overflows_stays() -> None:
    before = chain("Mul", "c", weights={"c": np.float32(1e4)})
    after = stays(before, data(5, 8), "n", "float16 ends at 65,504")
    stays(before, data(5, 8), "y", "float16 ends at 65,504")  # what reads it cannot be given it either
    near(before, after, array(5, 8, seed=7))


def test_headroom() -> None:
    before = chain("Mul", "c", weights={"c": np.float32(1e3)})
    assert types(convert(before, data(5, 8), headroom=1.0)[0])["n"] == HALF
    stays(before, data(5, 8), "n", "float16 ends at 65,504", headroom=16.0)


@pytest.mark.parametrize(
    ("weights", "reason"),
    [
        ({"c": np.float32(3.4e38)}, "the constant 'c' holds 3.4e+38; float16 ends at 65,504"),
        ({"c": np.float32(1e-8)}, "would lose 1e+02 % of itself"),
        ({"c": np.float32(1e-6)}, "would lose 1.3 % of itself"),
        ({"c": array(8) * np.float32(1e-7)}, "% of itself in float16"),
    ],
)
def test_constants_that_do_not_fit(weights, reason: str) -> None:
    stays(chain("Add", "c", weights=weights), [d * 0 for d in data(5, 8)] + data(5, 8), "n", reason)


def test_tiny_elements_beside_large_ones_are_no_loss() -> None:
    w = np.where(array(8, 8) > 0, array(8, 8), 1e-9).astype(np.float32)
    after, log = convert(model([node("MatMul", ["x", "w"], ["y"])], {"x": [5, 8]}, {"y": [5, 8]}, {"w": w}), data(5, 8))
    assert not log.refusals
    near(model([node("MatMul", ["x", "w"], ["y"])], {"x": [5, 8]}, {"y": [5, 8]}, {"w": w}), after, array(5, 8, seed=7))


def test_bounds_beyond_the_largest_cut_nothing_off() -> None:
    before = chain("Clip", "low", "high", weights={"low": np.float32(0), "high": np.float32(3.4e38)})
    after, log = convert(before, data(5, 8))
    assert not log.refusals
    high = next(numpy_helper.to_array(t) for t in after.graph.initializer if t.name == "high_float16")
    assert np.isposinf(high)
    near(before, after, array(5, 8, seed=7))


def test_infinite_masks_fit() -> None:
    weights = {"c": np.where(np.tri(5, 8) > 0, 0, -np.inf).astype(np.float32)}
    nodes = [node("MatMul", ["x", "w"], ["m"]), node("Add", ["m", "c"], ["a"]), node("Softmax", ["a"], ["p"])]
    nodes.append(node("MatMul", ["p", "w"], ["y"]))
    before = model(nodes, {"x": [5, 8]}, {"y": [5, 8]}, {"w": array(8, 8), **weights})
    after, log = convert(before, data(5, 8))
    assert not log.refusals
    near(before, after, array(5, 8, seed=7))


def test_small_values_stay() -> None:
    before = chain("Mul", "c", weights={"c": np.float32(1e-4)})
    stays(before, data(5, 8, scale=1e-1), "n", "where float16 has few digits")


@pytest.mark.parametrize("op", ["Div", "Reciprocal", "Log"])
def test_small_denominators_stay(op: str) -> None:
    nodes = [node("Abs", ["x"], ["a"]), node("Mul", ["a", "c"], ["d"])]
    nodes += [node("Div", ["x", "d"], ["n"])] if op == "Div" else [node(op, ["d"], ["n"])]
    before = model([*nodes, node("Tanh", ["n"], ["t"]), node("MatMul", ["t", "w"], ["y"])], {"x": [5, 8]}, {"y": [5, 8]},
                   {"c": np.float32(0.003), "w": array(8, 8)})  # fmt: skip
    stays(before, [d + np.float32(0.06) for d in data(5, 8, low=0.0)], "n", "comes as close to zero as")
    assert "n" not in {r.node for r in convert(before, [d + np.float32(500) for d in data(5, 8, low=0.0)])[1].refusals}


def test_an_epsilon_of_a_normalization_that_is_spelled_out() -> None:
    nodes = [
        node("ReduceMean", ["x"], ["mean"], axes=[-1]), node("Sub", ["x", "mean"], ["d"]), node("Mul", ["d", "d"], ["d2"]),
        node("ReduceMean", ["d2"], ["var"], axes=[-1]), node("Add", ["var", "eps"], ["e"]), node("Sqrt", ["e"], ["s"]),
        node("Div", ["d", "s"], ["n"]), node("MatMul", ["n", "w"], ["y"]),
    ]  # fmt: skip
    before = model(nodes, {"x": [5, 64]}, {"y": [5, 8]}, {"eps": np.float32(1e-6), "w": array(64, 8)})
    after = stays(before, data(5, 64), "e", "the constant 'eps', 1e-06 at most, would lose 1.3 %")
    near(before, after, array(5, 64, seed=7))
    tiny = data(5, 64, scale=1e-4)
    after = stays(before, tiny, "var", "few digits")
    near(before, after, tiny[0])


@pytest.mark.parametrize(
    ("op", "attributes", "shape"),
    [
        ("ReduceMean", {"axes": [-1]}, (2, 8192)), ("GlobalAveragePool", {}, (1, 2, 128, 128)),
        ("AveragePool", {"kernel_shape": [64, 64]}, (1, 2, 64, 64)), ("ReduceL2", {"axes": [-1]}, (2, 8192)),
    ],
)  # fmt: skip
def test_sums_that_may_overflow_on_the_way(op: str, attributes, shape) -> None:
    weights = {"c": np.float32(4.0), "k": np.float32(0.5)}
    nodes = [node("Mul", ["x", "c"], ["m"]), node(op, ["m"], ["n"], **attributes), node("Mul", ["n", "k"], ["y"])]
    before = model(nodes, {"x": shape}, {"y": None}, weights)
    stays(before, data(*shape, low=5.0), "n", "on the way; float16 ends at 65,504")
    assert "n" not in {r.node for r in convert(before, data(*shape, low=0.0, scale=0.1))[1].refusals}


def test_sums_of_both_signs_and_variances() -> None:
    before = model([node("Mul", ["x", "c"], ["m"]), node("ReduceSum", ["m"], ["n"], keepdims=0)], {"x": [2, 8192]}, {"n": []},
                   {"c": np.float32(4.0)}, opset=13)  # fmt: skip
    stays(before, data(2, 8192), "n", "on the way")
    weights = {"s": np.ones(2, np.float32), "b": np.zeros(2, np.float32), "c": np.float32(40.0)}
    nodes = [node("Mul", ["x", "c"], ["m"]), node("InstanceNormalization", ["m", "s", "b"], ["n"]), node("Relu", ["n"], ["y"])]
    before = model(nodes, {"x": [1, 2, 16, 16]}, {"y": None}, weights)
    stays(before, data(1, 2, 16, 16), "n", "on the way")


def test_angles_and_what_they_are_computed_of_stay() -> None:
    nodes = [
        node("Mul", ["x", "f"], ["a"]), node("Add", ["a", "f"], ["b"]), node("Sin", ["b"], ["s"]), node("MatMul", ["s", "w"], ["y"]),
        node("MatMul", ["x", "w"], ["z"]),
    ]  # fmt: skip
    before = model(nodes, {"x": [5, 8]}, {"y": [5, 8], "z": [5, 8]}, {"f": np.float32(100.0), "w": array(8, 8)})
    after = stays(before, data(5, 8), "s", "it needs the exact size of numbers up to")
    stays(before, data(5, 8), "a", "must be exact for Sin 's'")
    assert types(after)["z"] == TensorProto.FLOAT and ops(after)["Cast"] >= 3
    near(before, after, array(5, 8, seed=7))


def test_numbers_that_become_indices_stay() -> None:
    nodes = [node("Mul", ["x", "f"], ["a"]), node("Cast", ["a"], ["y"], to=7), node("MatMul", ["x", "w"], ["z"])]
    before = model(nodes, {"x": [5, 8]}, {"y": [5, 8], "z": [5, 8]}, {"f": np.float32(3000.0), "w": array(8, 8)}, types={"y": 7})
    _, log = convert(before, data(5, 8))
    assert any("needs the exact size" in r for r in reasons(log))
    assert any("must be exact for Cast" in r for r in reasons(log))


@pytest.mark.parametrize(
    ("nodes", "label", "reason"),
    [
        ([node("MatMul", ["x", "w"], ["m"]), node("TopK", ["m", "k"], ["y", "i"])], "y", "it compares numbers"),
        ([node("MatMul", ["x", "w"], ["m"]), node("CumSum", ["m", "axis"], ["y"])], "y", "it counts"),
        ([node("MatMul", ["x", "w"], ["m"]), node("Resize", ["m", "", "scales"], ["y"])], "y", "it computes places of pixels"),
        (
            [node("MatMul", ["x", "w"], ["m"]), node("RandomNormalLike", ["m"], ["r"]), node("Mul", ["m", "r"], ["y"])],
            "r", "of a type of its own",
        ),
        (
            [node("MatMul", ["x", "w"], ["m"]), node("QuantizeLinear", ["m", "s"], ["q"]), node("DequantizeLinear", ["q", "s"], ["y"])],
            "y", "it stands between float and integers",
        ),
    ],
)  # fmt: skip
def test_operators_that_stay(nodes, label: str, reason: str) -> None:
    weights = {"w": array(8, 8), "k": np.asarray([2]), "axis": np.asarray(0), "scales": np.float32([2, 1]), "s": np.float32(0.1)}
    used = {name for n in nodes for name in n.input}
    before = model(nodes, {"x": [5, 8]}, ["y"], {k: v for k, v in weights.items() if k in used})
    after, log = convert(before, data(5, 8))
    assert reason in {r.node: r.reason for r in log.refusals}[label]
    assert types(after)[label] == TensorProto.FLOAT
    if label != "r":
        near(before, after, array(5, 8, seed=7), 1e-2)


def test_recurrence_stays() -> None:
    weights = {"w": array(1, 24, 8), "r": array(1, 24, 6), "v": array(6, 4)}
    nodes = [node("LSTM", ["x", "w", "r"], ["h"], hidden_size=6), node("MatMul", ["h", "v"], ["y"])]
    before = model(nodes, {"x": [7, 2, 8]}, ["y"], weights)
    near(before, stays(before, data(7, 2, 8), "h", "its state would be rounded at every step"), array(7, 2, 8, seed=7))


def test_operators_by_name() -> None:
    after = stays(network(), data(1, 3, 8, 8), "c", "the option keep names Conv", keep="Conv+Gemm")
    assert ops(after)["Cast"] <= 2
    stays(network(), data(1, 3, 8, 8), "y", "the option keep names Gemm", keep="Conv + Gemm")


def test_definitions_and_unknown_operators() -> None:
    nodes = [node("MatMul", ["x", "w"], ["m"]), helper.make_node("Gelu", ["m"], ["g"], domain="com.microsoft", name="g"),
             helper.make_node("Inverse", ["g"], ["y"], domain="com.microsoft", name="y")]  # fmt: skip
    before = model(nodes, {"x": [8, 8]}, {"y": [8, 8]}, {"w": array(8, 8)}, opsets={"com.microsoft": 1})
    after, log = convert(before, data(8, 8))
    assert "what com.microsoft.Inverse does with float16 is not known" in reasons(log)[0]
    assert next(n for n in after.graph.node if n.op_type == "Gelu").input[0] == "m"
    before = model([node("MatMul", ["x", "w"], ["m"]), node("Mean", ["m", "m"], ["y"])], {"x": [5, 8]}, {"y": [5, 8]}, {"w": array(8, 8)})
    assert not convert(before, data(5, 8))[1].refusals
    before = chain("ThresholdedRelu", scale=1.0)
    assert not convert(before, data(5, 8))[1].refusals
    nodes = [node("MatMul", ["x", "w"], ["m"]), node("LayerNormalization", ["m", "s"], ["y"], stash_type=10)]
    before = model(nodes, {"x": [5, 8]}, {"y": None}, {"w": array(8, 8), "s": np.ones(8, np.float32)})
    assert "its statistics are not computed in float32 (stash_type)" in reasons(convert(before, data(5, 8))[1])


def test_light_operators_between_float32_neighbours_stay() -> None:
    nodes = [node("MatMul", ["x", "w"], ["m"]), node("CumSum", ["m", "axis"], ["a"]), node("Relu", ["a"], ["b"]), node("Neg", ["b"], ["c"]),
             node("CumSum", ["c", "axis"], ["d"]), node("MatMul", ["d", "w"], ["y"])]  # fmt: skip
    before = model(nodes, {"x": [5, 8]}, {"y": [5, 8]}, {"w": array(8, 8), "axis": np.asarray(0)})
    after, log = convert(before, data(5, 8))
    assert log.applied == 2
    assert "2 more because Casts around them would cost more; 4 Casts" in log.notes[0]
    near(before, after, array(5, 8, seed=7))


def test_no_cast_follows_another() -> None:
    nodes = [
        node("Cast", ["x"], ["h"], to=10), node("Cast", ["h"], ["f"], to=1), node("MatMul", ["f", "w"], ["m"]),
        node("Cast", ["m"], ["g"], to=10), node("Relu", ["g"], ["y"]), node("Cast", ["i"], ["if"], to=1),
        node("MatMul", ["if", "w"], ["z"]),
    ]  # fmt: skip
    before = model(nodes, {"x": [5, 8], "i": [5, 8]}, {"y": [5, 8], "z": [5, 8]}, {"w": array(8, 8)}, types={"i": 7, "y": 10})
    samples = [{"x": d, "i": np.arange(40).reshape(5, 8)} for d in data(5, 8)]
    after, _ = convert(before, samples)
    made = {n.output[0]: n for n in after.graph.node}
    for n in after.graph.node:
        if n.op_type == "Cast":
            assert n.input[0] not in made or made[n.input[0]].op_type != "Cast"
    assert ops(after)["Cast"] == 3  # x and i to float16, z to float32
    near(before, after, samples[0])


def test_fills_and_constants_in_nodes() -> None:
    nodes = [
        node("Shape", ["x"], ["s"]), node("ConstantOfShape", ["s"], ["o"], value=numpy_helper.from_array(np.float32([0.5]))),
        node("Constant", [], ["c"], value=numpy_helper.from_array(np.float32(2.0))), node("MatMul", ["x", "w"], ["m"]),
        node("Mul", ["m", "c"], ["a"]), node("Add", ["a", "o"], ["y"]),
    ]  # fmt: skip
    before = model(nodes, {"x": [5, 8]}, {"y": [5, 8]}, {"w": array(8, 8)})
    after, _ = convert(before, data(5, 8))
    assert "Constant" not in ops(after)
    assert len(casts(after)) == 2
    assert types(after)["o"] == HALF
    near(before, after, array(5, 8, seed=7))


def test_subgraphs_stay_and_read_float32() -> None:
    def branch(name: str, op: str):
        return helper.make_graph([node(op, ["m"], [f"{name}_y"])], name, [], [helper.make_tensor_value_info(f"{name}_y", 1, [5, 8])])

    chosen = node("If", ["c"], ["i"], then_branch=branch("a", "Relu"), else_branch=branch("b", "Neg"))
    nodes = [node("MatMul", ["x", "w"], ["m"]), chosen, node("MatMul", ["i", "w"], ["y"])]
    before = model(nodes, {"x": [5, 8], "c": []}, {"y": [5, 8]}, {"w": array(8, 8)}, types={"c": 9})
    samples = [{"x": d, "c": np.asarray(i % 2 == 0)} for i, d in enumerate(data(5, 8))]
    after, log = convert(before, samples)
    assert reasons(log) == ["what it computes in subgraphs stays in float32"]
    assert log.applied == 2
    for sample in samples:
        near(before, after, sample)


def test_a_constant_that_a_caller_may_override() -> None:
    nodes = [node("MatMul", ["x", "w"], ["y"])]
    before = model(nodes, {"x": [5, 8]}, {"y": [5, 8]}, {"w": array(8, 8)}, overridable=["w"])
    after, _ = convert(before, [{"x": d} for d in data(5, 8)])
    assert [t.name for t in after.graph.initializer] == ["w"]
    near(before, after, {"x": array(5, 8, seed=7), "w": array(8, 8, seed=5)})


def test_a_constant_that_both_read_is_there_twice() -> None:
    nodes = [node("MatMul", ["x", "w"], ["m"]), node("CumSum", ["w", "axis"], ["d"]), node("MatMul", ["m", "d"], ["y"])]
    before = model(nodes, {"x": [5, 8]}, {"y": [5, 8]}, {"w": array(8, 8), "axis": np.asarray(0)})
    after, _ = convert(before, data(5, 8))
    assert {"w", "w_float16"} <= {t.name for t in after.graph.initializer}
    near(before, after, array(5, 8, seed=7))


def test_what_is_held_back_stays() -> None:
    after, log = convert(network(), data(1, 3, 8, 8), allow=lambda number: number != 1)
    assert [label for _, label in log.numbered] == ["c", "g", "f", "y"]
    assert types(after)["r"] == TensorProto.FLOAT
    assert len(casts(after)) == 4
    near(network(), after, array(1, 3, 8, 8, seed=9))


def test_nothing_to_convert() -> None:
    before = model([node("Shape", ["x"], ["y"])], {"x": [5, 8]}, {"y": [2]}, types={"x": 7, "y": 7})
    after, log = convert(before, [np.zeros((5, 8), np.int64)] * 2)
    assert log.notes == ["nothing to convert: no operator computes in float32"]
    assert ops(after) == {"Shape": 1}


def test_samples_are_needed() -> None:
    graph = ir.from_proto(network())
    with pytest.raises(CalibrationError, match="needs calibration samples"):
        REGISTRY.get(NAME)().run(Context(graph, ChangeLog(NAME)))


def test_bfloat16_only_where_there_is_a_kernel() -> None:
    """On CPUs no product has one; what moves numbers does, and alone it would only cost Casts."""
    after, log = convert(network(), data(1, 3, 8, 8), type="bfloat16")
    assert ops(after) == ops(network())
    assert "ONNX Runtime has no kernel of Gemm for bfloat16 on cpu" in reasons(log)
    assert "Conv is not defined for bfloat16 at opset 17" in reasons(log)
    nodes = [node("Cast", ["x"], ["f"], to=1), node("LayerNormalization", ["f", "s"], ["n"]), node("Cast", ["n"], ["y"], to=7)]
    scale = array(8, low=50.0)
    before = model(nodes, {"x": [5, 8]}, {"y": [5, 8]}, {"s": scale}, types={"x": 7, "y": 7})
    x = np.arange(40).reshape(5, 8) ** 2 % 31
    after, log = convert(before, [x, x + 1], type="bfloat16")
    assert log.applied == 3
    assert [n.op_type for n in after.graph.node] == ["Cast", "LayerNormalization", "Cast"]
    stored = numpy_helper.to_array(next(t for t in after.graph.initializer if t.name == "s_bfloat16"))
    np.testing.assert_array_equal(stored.astype(np.float32), scale.astype(ml_dtypes.bfloat16).astype(np.float32))
    near(before, after, x, 3e-2)

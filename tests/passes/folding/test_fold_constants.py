"""Constant folding: what is computed, to the bit, and what stays as it is."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.support import array, assert_same, model, node, ops, reasons, run_pass

FREE = {"max_growth_bytes": 1 << 30, "max_total_growth": 10.0}


def folded(nodes, initializers, *, output=None, dtype=None, **options):
    """Fold `nodes`, whose last output is added to the input; the model must answer the same to the bit."""
    last = nodes[-1].output[0]
    end = node("Identity", [last], ["y"])
    proto = model([*nodes, end], {"unused": [1]}, {"y": output}, initializers, types={"y": dtype or TensorProto.FLOAT})
    after, log = run_pass(proto, "fold-constants", **{**FREE, **options})
    assert_same(proto, after, {"unused": array(1)}, exact=True)
    return after, log


INTS = np.array([[-7, 7, -8], [9, -1, 5]], np.int64)
DIVISORS = np.array([[2, -2, 3], [-4, 5, -5]], np.int64)


@pytest.mark.parametrize(
    "op, inputs, attributes, dtype",
    [
        ("Div", [INTS, DIVISORS], {}, TensorProto.INT64),
        ("Mod", [INTS, DIVISORS], {}, TensorProto.INT64),
        ("Mod", [INTS, DIVISORS], {"fmod": 1}, TensorProto.INT64),
        ("Add", [np.array([2**63 - 1], np.int64), np.array([5], np.int64)], {}, TensorProto.INT64),
        ("Mul", [array(3, 4), array(4)], {}, TensorProto.FLOAT),
        ("Sqrt", [array(500, low=0.1)], {}, TensorProto.FLOAT),
        ("Div", [array(500), array(500, seed=1)], {}, TensorProto.FLOAT),
        ("Cast", [array(5) * 100], {"to": TensorProto.INT8}, TensorProto.INT8),
        ("Cast", [array(50)], {"to": TensorProto.DOUBLE}, TensorProto.DOUBLE),
        ("Cast", [INTS * 100], {"to": TensorProto.UINT8}, TensorProto.UINT8),
        ("Transpose", [array(2, 3, 4)], {"perm": [2, 0, 1]}, TensorProto.FLOAT),
        ("Concat", [array(2, 3), array(2, 1)], {"axis": -1}, TensorProto.FLOAT),
        ("Slice", [array(5, 6), *(np.array(v, np.int64) for v in ([4, -1], [-100, 1], [0, 1], [-2, -2]))], {}, TensorProto.FLOAT),
        ("Gather", [array(5, 6), np.array([[-1, 2]], np.int64)], {"axis": 1}, TensorProto.FLOAT),
        ("Range", [np.int64(7), np.int64(-4), np.int64(-3)], {}, TensorProto.INT64),
        ("Tile", [array(2, 3), np.array([2, 1], np.int64)], {}, TensorProto.FLOAT),
        ("Where", [array(4) > 0, array(4), array(1)], {}, TensorProto.FLOAT),
        ("ReduceProd", [INTS], {"axes": [1], "keepdims": 0}, TensorProto.INT64),
        ("Trilu", [array(4, 4)], {"upper": 0}, TensorProto.FLOAT),
        ("ScatterND", [array(4), np.array([[1], [3]], np.int64), array(2)], {}, TensorProto.FLOAT),
        ("OneHot", [np.array([0, 2], np.int64), np.array(3, np.int64), np.array([0, 1], np.float32)], {}, TensorProto.FLOAT),
        ("Equal", [INTS, DIVISORS], {}, TensorProto.BOOL),
    ],
)
def test_operators(op, inputs, attributes, dtype) -> None:
    names = [f"c{i}" for i in range(len(inputs))]
    after, log = folded([node(op, names, ["r"], **attributes)], dict(zip(names, map(np.asarray, inputs))), dtype=dtype)
    assert log.applied == 1
    assert set(ops(after)) == {"Constant"}


def test_values_that_shapes_determine() -> None:
    before = model(
        [
            node("Shape", ["x"], ["s"]), node("Gather", ["s", "i"], ["g"]), node("Mul", ["g", "two"], ["m"]),
            node("Reshape", ["x", "m"], ["y"]),
        ],
        {"x": [2, 6]}, ["y"], {"i": np.array([1], np.int64), "two": np.array([2], np.int64)},
    )
    after, log = run_pass(before, "fold-constants")
    assert ops(after) == {"Reshape": 1}
    assert [t.name for t in after.graph.initializer] == ["m"]
    assert log.applied == 1
    assert_same(before, after, {"x": array(2, 6)}, exact=True)


def test_a_dynamic_shape_stays() -> None:
    before = model([node("Shape", ["x"], ["y"])], {"x": ["n", 6]}, {"y": [2]}, types={"y": TensorProto.INT64})
    after, log = run_pass(before, "fold-constants")
    assert ops(after) == {"Shape": 1}
    assert not log.applied
    assert not log.refusals


def test_a_large_step_on_the_way_to_a_small_result_is_folded() -> None:
    nodes = [node("ConstantOfShape", ["big"], ["z"]), node("Shape", ["z"], ["s"]), node("Gather", ["s", "i"], ["g"])]
    after, _ = folded(
        nodes, {"big": np.array([1000, 1000], np.int64), "i": np.array([0], np.int64)}, dtype=TensorProto.INT64,
        max_growth_bytes=65536, max_total_growth=0.01,
    )
    assert set(ops(after)) == {"Constant"}


@pytest.mark.parametrize("op", ["Expand", "Tile", "ConstantOfShape"])
def test_what_would_grow_the_file_stays(op) -> None:
    size = np.array([300, 300], np.int64)
    inputs = {"ConstantOfShape": ["n"]}.get(op, ["c", "n"])
    before = model([node(op, inputs, ["r"]), node("Add", ["x", "r"], ["y"])], {"x": [300, 300]}, ["y"], {"c": array(1, 1), "n": size})
    after, log = run_pass(before, "fold-constants")
    assert ops(after)[op] == 1
    assert "folded it would take 360,000 bytes" in reasons(log)[0]
    assert log.applied == 0


def test_growth_is_limited_over_the_whole_model() -> None:
    nodes = [node("Expand", ["c", "n"], [f"r{i}"]) for i in range(8)]
    nodes += [node("Sum", [f"r{i}" for i in range(8)] + ["x"], ["s"]), node("MatMul", ["s", "w"], ["y"])]
    before = model(nodes, {"x": [1, 200]}, ["y"], {"c": array(1, 1), "n": np.array([1, 200], np.int64), "w": array(200, 300)})
    after, log = run_pass(before, "fold-constants")
    assert 1 <= log.applied <= 3
    assert after.ByteSize() < 1.02 * before.ByteSize()
    again, log = run_pass(before, "fold-constants", max_total_growth=1.0)
    assert log.applied == 8
    assert_same(before, again, {"x": array(1, 200)}, exact=True)


@pytest.mark.parametrize("form", ["Cast", "DequantizeLinear"])
def test_int8_weights_stay_int8(form) -> None:
    weight = np.arange(-2000, 2000).reshape(40, 100).astype(np.int8)
    if form == "Cast":
        first = [node("Cast", ["q"], ["f"], to=TensorProto.FLOAT), node("Mul", ["f", "s"], ["w"])]
    else:
        first = [node("DequantizeLinear", ["q", "s"], ["w"])]
    before = model([*first, node("MatMul", ["x", "w"], ["y"])], {"x": [2, 40]}, ["y"], {"q": weight, "s": np.array(0.1, np.float32)})
    for name in ("fold-constants", "fold-float-constants"):
        after, log = run_pass(before, name, **FREE)
        assert log.applied == 0
        assert ops(after) == ops(before)
        assert after.ByteSize() <= before.ByteSize() + 100
    if form == "Cast":
        assert reasons(log) == ["its weights are kept in their narrow type"]


def test_a_shared_weight_is_not_copied() -> None:
    before = model(
        [node("Transpose", ["w"], ["t"]), node("Add", ["x", "t"], ["a"]), node("Mul", ["a", "w"], ["y"])], {"x": [200, 200]}, ["y"],
        {"w": array(200, 200)},
    )
    after, log = run_pass(before, "fold-constants")
    assert ops(after) == ops(before)
    assert "in the place of 0" in reasons(log)[0]


def test_overridable_initializers_stay() -> None:
    before = model(
        [node("Add", ["c", "c"], ["d"]), node("Mul", ["x", "d"], ["y"])], {"x": [3]}, ["y"], {"c": array(3)}, overridable=["c"]
    )
    after, log = run_pass(before, "fold-constants", **FREE)
    assert ops(after) == ops(before)
    assert log.applied == 0
    assert_same(before, after, {"x": array(3), "c": array(3, seed=5)}, exact=True)


@pytest.mark.parametrize(
    "nodes",
    [
        [node("RandomNormalLike", ["c"], ["r"])],
        [node("RandomUniform", [], ["r"], shape=[3])],
        [node("Bernoulli", ["c"], ["r"])],
        [node("Dropout", ["c", "half", "yes"], ["r"])],
    ],
)
def test_random_operators_stay(nodes) -> None:
    before = model(
        [*nodes, node("Add", ["x", "r"], ["y"])], {"x": [3]}, ["y"],
        {"c": array(3, low=0.2), "half": np.array(0.5, np.float32), "yes": np.array(True)},
    )
    for name in ("fold-constants", "fold-float-constants"):
        after, log = run_pass(before, name, **FREE)
        assert ops(after) == ops(before)
        assert log.applied == 0


def test_unknown_domains_stay() -> None:
    before = model(
        [node("Magic", ["c"], ["r"], domain="nowhere"), node("Add", ["x", "r"], ["y"])], {"x": [3]}, {"y": [3]}, {"c": array(3)},
        opsets={"nowhere": 1},
    )
    after, _ = run_pass(before, "fold-constants", **FREE)
    assert ops(after) == ops(before)


@pytest.mark.parametrize(
    "nodes, constants, reason",
    [
        ([node("Div", ["a", "b"], ["r"])], {"a": np.array([1, 2]), "b": np.array([1, 0])}, "a divisor is 0"),
        ([node("Cast", ["a"], ["r"], to=TensorProto.INT64)], {"a": np.array([1e30, np.nan], np.float32)}, "does not fit"),
        ([node("Gather", ["a", "b"], ["r"])], {"a": np.array([1, 2]), "b": np.array([7, 0])}, "outside the axis"),
        ([node("Reshape", ["a", "b"], ["r"])], {"a": np.array([1, 2]), "b": np.array([3])}, "it cannot be evaluated"),
    ],
)
def test_what_cannot_be_foretold_is_refused(nodes, constants, reason) -> None:
    before = model([*nodes, node("Identity", ["r"], ["y"])], {"x": [1]}, {"y": None}, constants, types={"y": TensorProto.INT64})
    after, log = run_pass(before, "fold-constants", **FREE)
    assert ops(after) == ops(before)
    assert reason in reasons(log)[0]


def test_a_maximum_with_nan_is_left_to_the_runtime() -> None:
    constants = {"a": np.array([np.nan, 1], np.float32), "b": np.array([0, -0.0], np.float32)}
    after, log = folded([node("Max", ["a", "b"], ["r"])], constants)
    assert ops(after)["Max"] == 1
    assert not log.refusals


def test_a_graph_output_keeps_its_name() -> None:
    before = model([node("Add", ["a", "a"], ["y"])], {"x": [1]}, {"y": [3]}, {"a": array(3)})
    after, log = run_pass(before, "fold-constants", **FREE)
    assert ops(after) == {"Constant": 1}
    assert log.applied == 1
    assert_same(before, after, {"x": array(1)}, exact=True)


def test_weights_are_left_to_the_rounding_pass() -> None:
    before = model(
        [node("Unsqueeze", ["w", "axis"], ["u"]), node("Conv", ["x", "u"], ["y"])], {"x": [1, 3, 8]}, ["y"],
        {"w": array(4, 3), "axis": np.array([2])},
    )
    after, log = run_pass(before, "fold-constants", **FREE)
    assert ops(after) == ops(before)
    assert not log.refusals
    after, log = run_pass(before, "fold-float-constants", **FREE)
    assert ops(after) == {"Conv": 1}
    assert_same(before, after, {"x": array(1, 3, 8)})


def test_casts_to_half_precision_stay() -> None:
    before = model(
        [
            node("Cast", ["x"], ["h"], to=TensorProto.FLOAT16), node("Cast", ["s"], ["t"], to=TensorProto.FLOAT16),
            node("Mul", ["h", "t"], ["y"]),
        ],
        {"x": [3]}, {"y": [3]}, {"s": array(1)}, types={"y": TensorProto.FLOAT16},
    )
    for name in ("fold-constants", "fold-float-constants"):
        after, log = run_pass(before, name, **FREE)
        assert ops(after) == ops(before)
        assert not log.refusals


@pytest.mark.parametrize("op, shapes", [("Exp", [(3, 4)]), ("MatMul", [(3, 4), (4, 5)]), ("ReduceMean", [(3, 4)]), ("Softmax", [(3, 4)])])
def test_float_arithmetic(op, shapes) -> None:
    names = [f"c{i}" for i in range(len(shapes))]
    constants = {name: array(*shape, seed=i) for i, (name, shape) in enumerate(zip(names, shapes))}
    before = model([node(op, names, ["r"]), node("Add", ["x", "r"], ["y"])], {"x": [1]}, ["y"], constants)
    after, log = run_pass(before, "fold-constants", **FREE)
    assert ops(after) == ops(before)
    after, log = run_pass(before, "fold-float-constants", **FREE)
    assert ops(after) == {"Add": 1}
    assert log.applied == 1
    assert_same(before, after, {"x": array(1)})


def test_opset_forms_of_axes() -> None:
    for opset, inputs, attributes in ((11, ["c"], {"axes": [0]}), (13, ["c", "a"], {})):
        before = model(
            [node("Unsqueeze", inputs, ["r"], **attributes), node("Add", ["x", "r"], ["y"])], {"x": [1, 3]}, ["y"],
            {"c": array(3), "a": np.array([0])}, opset=opset,
        )
        after, _ = run_pass(before, "fold-constants", **FREE)
        assert ops(after) == {"Add": 1}
        assert_same(before, after, {"x": array(1, 3)}, exact=True)


def test_subgraphs_and_what_they_capture() -> None:
    then = helper.make_graph(
        [node("Add", ["c", "c"], ["d"]), node("Mul", ["x", "d"], ["t"]), node("Add", ["t", "outer"], ["then"])], "then", [],
        [helper.make_tensor_value_info("then", TensorProto.FLOAT, [3])],
    )
    other = helper.make_graph([node("Neg", ["c"], ["else"])], "else", [], [helper.make_tensor_value_info("else", TensorProto.FLOAT, [3])])
    before = model(
        [node("Sub", ["c", "e"], ["outer"]), node("If", ["k"], ["y"], then_branch=then, else_branch=other)],
        {"x": [3], "k": []}, {"y": [3]}, {"c": array(3), "e": array(3, seed=3)}, types={"k": TensorProto.BOOL},
    )
    after, log = run_pass(before, "fold-constants", **FREE)
    branches = {a.name: [n.op_type for n in a.g.node] for a in after.graph.node[-1].attribute}
    assert ops(after) == {"If": 1}
    assert branches == {"then_branch": ["Mul", "Add"], "else_branch": ["Constant"]}
    assert log.applied == 3
    for k in (True, False):
        assert_same(before, after, {"x": array(3), "k": np.array(k)}, exact=True)


def test_bodies_of_functions() -> None:
    function = helper.make_function(
        "local", "twice", ["x"], ["y"],
        [
            helper.make_node("Constant", [], ["c"], value=numpy_helper.from_array(array(1))), helper.make_node("Add", ["c", "c"], ["d"]),
            helper.make_node("Mul", ["x", "d"], ["y"]),
        ],
        [helper.make_opsetid("", 17)],
    )
    before = model([node("twice", ["x"], ["y"], domain="local")], {"x": [3]}, {"y": [3]}, functions=[function], opsets={"local": 1})
    after, log = run_pass(before, "fold-constants", **FREE)
    assert [n.op_type for n in after.functions[0].node] == ["Constant", "Mul"]
    assert log.applied == 1
    assert_same(before, after, {"x": array(3)}, exact=True)


def test_a_reference_attribute_is_not_a_constant() -> None:
    scale = helper.make_node("Constant", [], ["c"])
    scale.attribute.append(onnx.AttributeProto(name="value_float", ref_attr_name="scale", type=onnx.AttributeProto.FLOAT))
    function = helper.make_function(
        "local", "scaled", ["x"], ["y"], [scale, helper.make_node("Add", ["c", "c"], ["d"]), helper.make_node("Mul", ["x", "d"], ["y"])],
        [helper.make_opsetid("", 17)], ["scale"],
    )
    call = node("scaled", ["x"], ["y"], domain="local", scale=2.0)
    before = model([call], {"x": [3]}, {"y": [3]}, functions=[function], opsets={"local": 1})
    after, log = run_pass(before, "fold-constants", **FREE)
    assert [n.op_type for n in after.functions[0].node] == ["Constant", "Add", "Mul"]
    assert log.applied == 0

"""Shape inference against what ONNX Runtime computes: what is inferred must hold at every size."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

from graphopt.rewriting import Context
from tests.support import array, model, node, session

I64 = TensorProto.INT64


def inferred(proto):
    graph = ir.from_proto(onnx.ModelProto.FromString(proto.SerializeToString()))
    context = Context(graph)
    values = {v.name: v for n in graph.graph for v in n.outputs} | {v.name: v for v in graph.graph.inputs}
    return context, values


def holds(proto, *feeds):
    """Compare every inferred size and element with the real one; symbols take the sizes that inputs have."""
    context, values = inferred(proto)
    shown = onnx.ModelProto.FromString(proto.SerializeToString())
    known = {o.name for o in shown.graph.output}
    shown.graph.output.extend(onnx.ValueInfoProto(name=v) for n in shown.graph.node for v in n.output if v and v not in known)
    runner = session(shown)
    names = [o.name for o in runner.get_outputs()]
    for feed in feeds:
        sizes: dict[str, int] = {}
        results = dict(zip(names, runner.run(None, feed))) | feed
        checks = []
        for name, array_ in results.items():
            dims = context.dims(values[name])
            if dims is not None:
                assert len(dims) == np.ndim(array_), name
                checks.extend((name, d, s) for d, s in zip(dims, np.shape(array_)))
            elements = context.shapes.partial_value(values[name])
            if elements is not None:
                checks.extend((name, e, int(s)) for e, s in zip(elements, np.asarray(array_).reshape(-1), strict=True) if e is not None)
        for _, dim, size in checks:
            if isinstance(dim, str) and dim.isidentifier():
                sizes.setdefault(dim, size)
        for name, dim, size in checks:
            real = dim if isinstance(dim, int) else sizes[dim] if dim in sizes else ir.SymbolicDim(dim).evaluate(sizes)
            if isinstance(real, int):  # a symbol may stand for what is no size of its own
                assert real == size, f"{name}: {dim} is {size} with {sizes}"
    return context, values


def opened(nodes, inputs, constants=None, **settings):
    """A model whose last node may have outputs of any rank: what the model gives out is their number of elements."""
    last = nodes[-1].output
    types = {**settings.pop("types", {}), **{f"{v}_size": I64 for v in last}}
    nodes = [*nodes, *(node("Size", [v], [f"{v}_size"]) for v in last)]
    return model(nodes, inputs, {f"{v}_size": [] for v in last}, constants, types=types, **settings)


def vector(*values):
    return np.array(values, np.int64)


def test_a_slice_may_reach_past_the_end() -> None:
    before = model(
        [node("Slice", ["x", "s", "e"], ["y"])], {"x": ["n", 3]}, {"y": [None, 3]}, {"s": vector(0), "e": vector(5)},
    )
    context, values = holds(before, {"x": array(2, 3)}, {"x": array(9, 3)})
    assert not isinstance(context.dims(values["y"])[0], int)


@pytest.mark.parametrize(
    "start, end, step", [(1, 2**63 - 1, 1), (0, -1, 1), (-1, -(2**63), -1), (0, 2**31 - 1, 2), (-3, 2**63 - 1, 1), (2, -2, 3), (5, 1, -2)]
)
def test_slices(start, end, step) -> None:
    before = model(
        [node("Slice", ["x", "s", "e", "a", "t"], ["y"]), node("Shape", ["y"], ["z"])], {"x": ["n", 4]}, {"y": None, "z": None},
        {"s": vector(start), "e": vector(end), "a": vector(0), "t": vector(step)}, types={"z": I64},
    )
    holds(before, {"x": array(7, 4)}, {"x": array(1, 4)}, {"x": array(0, 4)})


def test_unlike_symbols_do_not_broadcast_to_the_first() -> None:
    before = model([node("Add", ["x", "b"], ["y"])], {"x": ["n", 3], "b": ["m", 3]}, {"y": [None, 3]})
    context, values = holds(before, {"x": array(1, 3), "b": array(5, 3)}, {"x": array(5, 3), "b": array(1, 3)})
    assert context.dims(values["y"])[0] not in ("n", "m")


def test_a_position_table_cut_to_the_length_broadcasts_to_the_length() -> None:
    before = model(
        [
            node("Shape", ["x"], ["s"]), node("Gather", ["s", "one"], ["g"]), node("Slice", ["w", "zero", "g", "one"], ["p"]),
            node("Add", ["x", "p"], ["y"]),
        ],
        {"x": ["n", "s", 4]}, {"y": None}, {"w": array(1, 16, 4), "zero": vector(0), "one": vector(1)},
    )
    context, values = holds(before, {"x": array(2, 7, 4)}, {"x": array(1, 1, 4)}, {"x": array(1, 16, 4)})
    assert context.dims(values["y"]) == ("n", "s", 4)


@pytest.mark.parametrize(
    "op, inputs, constants",
    [
        ("Squeeze", ["x", "k"], {}), ("Slice", ["x", "z", "z", "k"], {"z": vector(0)}), ("ReduceSum", ["x", "k"], {}),
        ("Unsqueeze", ["x", "k"], {}), ("Tile", ["x", "kk"], {}),
    ],
)
def test_axes_that_are_computed_leave_the_shape_open(op, inputs, constants) -> None:
    types = {"k": I64, "kk": I64}
    before = opened([node(op, inputs, ["y"])], {"x": ["n", 1], "k": [1], "kk": [2]}, constants, types=types)
    feed = {"x": array(3, 1), "k": vector(1), "kk": vector(2, 2)}
    holds(before, feed, feed | {"k": vector(1), "kk": vector(1, 3)})


def test_squeeze_without_axes() -> None:
    before = opened([node("Squeeze", ["x"], ["y"])], {"x": ["n", 1, 3]})
    context, values = inferred(before)
    assert context.dims(values["y"]) is None  # n may be 1


def test_split_sizes_that_are_computed() -> None:
    before = opened([node("Split", ["x", "k"], ["y", "z"])], {"x": [6], "k": [2]}, types={"k": I64})
    holds(before, {"x": array(6), "k": vector(2, 4)}, {"x": array(6), "k": vector(5, 1)})


def test_pads_and_axes() -> None:
    before = opened([node("Pad", ["x", "p", "", "a"], ["y"])], {"x": ["n", 3], "a": [1]}, {"p": vector(1, 2)}, types={"a": I64}, opset=18)
    holds(before, {"x": array(2, 3), "a": vector(0)}, {"x": array(2, 3), "a": vector(1)})


@pytest.mark.parametrize(
    "shape, target, feeds",
    [
        (["n", "s", 12], [0, 0, 3, -1], [(2, 5, 12), (1, 1, 12)]),
        (["n", "s", 12], [-1, 6], [(2, 5, 12), (3, 1, 12)]),
        (["n", 4, "s"], [0, -1], [(2, 4, 5), (1, 4, 1)]),
    ],
)
def test_reshape(shape, target, feeds) -> None:
    before = opened([node("Reshape", ["x", "t"], ["y"])], {"x": shape}, {"t": vector(*target)})
    context, values = holds(before, *({"x": array(*f)} for f in feeds))
    assert "_unknown" not in str(context.dims(values["y"]))


def test_reshape_to_a_computed_size() -> None:
    """An element that may be 0 or -1 is no dimension."""
    before = model([node("Reshape", ["x", "t"], ["y"])], {"x": ["n", 6], "t": [2]}, {"y": None}, types={"t": I64})
    holds(before, *({"x": array(2, 6), "t": vector(*t)} for t in ((-1, 3), (0, 6), (12, 1), (4, -1))))
    before = model(
        [node("Shape", ["x"], ["s"]), node("Sub", ["s", "k"], ["t"]), node("Reshape", ["x", "t"], ["y"])], {"x": ["n", 6]}, {"y": None},
        {"k": vector(4, 0)},
    )
    holds(before, {"x": array(3, 6)})


def test_what_counts_elements_may_be_0() -> None:
    before = model(
        [
            node("NonZero", ["x"], ["i"]), node("Transpose", ["i"], ["t"]), node("Shape", ["t"], ["s"]),
            node("Gather", ["s", "zero"], ["g"]),
            node("Concat", ["g", "rest"], ["r"], axis=0), node("Slice", ["t", "zero", "one"], ["y"]),
        ],
        {"x": ["n", 3]}, {"y": None, "r": None}, {"zero": vector(0), "one": vector(1), "rest": vector(-1)}, types={"y": I64, "r": I64},
    )
    holds(before, {"x": np.ones((2, 3), np.float32)}, {"x": np.zeros((2, 3), np.float32)})


def test_integer_arithmetic_on_sizes() -> None:
    before = model(
        [
            node("Shape", ["x"], ["s"]), node("Div", ["s", "two"], ["d"]), node("Mul", ["d", "two"], ["m"]), node("Sub", ["s", "m"], ["r"]),
            node("Cast", ["s"], ["f"], to=TensorProto.FLOAT), node("Div", ["f", "half"], ["q"]), node("Cast", ["q"], ["i"], to=I64),
            node("Neg", ["r"], ["n"]), node("Max", ["s", "n"], ["y"]),
        ],
        {"x": ["n", 5]}, {"y": None, "i": None}, {"two": vector(2), "half": np.array([2], np.float32)}, types={"y": I64, "i": I64},
    )
    context, values = holds(before, {"x": array(3, 5)}, {"x": array(4, 5)})
    assert context.shapes.partial_value(values["q"]) is None  # 5 / 2 of floats is 2.5
    assert context.shapes.partial_value(values["d"]) == ["floor(n/2)", 2]


def test_vectors_of_rank_2_are_not_followed() -> None:
    before = model(
        [
            node("Shape", ["x"], ["s"]), node("Unsqueeze", ["s", "zero"], ["a"]), node("Unsqueeze", ["s", "one"], ["b"]),
            node("Add", ["a", "b"], ["c"]), node("Reshape", ["c", "rest"], ["y"]),
        ],
        {"x": [2, 3]}, {"y": None}, {"zero": vector(0), "one": vector(1), "rest": vector(-1)}, types={"y": I64},
    )
    context, values = holds(before, {"x": array(2, 3)})
    assert context.known_value(values["y"]) is None


def test_known_and_partial_values() -> None:
    before = model(
        [
            node("Shape", ["x"], ["s"]), node("Gather", ["s", "one"], ["g"]), node("Shape", ["x"], ["b"], start=0, end=1),
            node("Equal", ["b", "rest"], ["e"]), node("Where", ["e", "one", "b"], ["w"]), node("Concat", ["w", "g"], ["y"], axis=0),
        ],
        {"x": ["n", 7]}, {"y": [2]}, {"one": vector(1), "rest": vector(-1)}, types={"y": I64},
    )
    context, values = holds(before, {"x": array(2, 7)})
    assert context.known_value(values["g"]).tolist() == [7]
    assert context.shapes.partial_value(values["y"]) == ["n", 7]
    assert context.known_value(values["y"]) is None


def test_overridable_initializers_are_not_constants() -> None:
    before = model([node("Reshape", ["x", "t"], ["y"])], {"x": [12]}, {"y": None}, {"t": vector(3, 4)}, overridable=["t"])
    holds(before, {"x": array(12)}, {"x": array(12), "t": vector(6, 2)})


def test_carried_values_may_change_shape() -> None:
    body = helper.make_graph(
        [node("Concat", ["c", "c"], ["d"], axis=0), node("Identity", ["k"], ["l"])], "body",
        [
            helper.make_tensor_value_info("i", I64, []), helper.make_tensor_value_info("k", TensorProto.BOOL, []),
            helper.make_tensor_value_info("c", TensorProto.FLOAT, [2]),
        ],
        [helper.make_tensor_value_info("l", TensorProto.BOOL, []), helper.make_tensor_value_info("d", TensorProto.FLOAT, None)],
    )
    before = model(
        [node("Loop", ["t", "k", "x"], ["y"], body=body)], {"x": [2]}, {"y": [None]}, {"t": np.array(3), "k": np.array(True)},
    )
    context, values = inferred(before)
    assert context.dims(values["y"]) is None


def test_the_branches_of_an_if_differ() -> None:
    branches = [
        helper.make_graph([node("Reshape", ["x", t], [o])], o, [], [helper.make_tensor_value_info(o, TensorProto.FLOAT, None)])
        for t, o in (("t", "a"), ("u", "b"))
    ]
    before = model(
        [node("If", ["k"], ["y"], then_branch=branches[0], else_branch=branches[1])], {"x": [12], "k": []}, {"y": None},
        {"t": vector(3, 4), "u": vector(2, 6)}, types={"k": TensorProto.BOOL},
    )
    holds(before, {"x": array(12), "k": np.array(True)}, {"x": array(12), "k": np.array(False)})


def test_an_unknown_operator_has_the_declared_type_and_no_shape() -> None:
    before = model(
        [node("Magic", ["x"], ["m"], domain="nowhere"), node("Relu", ["m"], ["y"])], {"x": [3]}, {"y": [3]}, opsets={"nowhere": 1},
        value_info=[helper.make_tensor_value_info("m", TensorProto.FLOAT, [3])],
    )
    context, values = inferred(before)
    assert context.dims(values["m"]) is None
    assert context.dtype(values["m"]) == ir.DataType.FLOAT


def test_the_body_of_a_function_is_open() -> None:
    function = helper.make_function(
        "local", "f", ["x"], ["y"], [helper.make_node("Relu", ["x"], ["t"]), helper.make_node("Relu", ["t"], ["y"])],
        [helper.make_opsetid("", 17)],
    )
    before = model([node("f", ["x"], ["y"], domain="local")], {"x": [3]}, {"y": [3]}, functions=[function], opsets={"local": 1})
    before.functions[0].value_info.append(helper.make_tensor_value_info("t", TensorProto.FLOAT, [3]))
    graph = ir.from_proto(before)
    context = Context(graph)
    inner = next(iter(graph.functions.values())).graph[0].outputs[0]
    assert context.dims(inner) is None


@pytest.mark.parametrize("scale, sizes", [(1.6666666, (3, 7)), (0.5, (3, 8)), (2.0, (3, 5)), (1.1, (10, 11))])
def test_resize_rounds_as_the_runtime_does(scale, sizes) -> None:
    constants = {"s": np.array([1, 1, scale], np.float32)}
    for shape in (["n", 2, "h"], *([1, 2, size] for size in sizes)):
        before = model([node("Resize", ["x", "", "s"], ["y"], mode="nearest")], {"x": shape}, {"y": None}, constants)
        for size in sizes:
            if shape[2] in ("h", size):
                holds(before, {"x": array(1, 2, size)})


@pytest.mark.parametrize("size", [5, 6, 7])
def test_pooling_with_ceil_mode(size) -> None:
    for shape in (["n", 1, "h"], [1, 1, size]):
        before = model(
            [node("MaxPool", ["x"], ["y"], kernel_shape=[2], strides=[3], pads=[0, 1], ceil_mode=1)], {"x": shape}, {"y": None},
        )
        holds(before, {"x": array(1, 1, size)})


def test_einsum_broadcasts() -> None:
    before = model([node("Einsum", ["x", "b"], ["y"], equation="ij,ik->ijk")], {"x": ["n", 3], "b": ["m", 4]}, {"y": None})
    context, values = holds(before, {"x": array(2, 3), "b": array(2, 4)})
    assert context.dims(values["y"])[0] not in ("n", "m")


def test_expressions_can_be_read_back() -> None:
    before = model(
        [node("Conv", ["x", "w"], ["y"], auto_pad="SAME_UPPER", strides=[2])], {"x": ["n", 3, "h"]}, {"y": None}, {"w": array(4, 3, 3)},
    )
    holds(before, {"x": array(1, 3, 7)}, {"x": array(1, 3, 8)})


def test_operators_of_one_type_have_it() -> None:
    nodes = [
        helper.make_node("Scaler", ["x"], ["a"], domain="ai.onnx.ml", offset=[1.0], scale=[2.0]),
        helper.make_node("Normalizer", ["a"], ["b"], domain="ai.onnx.ml"),
    ]
    before = model(nodes, {"x": ["n", 3]}, {"b": ["n", 3]}, opsets={"ai.onnx.ml": 3}, types={"x": TensorProto.INT64})
    context, values = holds(before, {"x": np.ones((4, 3), np.int64)})
    assert context.dims(values["a"]) == context.dims(values["b"]) == ("n", 3)
    assert values["a"].dtype is ir.DataType.FLOAT and values["b"].dtype is ir.DataType.FLOAT

"""prune-channels: what is cut is what nothing reads any more, in every structure; what may not be cut, and why."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from graphopt.passes.pruning.channels import line_up
from graphopt.passes.pruning.cutting import cut
from graphopt.passes.pruning.groups import choose, find_groups
from graphopt.passes.pruning.importance import magnitude, measure
from graphopt.passes.pruning.ties import tie_all

from graphopt.request import Request
from graphopt.rewriting import Context
from graphopt.run import optimize
from tests.support import array, assert_same, model, node, run_pass, session


def pruned_and_masked(proto: onnx.ModelProto, ratio: float = 0.5) -> tuple[onnx.ModelProto, onnx.ModelProto, int]:
    """A model cut, the same model with zeros where operators read what was cut, and how many places went.

    What a cut model computes is what the whole one computes when nothing reads the channels in question.
    """
    graph = ir.from_proto(proto)
    context = Context(graph)
    places, makers = tie_all(context)
    groups, _ = find_groups(places, makers)
    for group in groups:
        group.importance = magnitude(group, places, 2)
    gone = set().union(*choose(groups, ratio, over_all=False, multiple=1, least=1)) if groups else set()
    masked = onnx.ModelProto()
    masked.CopyFrom(proto)
    tensors = {t.name: t for t in masked.graph.initializer}
    for item in graph.graph:
        axis = {"Conv": 1, "ConvTranspose": 0, "MatMul": 0}.get(item.op_type)
        if item.op_type == "Gemm":
            axis = 1 if item.attributes.get_int("transB", 0) else 0
        weight = item.inputs[1] if axis is not None else None
        if weight is None or not weight.is_initializer() or (item.op_type == "Conv" and item.attributes.get_int("group", 1) > 1):
            continue
        reach = places.of(weight, axis)
        data = onnx.numpy_helper.to_array(tensors[weight.name]).copy()
        index = [slice(None)] * data.ndim
        index[axis] = [i for i, p in enumerate(reach) if places.root(p) in gone]
        data[tuple(index)] = 0
        tensors[weight.name].CopyFrom(onnx.numpy_helper.from_array(data, weight.name))
    cut(context, places, lambda place: places.root(place) in gone)
    made = ir.to_proto(graph)
    del made.graph.value_info[:]
    onnx.checker.check_model(made, full_check=True)
    return made, masked, len(gone)


def feeds(proto: onnx.ModelProto) -> dict[str, np.ndarray]:
    sizes = {"n": 2, "s": 5}
    return {i.name: array(*(d.dim_value or sizes[d.dim_param] for d in i.type.tensor_type.shape.dim)) for i in proto.graph.input}


def conv(x: str, y: str, w: str, b: str | None = None, **more) -> onnx.NodeProto:
    return node("Conv", [x, w, *([b] if b else [])], [y], pads=[1, 1, 1, 1], **more)


W = {
    "w1": array(8, 3, 3, 3, seed=1), "b1": array(8, seed=2), "w2": array(8, 8, 3, 3, seed=3), "w3": array(8, 8, 3, 3, seed=4),
    "wd": array(8, 1, 3, 3, seed=5), "wo": array(4, 8, 3, 3, seed=6),
}  # fmt: skip
IMAGE = {"x": ["n", 3, 6, 6]}


def of(nodes: list[onnx.NodeProto], *weights: str, outputs=("y",), inputs=IMAGE, **more: np.ndarray) -> onnx.ModelProto:
    return model(nodes, inputs, list(outputs), {**{w: W[w] for w in weights}, **more}, opset=18)


def chain() -> onnx.ModelProto:
    return of([conv("x", "a", "w1", "b1"), node("Relu", ["a"], ["r"]), conv("r", "y", "wo")], "w1", "b1", "wo")


def residual() -> onnx.ModelProto:
    nodes = [conv("x", "a", "w1"), conv("a", "b", "w2"), node("Sigmoid", ["b"], ["s"]), node("Add", ["a", "s"], ["c"])]
    return of([*nodes, conv("c", "y", "wo")], "w1", "w2", "wo")


def concatenated() -> onnx.ModelProto:
    nodes = [conv("x", "a", "w1"), conv("a", "b", "w2"), node("Concat", ["b", "a"], ["c"], axis=1), node("Relu", ["c"], ["r"]),
             conv("r", "y", "wc")]  # fmt: skip
    return of(nodes, "w1", "w2", wc=array(4, 16, 3, 3))


def depthwise() -> onnx.ModelProto:
    return of([conv("x", "a", "w1"), conv("a", "b", "wd", group=8), node("Relu", ["b"], ["r"]), conv("r", "y", "wo")], "w1", "wd", "wo")


def multiplied() -> onnx.ModelProto:
    nodes = [conv("x", "a", "w1"), conv("a", "b", "wm", group=8), conv("b", "y", "w4")]
    return of(nodes, "w1", wm=array(16, 1, 3, 3), w4=array(4, 16, 3, 3))


def normalized() -> onnx.ModelProto:
    names = {"s": array(8), "t": array(8, seed=8), "m": array(8, seed=9), "v": array(8, low=0.5)}
    return of([conv("x", "a", "w1"), node("BatchNormalization", ["a", *names], ["b"]), conv("b", "y", "wo")], "w1", "wo", **names)


def squeezed() -> onnx.ModelProto:
    """Squeeze and excitation: the gate has the channels of what it multiplies, and a width of its own."""
    nodes = [conv("x", "a", "w1"), node("GlobalAveragePool", ["a"], ["g"]), node("Conv", ["g", "ws"], ["h"]), node("Relu", ["h"], ["i"]),
             node("Conv", ["i", "we"], ["j"]), node("Sigmoid", ["j"], ["k"]), node("Mul", ["a", "k"], ["l"])]  # fmt: skip
    return of([*nodes, conv("l", "y", "wo")], "w1", "wo", ws=array(4, 8, 1, 1), we=array(8, 4, 1, 1))


def flattened() -> onnx.ModelProto:
    nodes = [conv("x", "a", "w1"), node("MaxPool", ["a"], ["p"], kernel_shape=[2, 2], strides=[2, 2]), node("Flatten", ["p"], ["f"]),
             node("Gemm", ["f", "g1", "gb"], ["h"], transB=1), node("Tanh", ["h"], ["t"]), node("Gemm", ["t", "g2"], ["y"])]  # fmt: skip
    return of(nodes, "w1", g1=array(10, 72), gb=array(10), g2=array(10, 5))


def reshaped() -> onnx.ModelProto:
    nodes = [conv("x", "a", "w1"), node("Reshape", ["a", "to"], ["f"]), node("MatMul", ["f", "m"], ["y"])]
    return of(nodes, "w1", to=np.array([0, 288]), m=array(288, 5))


def transposed() -> onnx.ModelProto:
    nodes = [conv("x", "a", "w1"), node("ConvTranspose", ["a", "wt", "bt"], ["b"], strides=[2, 2]),
             node("Transpose", ["b"], ["t"], perm=[0, 2, 3, 1]), node("MatMul", ["t", "m"], ["y"])]  # fmt: skip
    return of(nodes, "w1", wt=array(8, 6, 2, 2), bt=array(6), m=array(6, 5))


def divided() -> onnx.ModelProto:
    nodes = [conv("x", "a", "w1"), node("Split", ["a", "sizes"], ["p", "q"], axis=1), node("Relu", ["p"], ["r"]), conv("r", "s", "wp"),
             conv("q", "u", "wq"), node("Add", ["s", "u"], ["y"])]  # fmt: skip
    return of(nodes, "w1", sizes=np.array([5, 3]), wp=array(4, 5, 3, 3), wq=array(4, 3, 3, 3))


def averaged() -> onnx.ModelProto:
    nodes = [conv("x", "a", "w1"), node("ReduceMean", ["a", "axes"], ["m"], keepdims=0), node("Gemm", ["m", "g"], ["y"])]
    return of(nodes, "w1", axes=np.array([2, 3]), g=array(8, 5))


def attention() -> onnx.ModelProto:
    """Four heads of 3 channels, over a sequence of unknown length; an MLP behind them."""
    heads = np.array([0, 0, 4, 3])
    nodes = []
    for name, perm in (("q", [0, 2, 1, 3]), ("k", [0, 2, 3, 1]), ("v", [0, 2, 1, 3])):
        nodes += [node("MatMul", ["x", f"w{name}"], [f"{name}0"]),
                  node("Add", [f"{name}0", f"b{name}"], [f"{name}1"]),
                  node("Reshape", [f"{name}1", "heads"], [f"{name}2"]),
                  node("Transpose", [f"{name}2"], [f"{name}3"], perm=perm)]  # fmt: skip
    nodes += [
        node("MatMul", ["q3", "k3"], ["s"]), node("Softmax", ["s"], ["p"], axis=-1), node("MatMul", ["p", "v3"], ["o"]),
        node("Transpose", ["o"], ["o1"], perm=[0, 2, 1, 3]), node("Reshape", ["o1", "flat"], ["o2"]),
        node("MatMul", ["o2", "wo"], ["o3"]), node("Add", ["x", "o3"], ["r"]),
        node("MatMul", ["r", "wu"], ["u"]), node("Relu", ["u"], ["g"]), node("MatMul", ["g", "wdn"], ["e"]),
        node("Add", ["r", "e"], ["y"]),
    ]  # fmt: skip
    weights = {f"w{n}": array(12, 12, seed=i) for i, n in enumerate("qkvo")} | {f"b{n}": array(12, seed=i) for i, n in enumerate("qkv")}
    weights |= {"wu": array(12, 16), "wdn": array(16, 12), "heads": heads, "flat": np.array([0, 0, 12])}
    return model(nodes, {"x": ["n", "s", 12]}, ["y"], weights, opset=18)


STRUCTURES = [
    chain, residual, concatenated, depthwise, multiplied, normalized, squeezed, flattened, reshaped, transposed, divided, averaged,
    attention,
]  # fmt: skip


@pytest.mark.parametrize("ratio", [0.3, 0.6])
@pytest.mark.parametrize("make", STRUCTURES, ids=lambda f: f.__name__)
def test_what_is_cut_is_what_nothing_reads(make, ratio):
    proto = make()
    made, masked, gone = pruned_and_masked(proto, ratio)
    assert gone > 0
    assert sum(np.prod(t.dims) for t in made.graph.initializer) < sum(np.prod(t.dims) for t in proto.graph.initializer)
    assert_same(masked, made, feeds(proto))


def test_heads_go_as_a_whole_and_all_their_weights_with_them():
    made, log = run_pass(attention(), "prune-channels", ratio=0.5, multiple=1, least=1)
    shapes = {t.name: tuple(t.dims) for t in made.graph.initializer}
    assert [shapes[w] for w in ("wq", "wk", "wv", "wo", "wu", "wdn")] == [(12, 6), (12, 6), (12, 6), (6, 12), (12, 8), (8, 12)]
    assert log.applied == 2
    assert {tuple(onnx.numpy_helper.to_array(t)) for t in made.graph.initializer if len(t.dims) == 1 and t.data_type == 7} == {
        (0, 0, 2, 3), (0, 0, 6)
    }  # fmt: skip


def test_the_least_channels_go():
    weights = array(8, 3, 3, 3)
    weights[[1, 4, 6, 7]] *= 0.01
    proto = of([conv("x", "a", "w"), node("Relu", ["a"], ["r"]), conv("r", "y", "wo")], "wo", w=weights)
    made, _ = run_pass(proto, "prune-channels", ratio=0.5, multiple=4, least=1)
    left = next(onnx.numpy_helper.to_array(t) for t in made.graph.initializer if t.name == "w")
    np.testing.assert_array_equal(left, weights[[0, 2, 3, 5]])


@pytest.mark.parametrize(("multiple", "least", "left"), [(1, 1, 4), (3, 1, 6), (8, 1, 8), (1, 7, 7), (16, 1, 4)])
def test_widths(multiple, least, left):
    proto = chain()
    made, log = run_pass(proto, "prune-channels", ratio=0.5, multiple=multiple, least=least)
    assert next(t.dims[0] for t in made.graph.initializer if t.name == "w1") == left
    assert bool(log.applied) == (left < 8)
    if left == 8:
        assert [r.reason for r in log.refusals if r.node == "w1"] == ["of 8 channels or heads none may go"]


def test_a_global_share_takes_more_where_channels_count_for_less():
    flat, steep = np.ones((8, 3, 3, 3), np.float32), np.ones((8, 8, 3, 3), np.float32)
    steep[:6] = 0.01
    proto = of([conv("x", "a", "w"), node("Relu", ["a"], ["r"]), conv("r", "b", "v"), conv("b", "y", "wo")], "wo", w=flat, v=steep)
    made, _ = run_pass(proto, "prune-channels", ratio=0.4, scope="global", multiple=1, least=1)
    shapes = {t.name: t.dims[0] for t in made.graph.initializer}
    assert (shapes["w"], shapes["v"]) == (8, 2)


def reasons(proto: onnx.ModelProto) -> dict[str, str]:
    made, log = run_pass(proto, "prune-channels", ratio=0.5, multiple=1, least=1)
    assert log.applied == 0 and [t.dims for t in made.graph.initializer] == [t.dims for t in proto.graph.initializer]
    return {r.node: r.reason for r in log.refusals}


def test_refusals():
    assert reasons(of([conv("x", "y", "w1")], "w1")) == {"w1": "it is an output of the model"}
    inner = [conv("x", "a", "w1"), node("CumSum", ["a", "axis"], ["y"])]
    assert reasons(of(inner, "w1", axis=np.array(1))) == {"w1": "pruning does not know CumSum"}
    grouped = [conv("x", "a", "w1"), conv("a", "b", "wg", group=2), node("GlobalAveragePool", ["b"], ["y"])]
    assert reasons(of(grouped, "w1", wg=array(8, 4, 3, 3))) == {
        "w1": "a convolution in groups reads or makes it", "wg": "a convolution in groups reads or makes it",
    }  # fmt: skip
    soft = [conv("x", "a", "w1"), node("Softmax", ["a"], ["s"], axis=1), node("ReduceMax", ["s", "axes"], ["y"], keepdims=0)]
    assert reasons(of(soft, "w1", axes=np.array([1]))) == {"w1": "Softmax goes over it"}
    padded = [conv("x", "a", "w1"), node("Pad", ["a", "pads"], ["p"]), conv("p", "y", "w9")]
    assert reasons(of(padded, "w1", pads=np.array([0, 1, 0, 0, 0, 0, 0, 0]), w9=array(4, 9, 3, 3)))["w1"] == "Pad goes along it"


def test_an_initializer_that_a_caller_may_override_is_kept():
    proto = model([conv("x", "a", "w1"), conv("a", "y", "wo")], IMAGE, ["y"], {w: W[w] for w in ("w1", "wo")}, overridable=["w1"])
    assert reasons(proto)["w1"] == "a caller may override it"


def test_a_value_that_a_subgraph_reads_is_kept():
    then = onnx.helper.make_graph([node("Relu", ["a"], ["t"])], "then", [], [onnx.helper.make_tensor_value_info("t", 1, None)])
    other = onnx.helper.make_graph([node("Neg", ["a"], ["e"])], "else", [], [onnx.helper.make_tensor_value_info("e", 1, None)])
    nodes = [conv("x", "a", "w1"), node("If", ["c"], ["b"], then_branch=then, else_branch=other), conv("b", "y", "wo")]
    proto = model(nodes, {**IMAGE, "c": []}, {"y": None}, {w: W[w] for w in ("w1", "wo")}, types={"c": onnx.TensorProto.BOOL})
    assert reasons(proto)["w1"] == "a subgraph of If reads it"


def test_a_shared_weight_is_cut_once_for_all():
    nodes = [conv("x", "a", "w1"), conv("a", "b", "w2"), node("Relu", ["b"], ["r"]), conv("r", "c", "w2"), conv("c", "y", "wo")]
    proto = of(nodes, "w1", "w2", "wo")
    made, _ = run_pass(proto, "prune-channels", ratio=0.5, multiple=1, least=1)
    shapes = {t.name: tuple(t.dims[:2]) for t in made.graph.initializer}
    assert shapes == {"w1": (4, 3), "w2": (4, 4), "wo": (4, 4)}
    session(made).run(None, feeds(proto))


def test_one_channel_is_always_left():
    made, _ = run_pass(chain(), "prune-channels", ratio=0.95, multiple=1, least=1)
    assert next(t.dims[0] for t in made.graph.initializer if t.name == "w1") == 1


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ([2, 12], [2, 4, 3], [([0], [0]), ([1], [1, 2])]),
        (["n", 8, 6, 6], ["n", 288], [([0], [0]), ([1, 2, 3], [1])]),
        ([2, 1, 3], [2, 3], [([0], [0]), ([2], [1])]),
        ([6, 4], [4, 6], [([0, 1], [0, 1])]),
        (["n", "s", 4], ["n*s", 4], None),
        ([4], [5], None),
    ],
)
def test_line_up(a, b, expected):
    assert line_up(a, b) == expected


DIGITS = Path(__file__).parents[3] / "models/digits/digits.onnx"


def test_the_metric_decides_whether_what_is_cut_is_shipped(tmp_path: Path):
    common = {"passes": ("prune-channels",), "bench": False, "metric": f"{DIGITS.with_name('metric.py')}:accuracy"}
    fine = {"prune-channels": {"ratio": "0.1", "multiple": "1"}}
    result = optimize(Request(DIGITS, output=tmp_path / "a.onnx", options=fine, budget=0.5, **common))
    assert result.exit_code == 0 and result.report.after["parameters"] < 0.95 * result.report.before["parameters"]
    assert 0 < result.report.quality["loss"] < 0.5 and result.report.verification["verdict"] == "within-budget"
    coarse = {"prune-channels": {"ratio": "0.9", "multiple": "1"}}
    result = optimize(Request(DIGITS, output=tmp_path / "b.onnx", options=coarse, budget=0.01, **common))
    assert result.report.after["parameters"] == result.report.before["parameters"] and result.report.quality["loss"] == 0
    assert any("beyond the budget of 0.01" in w for w in result.report.warnings)


# --- importance -----------------------------------------------------------------------------------------------------


def normed() -> onnx.ModelProto:
    nodes = [node("Conv", ["x", "w"], ["a"]), node("BatchNormalization", ["a", "s", "b", "m", "v"], ["n"]), node("Relu", ["n"], ["r"]),
             node("Conv", ["r", "u"], ["y"])]  # fmt: skip
    weights = {"w": array(4, 3, 1, 1), "s": np.array([0.5, -3, 0.1, 2], np.float32), "b": array(4), "m": array(4), "v": array(4, low=0.5),
               "u": array(2, 4, 1, 1)}  # fmt: skip
    return model(nodes, {"x": ["n", 3, 5, 5]}, ["y"], weights)


def importance(proto: onnx.ModelProto | ir.Model, kind: str) -> dict[str, np.ndarray]:
    graph = ir.from_proto(proto) if isinstance(proto, onnx.ModelProto) else proto
    context = Context(graph)
    places, makers = tie_all(context)
    return {group.label: measure(kind, context, group, places) for group in find_groups(places, makers)[0]}


def test_the_scale_of_a_normalization_tells_what_counts():
    np.testing.assert_allclose(importance(normed(), "scale")["w"], [0.5, 3, 0.1, 2], rtol=1e-6)
    made, log = run_pass(normed(), "prune-channels", importance="scale", ratio=0.5, multiple=1, least=1)
    scales = next(t for t in made.graph.initializer if t.name == "s")
    np.testing.assert_array_equal(onnx.numpy_helper.to_array(scales), np.array([-3, 2], np.float32))
    assert log.applied == 1


@pytest.mark.parametrize(("kind", "reason"), [("scale", "no BatchNormalization stands"), ("taylor", "no gradients are noted")])
def test_an_importance_that_is_not_to_be_had(kind: str, reason: str):
    nodes = [node("MatMul", ["x", "w"], ["a"]), node("Relu", ["a"], ["r"]), node("MatMul", ["r", "u"], ["y"])]
    proto = model(nodes, {"x": ["n", 3]}, ["y"], {"w": array(3, 16), "u": array(16, 2)})
    made, log = run_pass(proto, "prune-channels", importance=kind, ratio=0.5)
    assert log.applied == 0 and [reason in r.reason for r in log.refusals if r.node == "w"] == [True]
    assert made.graph.initializer[0].dims[1] == 16


def test_gradients_tell_how_far_the_outputs_move():
    """Of linear products w' J'J w is what leaving out a unit really changes, as far as random vectors tell."""
    pytest.importorskip("torch")
    from graphopt.recovery.tuning.batches import Batches
    from graphopt.recovery.tuning.salience import put_salience
    from graphopt.verification import Sample

    nodes = [node("MatMul", ["x", "w"], ["a"]), node("Identity", ["a"], ["i"]), node("MatMul", ["i", "u"], ["y"])]
    weights = {"w": array(6, 5, seed=1) * np.array([1, 3, 0.2, 0.5, 2], np.float32), "u": array(5, 4, seed=2)}
    graph = ir.from_proto(model(nodes, {"x": ["n", 6]}, ["y"], weights))
    x = array(64, 6, seed=3)
    put_salience(graph, Batches([Sample({"x": x}, "x")], graph, 64), probes=2000)
    moved = [np.linalg.norm(x @ weights["w"][:, [k]] @ weights["u"][[k]]) for k in range(5)]
    y = x @ weights["w"] @ weights["u"]
    np.testing.assert_allclose(importance(graph, "taylor")["w"], np.array(moved) / y.std(ddof=1) / np.sqrt(y.size), rtol=0.08)

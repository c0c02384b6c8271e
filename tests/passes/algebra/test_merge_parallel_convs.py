"""Convolutions side by side: merged into a Concat for nothing, behind a Split only where that pays."""

import numpy as np
import onnx
import pytest
from onnx import helper

from tests.support import array, assert_same, model, node, ops, reasons, run_pass

NAME = "merge-parallel-convs"
X = (2, 4, 8, 8)


def branches(*channels: int, k: int = 3, x=X, act: str | None = None, bias=True, concat=False, attributes=None, **kwargs):
    """Convs of x, an activation behind each, a Concat or one Neg a branch behind these."""
    nodes, weights, ends = [], {}, []
    for i, c in enumerate(channels):
        weights[f"w{i}"] = array(c, x[1], *[k] * (len(x) - 2), seed=i)
        inputs = ["x", f"w{i}"]
        if bias is True or (bias is None and i % 2):
            weights[f"b{i}"] = array(c, seed=10 + i)
            inputs.append(f"b{i}")
        nodes.append(node("Conv", inputs, [f"c{i}"], **(attributes or {})))
        ends.append(f"c{i}")
        if act:
            nodes.append(node(act, [f"c{i}"], [f"a{i}"]))
            ends[-1] = f"a{i}"
    if concat:
        nodes.append(node("Concat", ends, ["y"], axis=concat if isinstance(concat, int) and concat is not True else 1))
        outputs = {"y": [None] * len(x)}
    else:
        nodes += [node("Neg", [e], [f"y{i}"]) for i, e in enumerate(ends)]
        outputs = {f"y{i}": [None] * len(x) for i in range(len(ends))}
    return model(nodes, {"x": x}, outputs, weights, **kwargs)


def merged(before, expected, feed=X, **options):
    after, log = run_pass(before, NAME, **options)
    assert ops(after) == expected, (ops(after), reasons(log))
    assert_same(before, after, {"x": array(*feed)})
    return after


def refused(before, reason: str, **options) -> None:
    after, log = run_pass(before, NAME, **options)
    assert ops(after) == ops(before)
    assert any(reason in r for r in reasons(log)), reasons(log)


def unmatched(before, **options) -> None:
    after, log = run_pass(before, NAME, **options)
    assert ops(after) == ops(before) and not reasons(log), reasons(log)


@pytest.mark.parametrize("x", [(2, 4, 9), X, (1, 3, 5, 5, 5)])
@pytest.mark.parametrize("act", [None, "Relu", "Sigmoid"])
@pytest.mark.parametrize("bias", [True, False, None])
def test_outputs_that_meet_again(x, act, bias) -> None:
    before = branches(5, 16, 3, x=x, act=act, bias=bias, concat=True)
    merged(before, {"Conv": 1} | ({act: 1} if act else {}), x)


@pytest.mark.parametrize(
    "attributes", [{"pads": [1, 1, 1, 1]}, {"strides": [2, 1]}, {"dilations": [2, 2]}, {"auto_pad": "SAME_UPPER", "strides": [2, 2]}]
)
def test_geometry_is_kept(attributes) -> None:
    merged(branches(4, 6, attributes=attributes, concat=True), {"Conv": 1})


def test_defaults_spelled_out_or_not() -> None:
    before = branches(4, 6, concat=True)
    before.graph.node[0].attribute.extend([
        helper.make_attribute(n, v)
        for n, v in {
            "kernel_shape": [3, 3], "strides": [1, 1], "pads": [0] * 4, "group": 1, "dilations": [1, 1], "auto_pad": "NOTSET",
        }.items()
    ])
    merged(before, {"Conv": 1})


def test_negative_axis() -> None:
    merged(branches(4, 6, concat=-3), {"Conv": 1})


def test_order_of_the_concat_counts() -> None:
    before = branches(4, 6, 5, concat=True)
    before.graph.node[-1].input[:] = ["c2", "c0", "c1"]
    merged(before, {"Conv": 1})


def test_only_what_stands_side_by_side_in_a_longer_concat() -> None:
    before = branches(16, 16, 16, 16, concat=True)
    before.graph.node[-1].input[:] = ["c0", "c1", "x8", "c3", "c2"]
    before.graph.node.insert(0, node("Conv", ["x", "w8"], ["x8"], group=2))
    before.graph.initializer.append(onnx.numpy_helper.from_array(array(2, 2, 3, 3), "w8"))
    after = merged(before, {"Conv": 3, "Concat": 1})
    assert len(after.graph.node[-1].input) == 3


def test_different_activations_stay_apart() -> None:
    before = branches(16, 16, 16, act="Relu", concat=True)
    before.graph.node[1].op_type = "Tanh"
    merged(before, {"Conv": 2, "Relu": 1, "Tanh": 1, "Concat": 1})


def test_clip_with_equal_limits() -> None:
    before = branches(4, 4, act="Clip", concat=True)
    for i, n in enumerate(m for m in before.graph.node if m.op_type == "Clip"):
        n.input.extend([f"low{i}", f"high{i}"])
        before.graph.initializer.extend([onnx.numpy_helper.from_array(np.float32(v), f"{k}{i}") for k, v in (("low", 0), ("high", 0.5))])
    merged(before, {"Conv": 1, "Clip": 1})
    before.graph.initializer[-1].CopyFrom(onnx.numpy_helper.from_array(np.float32(0.6), "high1"))
    assert ops(run_pass(before, NAME)[0])["Conv"] == 2


def test_split_where_small_convs_waste_work() -> None:
    x = (1, 64, 20, 20)
    merged(branches(2, 4, x=x), {"Conv": 1, "Split": 1, "Neg": 2}, x)
    merged(branches(2, 4, x=x, act="Relu"), {"Conv": 1, "Relu": 1, "Split": 1, "Neg": 2}, x)


@pytest.mark.parametrize("opset", [7, 11, 13, 18])
def test_split_in_every_opset(opset: int) -> None:
    merged(branches(2, 4, opset=opset), {"Conv": 1, "Split": 1, "Neg": 2}, min_saving=0)


def test_split_refused_where_it_would_cost() -> None:
    refused(branches(64, 64), "a Split of its output would cost more")
    refused(branches(2, 4), "a Split of its output would cost more")  # too small to matter
    merged(branches(64, 64), {"Conv": 1, "Split": 1, "Neg": 2}, min_saving=0)


def test_different_activations_behind_a_split() -> None:
    before = branches(2, 4, act="Relu")
    before.graph.node[1].op_type = "Tanh"
    merged(before, {"Conv": 1, "Split": 1, "Relu": 1, "Tanh": 1, "Neg": 2}, min_saving=0)


def test_graph_outputs_keep_their_names() -> None:
    before = branches(2, 4)
    del before.graph.node[2:]
    before.graph.node[0].output[0], before.graph.node[1].output[0] = "y0", "y1"
    merged(before, {"Conv": 1, "Split": 1}, min_saving=0)


def test_an_output_used_elsewhere_stays_out_of_the_concat() -> None:
    before = branches(16, 16, 16, concat=True)
    before.graph.node.append(node("Neg", ["c0"], ["z"]))
    before.graph.output.append(helper.make_tensor_value_info("z", 1, [None] * 4))
    merged(before, {"Conv": 2, "Concat": 1, "Neg": 1})


def test_no_match() -> None:
    unmatched(branches(16, concat=True))
    other = branches(16, 16)
    other.graph.node[1].attribute.append(helper.make_attribute("dilations", [2, 2]))
    unmatched(other)


def test_grouped_convs_are_left() -> None:
    weights = {"w0": array(4, 2, 3, 3), "w1": array(4, 2, 3, 3, seed=1)}
    nodes = [node("Conv", ["x", f"w{i}"], [f"c{i}"], group=2) for i in range(2)] + [node("Concat", ["c0", "c1"], ["y"], axis=1)]
    unmatched(model(nodes, {"x": X}, {"y": [None] * 4}, weights))


def test_concat_of_another_axis() -> None:
    refused(branches(16, 16, concat=2), "a Split of its output would cost more")


def test_overridable_weight() -> None:
    refused(branches(4, 4, concat=True, overridable=["w1"]), "a caller may override it")


def test_the_others_merge_without_the_overridable_one() -> None:
    after, log = run_pass(branches(4, 4, 4, concat=True, overridable=["w2"]), NAME)
    assert ops(after) == {"Conv": 2, "Concat": 1} and "override" in reasons(log)[0]


def test_shared_weight() -> None:
    before = branches(16, 16, concat=True)
    before.graph.node.append(node("Conv", ["y", "w8"], ["z0"], kernel_shape=[1, 1]))
    before.graph.initializer.append(onnx.numpy_helper.from_array(array(4, 32, 1, 1), "w8"))
    before.graph.node.append(node("Conv", ["z0", "w0"], ["z"]))
    before.graph.output.append(helper.make_tensor_value_info("z", 1, [None] * 4))
    refused(before, "other consumers", max_growth_bytes=100)
    merged(before, {"Conv": 3})


def test_half_precision() -> None:
    before = branches(4, 4, concat=True, types={"x": 10, "y": 10})
    for i, t in enumerate(before.graph.initializer):
        before.graph.initializer[i].CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(t).astype("f2"), t.name))
    after, _ = run_pass(before, NAME)
    assert ops(after) == {"Conv": 1}
    assert_same(before, after, {"x": array(*X, dtype="float16")}, rtol=1e-2)


def test_in_a_subgraph() -> None:
    inner = helper.make_graph(
        [node("Conv", ["x", "w0"], ["c0"]), node("Conv", ["x", "w1"], ["c1"]), node("Concat", ["c0", "c1"], ["t"], axis=1)],
        "then", [], [helper.make_tensor_value_info("t", 1, [None] * 4)],
    )
    other = helper.make_graph([node("Conv", ["x", "w2"], ["e"])], "else", [], [helper.make_tensor_value_info("e", 1, [None] * 4)])
    weights = {"w0": array(4, 4, 3, 3), "w1": array(2, 4, 3, 3, seed=1), "w2": array(6, 4, 3, 3, seed=2)}
    before = model(
        [node("If", ["p"], ["y"], then_branch=inner, else_branch=other)], {"x": X, "p": []}, {"y": [None] * 4}, weights, types={"p": 9}
    )
    after, log = run_pass(before, NAME)
    assert log.applied == 1
    for p in (True, False):
        assert_same(before, after, {"x": array(*X), "p": np.array(p)})


def test_a_capture_keeps_the_conv_out_of_the_concat() -> None:
    inner = helper.make_graph([node("Neg", ["c0"], ["t"])], "then", [], [helper.make_tensor_value_info("t", 1, None)])
    other = helper.make_graph([node("Abs", ["c0"], ["e"])], "else", [], [helper.make_tensor_value_info("e", 1, None)])
    before = branches(16, 16, concat=True, types={"p": 9})
    before.graph.node.append(node("If", ["p"], ["z"], then_branch=inner, else_branch=other))
    before.graph.input.append(helper.make_tensor_value_info("p", 9, []))
    before.graph.output.append(helper.make_tensor_value_info("z", 1, [None] * 4))
    refused(before, "a Split of its output would cost more")


@pytest.mark.parametrize("concat", [True, False])
def test_in_a_function(concat: bool) -> None:
    constants = [node("Constant", [], [f"w{i}"], value=onnx.numpy_helper.from_array(array(4, 4, 3, 3, seed=i))) for i in range(2)]
    pads = [node("Conv", ["x", f"w{i}"], [f"c{i}"]) for i in range(2)]
    for p in pads:
        a = p.attribute.add()
        a.name, a.ref_attr_name, a.type = "strides", "step", onnx.AttributeProto.INTS
    end = node("Concat", ["c0", "c1"], ["y"], axis=1) if concat else node("Sub", ["c0", "c1"], ["y"])
    body = [constants[0], pads[0], constants[1], pads[1], end]
    function = helper.make_function("local", "two", ["x"], ["y"], body, [helper.make_opsetid("", 17)], attributes=["step"])
    call = helper.make_node("two", ["x"], ["y"], domain="local", step=[2, 2])
    before = model([call], {"x": X}, {"y": [None] * 4}, functions=[function], opsets={"local": 1})
    after, log = run_pass(before, NAME, min_saving=0)
    assert log.applied == 1, reasons(log)
    assert sum(n.op_type == "Conv" for n in after.functions[0].node) == 1
    assert_same(before, after, {"x": array(*X)})


def test_deterministic() -> None:
    before = branches(2, 4, 3, 5, act="Relu")
    first, second = (run_pass(before, NAME, min_saving=0)[0].SerializeToString() for _ in range(2))
    assert first == second

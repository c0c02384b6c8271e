"""A residual Add becomes a Sum only where the runtime would fuse it, and then it does not."""

from collections import Counter

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import helper

from tests.support import array, assert_same, model, node, ops, reasons, run_pass

NAME = "keep-add-before-layernorm"
X = (2, 5, 8)


def residual(*, x=X, other=None, spelled_out=False, opset=17, more=(), outputs=("y",), **kwargs):
    """relu(x) + x, normalized; as an operator or spelled out."""
    nodes = [node("Relu", ["x"], ["r"]), node("Add", ["r", other or "x"], ["a"])]
    weights = {"s": array(8, low=0.5), "b": array(8, seed=1), "c": array(8, seed=2), "table": array(9, 8)}
    if spelled_out:
        weights |= {"eps": np.float32(1e-5), "two": np.float32(2)}
        nodes += [
            node("ReduceMean", ["a"], ["m"], axes=[-1]), node("Sub", ["a", "m"], ["d"]), node("Pow", ["d", "two"], ["q"]),
            node("ReduceMean", ["q"], ["v"], axes=[-1]), node("Add", ["v", "eps"], ["e"]), node("Sqrt", ["e"], ["t"]),
            node("Div", ["d", "t"], ["n"]), node("Mul", ["n", "s"], ["k"]), node("Add", ["k", "b"], ["y"]),
        ]
    else:
        nodes.append(node("LayerNormalization", ["a", "s", "b"], ["y"], axis=-1))
    used = {i for n in (*nodes, *more) for i in n.input}
    weights = {k: v for k, v in weights.items() if k in used}
    return model([*nodes, *more], {"x": x}, {o: [None] * len(x) for o in outputs}, weights, opset=opset, **kwargs)


def runtime_ops(proto: onnx.ModelProto, tmp_path) -> Counter[str]:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return ops(onnx.load(tmp_path / "optimized.onnx"))


@pytest.mark.parametrize("spelled_out", [False, True])
@pytest.mark.parametrize("x", [X, ("n", "s", 8)])
def test_rewritten_and_no_longer_fused(spelled_out, x, tmp_path) -> None:
    before = residual(x=x, spelled_out=spelled_out)
    after, log = run_pass(before, NAME)
    assert log.applied == 1 and ops(after)["Sum"] == 1, reasons(log)
    assert_same(before, after, {"x": array(*X)}, exact=True)
    assert runtime_ops(before, tmp_path)["SkipLayerNormalization"] == 1
    kept = runtime_ops(after, tmp_path)
    assert kept["SkipLayerNormalization"] == 0 and kept["LayerNormalization"] == 1


def unmatched(before) -> None:
    after, log = run_pass(before, NAME)
    assert ops(after) == ops(before) and not reasons(log), reasons(log)


def refused(before, reason: str) -> None:
    after, log = run_pass(before, NAME)
    assert ops(after) == ops(before)
    assert any(reason in r for r in reasons(log)), reasons(log)


@pytest.mark.parametrize("spelled_out", [False, True])
def test_a_sum_that_is_used_elsewhere_is_not_fused_anyway(spelled_out) -> None:
    unmatched(residual(spelled_out=spelled_out, more=[node("Neg", ["a"], ["z"])], outputs=("y", "z")))
    unmatched(residual(spelled_out=spelled_out, outputs=("y", "a")))


def test_a_bias_is_no_residual() -> None:
    unmatched(residual(other="c"))


def test_a_mean_alone_is_no_normalization() -> None:
    nodes = [node("Relu", ["x"], ["r"]), node("Add", ["r", "x"], ["a"]), node("ReduceMean", ["a"], ["y"], axes=[-1])]
    unmatched(model(nodes, {"x": X}, {"y": [None] * 3}))


def test_embeddings() -> None:
    nodes = [node("Gather", ["table", "i"], ["g"]), node("Add", ["g", "x"], ["a"]), node("LayerNormalization", ["a", "s"], ["y"])]
    before = model(
        nodes, {"x": X, "i": [2, 5]}, {"y": [None] * 3}, {"table": array(9, 8), "s": array(8)}, types={"i": 7}
    )
    refused(before, "embeddings")


def test_other_ranks_types_and_opsets() -> None:
    refused(residual(x=(2, 8)), "rank 3")
    refused(residual(x=(2, 2, 2, 8)), "rank 3")
    before = residual(types={"x": 11, "y": 11})
    for t in before.graph.initializer:
        t.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(t).astype("f8"), t.name))
    refused(before, "float32")
    refused(residual(spelled_out=True, opset=7), "opset 8")


def test_operands_that_broadcast() -> None:
    nodes = [node("Add", ["u", "x"], ["a"]), node("LayerNormalization", ["a", "s"], ["y"])]
    refused(model(nodes, {"x": X, "u": [1, 5, 8]}, {"y": [None] * 3}, {"s": array(8)}), "rank 3")


def test_in_a_subgraph() -> None:
    inner = helper.make_graph(
        [node("Relu", ["x"], ["r"]), node("Add", ["r", "x"], ["a"]), node("LayerNormalization", ["a", "s"], ["t"])],
        "then", [], [helper.make_tensor_value_info("t", 1, None)],
    )
    other = helper.make_graph([node("Neg", ["x"], ["e"])], "else", [], [helper.make_tensor_value_info("e", 1, None)])
    choice = node("If", ["p"], ["y"], then_branch=inner, else_branch=other)
    before = model([choice], {"x": X, "p": []}, {"y": X}, {"s": array(8)}, types={"p": 9})
    after, log = run_pass(before, NAME)
    assert log.applied == 1
    assert_same(before, after, {"x": array(*X), "p": np.array(True)}, exact=True)


def test_a_function_knows_no_shapes() -> None:
    body = [node("Relu", ["x"], ["r"]), node("Add", ["r", "x"], ["a"]), node("LayerNormalization", ["a", "s"], ["y"])]
    function = helper.make_function("local", "norm", ["x", "s"], ["y"], body, [helper.make_opsetid("", 17)])
    call = helper.make_node("norm", ["x", "s"], ["y"], domain="local")
    before = model([call], {"x": X}, {"y": X}, {"s": array(8)}, functions=[function], opsets={"local": 1})
    _, log = run_pass(before, NAME)
    assert log.applied == 0 and "rank 3" in reasons(log)[0]


def test_a_selection_from_activations_is_no_embedding() -> None:
    nodes = [
        node("Relu", ["x"], ["r"]), node("Gather", ["r", "i"], ["g"], axis=1), node("Gather", ["x", "i"], ["h"], axis=1),
        node("Add", ["g", "h"], ["a"]), node("LayerNormalization", ["a", "s"], ["y"]),
    ]  # fmt: skip
    before = model(nodes, {"x": X}, {"y": [None] * 3}, {"i": np.array([0]), "s": array(8)})
    after, log = run_pass(before, NAME)
    assert log.applied == 1, reasons(log)
    assert_same(before, after, {"x": array(*X)}, exact=True)

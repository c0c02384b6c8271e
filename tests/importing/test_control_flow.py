"""If, Loop and Scan through the importer: in eager torch, and as exported programs."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from tests.support import array, model, node

torch = pytest.importorskip("torch")

from tests.importing.against_runtime import check, check_exported, check_gradient, imported  # noqa: E402


def _graph(nodes, inputs, outputs, name, initializers=()):
    def info(n, kind, shape):
        return helper.make_tensor_value_info(n, kind, shape)

    return helper.make_graph(nodes, name, [info(*i) for i in inputs], [info(*o) for o in outputs], list(initializers))


def _if() -> onnx.ModelProto:
    """y = x * w if sum(x) > 0 else x - w, with x and w from around."""
    then = _graph([node("Mul", ["x", "w"], ["t"])], [], [("t", TensorProto.FLOAT, None)], "then")
    other = _graph([node("Sub", ["x", "w"], ["e"])], [], [("e", TensorProto.FLOAT, None)], "other")
    nodes = [
        node("ReduceSum", ["x"], ["total"], keepdims=0),
        node("Greater", ["total", "zero"], ["positive"]),
        node("If", ["positive"], ["y"], then_branch=then, else_branch=other),
    ]
    return model(nodes, {"x": ["N", 3]}, {"y": ["N", 3]}, {"w": array(3, seed=1), "zero": np.float32(0)})


def _loop(kind: str) -> onnx.ModelProto:
    """state = state * 0.5 + x, `times` times, stacking each state with kind "stack", until its sum exceeds 3 with "until"."""
    inner = [node("Mul", ["state", "half"], ["small"]), node("Add", ["small", "x"], ["next"])]
    if kind == "until":
        inner += [node("ReduceSum", ["next"], ["sum"], keepdims=0), node("Less", ["sum", "three"], ["on"])]
    else:
        inner += [node("Identity", ["going"], ["on"])]
    outputs = [("on", TensorProto.BOOL, []), ("next", TensorProto.FLOAT, None)]
    if kind == "stack":
        inner += [node("Add", ["next", "next"], ["twice"])]
        outputs += [("twice", TensorProto.FLOAT, None)]
    inputs = [("i", TensorProto.INT64, []), ("going", TensorProto.BOOL, []), ("state", TensorProto.FLOAT, None)]
    body = _graph(inner, inputs, outputs, "body")
    names = ["y", "rows"] if kind == "stack" else ["y"]
    initializers = {"half": np.float32(0.5), "three": np.float32(3)}
    return model(
        [node("Loop", ["times", "", "x"], names, body=body)], {"times": [], "x": [2]},
        {"y": [2], "rows": ["T", 2]} if kind == "stack" else {"y": [2]}, initializers, types={"times": TensorProto.INT64},
    )  # fmt: skip


def _scan() -> onnx.ModelProto:
    """Running sums of the columns of x, from a first one."""
    body = _graph(
        [node("Add", ["s", "e"], ["t"]), node("Mul", ["t", "w"], ["r"])],
        [("s", TensorProto.FLOAT, [2]), ("e", TensorProto.FLOAT, [2])],
        [("t", TensorProto.FLOAT, [2]), ("r", TensorProto.FLOAT, [2])],
        "body",
    )
    scan = node("Scan", ["first", "x"], ["last", "rows"], body=body, num_scan_inputs=1, scan_input_axes=[1], scan_output_axes=[1])
    return model([scan], {"first": [2], "x": [2, "T"]}, {"last": [2], "rows": [2, "T"]}, {"w": array(2, seed=3)})


def test_if_takes_the_branch_that_its_condition_says() -> None:
    x = array(2, 3)
    check(_if(), {"x": np.abs(x)}, {"x": -np.abs(x)}, {"x": np.abs(array(5, 3))})


def test_if_on_data_is_exported_as_cond() -> None:
    x = array(2, 3)
    program = check_exported(_if(), {"x": np.abs(x)}, None, {"x": -np.abs(x)})
    assert any("cond" in str(n.target) for n in program.graph.nodes)


def test_if_with_branches_of_unlike_shapes_runs() -> None:
    then = _graph([node("Identity", ["x"], ["t"])], [], [("t", TensorProto.FLOAT, None)], "then")
    other = _graph([node("Flatten", ["x"], ["e"], axis=0)], [], [("e", TensorProto.FLOAT, None)], "other")
    made = model(
        [node("If", ["c"], ["y"], then_branch=then, else_branch=other)],
        {"c": [], "x": [2, 3]},
        {"y": ["A", "B"]},
        types={"c": TensorProto.BOOL},
    )
    check(made, {"c": np.array(True), "x": array(2, 3)}, {"c": np.array(False), "x": array(2, 3)})


@pytest.mark.parametrize("kind", ["plain", "stack", "until"])
def test_loops(kind: str) -> None:
    x = np.array([0.5, 1.0], np.float32)
    feeds = [{"times": np.array(n, np.int64), "x": x} for n in (1, 4, 0)]
    check(_loop(kind), *feeds[: 2 if kind == "stack" else 3])


def test_a_loop_without_a_pass_stacks_no_rows() -> None:
    """They have the shape that a row would have had; ONNX Runtime, which does not know it, gives rank 1."""
    state, rows = imported(_loop("stack"))(torch.tensor(0), torch.ones(2))
    torch.testing.assert_close(state, torch.ones(2))
    assert rows.shape == (0, 2)


def test_loop_of_a_length_that_is_data_is_exported_as_while_loop() -> None:
    feeds = [{"times": np.array(n, np.int64), "x": array(2)} for n in (3, 5, 0)]
    for kind in ("plain", "until"):
        program = check_exported(_loop(kind), feeds[0], None, *feeds[1:])
        assert any("while_loop" in str(n.target) for n in program.graph.nodes)


def test_loop_of_known_length_is_unrolled() -> None:
    proto = _loop("stack")
    del proto.graph.input[0]
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.array(4, np.int64), "times"))
    program = check_exported(proto, {"x": array(2)})
    assert sum("mul" in str(n.target) for n in program.graph.nodes) == 4


def test_export_of_a_loop_that_stacks_and_whose_length_is_data_is_refused() -> None:
    with pytest.raises(Exception, match="a Loop of unknown length that stacks its results cannot be exported"):
        check_exported(_loop("stack"), {"times": np.array(3, np.int64), "x": array(2)})


def test_scan_over_any_length_and_gradients() -> None:
    check(_scan(), *({"first": array(2, seed=n), "x": array(2, n, seed=n)} for n in (1, 3, 6)))
    module = imported(_scan())
    x = torch.randn(2, 4, requires_grad=True)
    last, _ = module(torch.zeros(2), x)
    last.sum().backward()
    torch.testing.assert_close(x.grad, torch.ones(2, 4))


def test_scan_is_exported_with_a_dynamic_length() -> None:
    feeds = [{"first": array(2, seed=n), "x": array(2, n, seed=n)} for n in (3, 6)]
    check_exported(_scan(), feeds[0], (None, {1: torch.export.Dim("t", min=2, max=64)}), feeds[1])


def test_gradients_flow_through_a_loop() -> None:
    def double(proto: onnx.ModelProto) -> None:
        graphs = [proto.graph, *(a.g for n in proto.graph.node for a in n.attribute if a.HasField("g"))]
        for graph in graphs:
            for value in (*graph.input, *graph.output):
                if value.type.tensor_type.elem_type == TensorProto.FLOAT:
                    value.type.tensor_type.elem_type = TensorProto.DOUBLE
            for tensor in graph.initializer:
                if tensor.data_type == TensorProto.FLOAT:
                    tensor.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor).astype(np.float64), tensor.name))

    proto = _loop("plain")
    double(proto)
    check_gradient(proto, np.array(3, np.int64), array(2, dtype="float64"))

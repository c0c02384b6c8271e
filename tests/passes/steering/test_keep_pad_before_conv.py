"""A Pad that would slow a Conv down is kept from the runtime's own fusion; others are not touched."""

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from tests.support import array, assert_same, model, node, ops, run_pass

NAME = "keep-pad-before-conv"


def padded(value=None, *, w=(16, 128, 64, 1), x=(1, 128, 128, 1), amounts=(0, 0, 31, 0, 0, 0, 32, 0), more=(), opset=17, **attributes):
    weights = {"w": array(*w), "p": np.asarray(amounts), **({} if value is None else {"v": np.asarray(value)})}
    inputs = ["x", "p", *([] if value is None else ["v"])]
    nodes = [node("Pad", inputs, ["q"], **attributes), node("Conv", ["q", "w"], ["y"]), *more]
    return model(nodes, {"x": x}, dict.fromkeys(["y", *(o for n in more for o in n.output)], [None] * len(x)), weights, opset=opset)


def in_the_runtime(proto: onnx.ModelProto, tmp_path) -> int:
    """The Pads that the runtime leaves."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return ops(onnx.load(tmp_path / "optimized.onnx"))["Pad"]


SQUARE = {"w": (16, 16, 7, 7), "x": (1, 16, 14, 14), "amounts": (0, 0, 3, 3, 0, 0, 3, 3)}


@pytest.mark.parametrize("value", [None, np.float32(0)], ids=str)
@pytest.mark.parametrize("shape", [{}, SQUARE], ids=["column", "7x7"])
def test_slow_padding_is_kept_apart(value, shape, tmp_path) -> None:
    before = padded(value, **shape)
    assert in_the_runtime(before, tmp_path) == 0
    after, log = run_pass(before, NAME)
    assert log.applied == 1 and ops(after) == {"Pad": 1, "Conv": 1}
    assert in_the_runtime(after, tmp_path) == 1
    assert_same(before, after, {"x": array(*shape.get("x", (1, 128, 128, 1)))}, exact=True)
    again, log = run_pass(after, NAME)
    assert log.applied == 0 and again.SerializeToString() == after.SerializeToString()


@pytest.mark.parametrize("changed", [
    {"w": (16, 16, 3, 3), "x": (1, 16, 14, 14), "amounts": (0, 0, 1, 1, 0, 0, 1, 1)},
    {"w": (16, 1, 7, 7), "x": (1, 1, 14, 14), "amounts": (0, 0, 3, 3, 0, 0, 3, 3)},
    {"w": (16, 16, 3, 1), "x": (1, 16, 16, 1), "amounts": (0, 0, 1, 0, 0, 0, 1, 0)},
    {"value": np.float32(1)},
    {"mode": "edge"},
    {"more": [node("Relu", ["q"], ["z"])]},
], ids=["3x3", "one channel", "short column", "ones", "edge", "two consumers"])  # fmt: skip
def test_others_are_not_touched(changed) -> None:
    before = padded(**changed)
    after, log = run_pass(before, NAME)
    assert log.applied == 0 and log.refusals == []
    assert [list(n.input) for n in after.graph.node] == [list(n.input) for n in before.graph.node]

"""Sequences: taken apart where it is known what is taken from them, left alone otherwise."""

import numpy as np
import pytest
from onnx import TensorProto, helper

from tests.support import array, assert_same, model, node, ops, reasons, run_pass

PASS = "eliminate-sequences"


def split(sizes, positions, shape=(2, 6), opset=17, dims=None, **attributes):
    """SplitToSequence of a [2, 6], and a SequenceAt for each position, joined or kept."""
    constants = {f"p{i}": np.asarray(p) for i, p in enumerate(positions)}
    inputs = ["x"]
    if sizes is not None:
        constants["sizes"] = np.asarray(sizes)
        inputs.append("sizes")
    taken = [node("SequenceAt", ["s", f"p{i}"], [f"y{i}"]) for i in range(len(positions))]
    rank = len(shape) - (attributes.get("keepdims", 1) == 0)
    outputs = {f"y{i}": [None] * rank for i in range(len(positions))}
    made = [node("SplitToSequence", inputs, ["s"], **attributes), *taken]
    return model(made, {"x": dims or list(shape)}, outputs, constants, opset=opset), {"x": array(*shape)}


@pytest.mark.parametrize("opset", [11, 13, 18, 21])
@pytest.mark.parametrize(
    ("sizes", "positions", "settings"),
    [
        ([1, 2, 3], [0, 2, -2], {"axis": 1}),
        (2, [0, 1, 2], {"axis": -1}),
        (4, [1, 0, 1], {"axis": 1}),
        (None, [0, 1], {"axis": 0}),
        (None, [1, -1], {"axis": 0, "keepdims": 0}),
    ],
)
def test_a_sequence_becomes_a_split(sizes, positions, settings, opset) -> None:
    before, feeds = split(sizes, positions, opset=opset, **settings)
    after, log = run_pass(before, PASS)
    assert log.applied == 1
    assert ops(after)["Split"] == 1 and not ops(after)["SequenceAt"] and not ops(after)["SplitToSequence"]
    assert_same(before, after, feeds, exact=True)


def test_a_symbolic_axis_needs_the_sizes() -> None:
    before, feeds = split([2, 4], [0, 1], dims=[2, "n"], axis=1)
    after, _ = run_pass(before, PASS)
    assert ops(after)["Split"] == 1
    assert_same(before, after, feeds, exact=True)
    before, _ = split(2, [0, 1], dims=[2, "n"], axis=1)
    after, log = run_pass(before, PASS)
    assert ops(after) == ops(before) and reasons(log) == ["the size of the axis that is split is not known"]


def test_refusals() -> None:
    def refused(nodes, outputs, types=None, constants=None, inputs=None):
        before = model(nodes, {"x": [2, 6], **(inputs or {})}, outputs, {"one": np.asarray(1), **(constants or {})}, types=types or {})
        after, log = run_pass(before, PASS)
        assert ops(after) == ops(before) and log.applied == 0
        return reasons(log)

    start = node("SplitToSequence", ["x"], ["s"], axis=1)
    at = node("SequenceAt", ["s", "one"], ["y"])
    i64 = TensorProto.INT64
    length = [start, at, node("SequenceLength", ["s"], ["n"])]
    assert refused(length, {"y": [None, None], "n": []}, {"n": i64}) == ["SequenceLength takes the whole sequence"]
    chosen = [start, node("SequenceAt", ["s", "i"], ["y"])]
    assert refused(chosen, {"y": [None, None]}, {"i": i64}, inputs={"i": []}) == ["it is not known which elements are taken"]
    outside = [start, node("SequenceAt", ["s", "six"], ["y"])]
    assert refused(outside, {"y": [None, None]}, constants={"six": np.asarray(6)}) == ["it is not known which elements are taken"]
    wrong = [node("SplitToSequence", ["x", "sizes"], ["s"], axis=1), at]
    assert refused(wrong, {"y": [None, None]}, constants={"sizes": np.asarray([1, 2])}) == ["the parts do not make up the axis"]
    both = [node("SplitToSequence", ["x", "one"], ["s"], axis=0, keepdims=0), at]
    assert refused(both, {"y": [None]}) == ["it has sizes and drops the axis too, which runtimes read differently"]
    given = [node("SplitToSequence", ["x", "sizes"], ["s"], axis=1), at]
    assert refused(given, {"y": [None, None]}, {"sizes": i64}, inputs={"sizes": [2]}) == ["the sizes of the parts are not constant"]


def test_a_sequence_that_is_an_output_stays() -> None:
    sequence = helper.make_tensor_sequence_value_info("s", TensorProto.FLOAT, None)
    nodes = [node("SplitToSequence", ["x"], ["s"]), node("SequenceAt", ["s", "p"], ["y"])]
    before = model(nodes, {"x": [2, 3]}, {"y": [1, 3]}, {"p": np.asarray(1)})
    before.graph.output.append(sequence)
    after, log = run_pass(before, PASS)
    assert ops(after) == ops(before) and reasons(log) == ["the sequence is also a graph output"]


def test_sequences_that_are_put_together() -> None:
    nodes = [
        node("Relu", ["x"], ["a"]), node("Neg", ["x"], ["b"]), node("SequenceConstruct", ["a", "b"], ["s"]),
        node("SequenceAt", ["s", "last"], ["y"]), node("ConcatFromSequence", ["s"], ["z"], axis=-1),
    ]
    before = model(nodes, {"x": ["n", 3]}, {"y": ["n", 3], "z": ["n", 6]}, {"last": np.asarray(-1)})
    after, log = run_pass(before, PASS)
    assert log.applied == 2 and dict(ops(after)) == {"Relu": 1, "Neg": 1, "Concat": 1}
    assert_same(before, after, {"x": array(2, 3)}, exact=True)


def test_stacking_and_unknown_places_stay() -> None:
    nodes = [
        node("SequenceConstruct", ["x", "x"], ["s"]), node("SequenceAt", ["s", "i"], ["y"]),
        node("ConcatFromSequence", ["s"], ["z"], axis=0, new_axis=1),
    ]
    before = model(nodes, {"x": [3], "i": []}, {"y": [3], "z": [2, 3]}, types={"i": TensorProto.INT64})
    after, _ = run_pass(before, PASS)
    assert ops(after) == ops(before)

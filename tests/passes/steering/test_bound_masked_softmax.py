"""Scores that a fixed mask hides are raised to where the exponential does not underflow; others are left."""

import numpy as np
import onnx
import pytest
from onnx import helper

from tests.support import array, assert_same, model, node, ops, reasons, run_pass, session

NAME = "bound-masked-softmax"
SCORES = (2, 3, 8, 8)
LOWEST = float(np.finfo(np.float32).min)
CAUSAL = np.triu(np.full((16, 16), LOWEST, np.float32), 1)
WEIGHTS = {
    "mask": CAUSAL[:8, :8], "table": CAUSAL, "infinite": np.where(CAUSAL < 0, -np.inf, 0).astype("f4")[:8, :8],
    "seen": CAUSAL[:8, :8] == 0, "all": np.ones((8, 8), bool), "place": np.arange(8), "column": np.arange(8)[:, None],
    "lowest": np.float32(LOWEST), "nothing": np.float32(0), "half": np.float32(0.5), "bias": array(8, 8), "flat": np.zeros(8, "f4"),
    "zero": np.array([0]), "axis": np.array([0]), "one": np.array([1]), "three": np.array([3]), "end": np.array([8]),
}  # fmt: skip


def made(masking, *, x=SCORES, opset=17, softmax=None, inputs=None, **kwargs):
    """A product, masked, through a Softmax: `masking` makes s of x."""
    nodes = [*masking, node("Softmax", ["s"], ["y"], **(softmax or {"axis": -1}))]
    used = {i for n in nodes for i in n.input}
    weights = {k: v for k, v in WEIGHTS.items() if k in used}
    return model(nodes, {"x": x, **(inputs or {})}, {"y": [None] * len(x)}, weights, opset=opset, **kwargs)


ADDED = [node("Add", ["x", "mask"], ["s"])]
CHOSEN = [node("Where", ["seen", "x", "lowest"], ["s"])]


def check(before, **feeds):
    after, log = run_pass(before, NAME)
    assert log.applied == 1, reasons(log)
    assert ops(after) == ops(before) + ops(made_of("ReduceMax", "Sub", "Max"))
    feeds = feeds or {"x": array(*SCORES) * 20}
    assert_same(before, after, feeds)
    want, got = session(before).run(None, feeds)[0], session(after).run(None, feeds)[0]
    np.testing.assert_array_equal(got[want > 1e-20], want[want > 1e-20])  # bit for bit where anything was seen
    assert got[want == 0].max() < 1e-27
    again, log = run_pass(after, NAME)
    assert log.applied == 0 and ops(again) == ops(after)


def made_of(*types):
    return model([node(t, ["x"], [f"y{i}"]) if t != "Sub" else node(t, ["x", "x"], [f"y{i}"]) for i, t in enumerate(types)], {"x": [2]}, [])


@pytest.mark.parametrize("opset", [13, 17, 18])
def test_an_added_mask(opset) -> None:
    check(made(ADDED, opset=opset))


@pytest.mark.parametrize("masking", [
    CHOSEN,
    [node("Not", ["seen"], ["hidden"]), node("Where", ["hidden", "lowest", "x"], ["s"])],
    [node("Add", ["infinite", "x"], ["s"])],
    [node("Slice", ["table", "zero", "end", "axis"], ["t"]), node("Slice", ["t", "zero", "end", "one"], ["m"]),
     node("Add", ["x", "m"], ["s"])],
    [node("LessOrEqual", ["place", "column"], ["c"]), node("Where", ["c", "x", "lowest"], ["s"])],
    [node("LessOrEqual", ["place", "column"], ["c"]), node("Where", ["c", "nothing", "lowest"], ["m"]), node("Add", ["x", "m"], ["s"])],
])  # fmt: skip
def test_other_masks(masking) -> None:
    check(made(masking))


def test_a_mask_that_follows_the_length() -> None:
    nodes = [
        node("Shape", ["x"], ["whole"]), node("Slice", ["whole", "three", "end"], ["n"]),
        node("Slice", ["table", "zero", "n", "one"], ["t"]), node("Slice", ["t", "zero", "n", "axis"], ["m"]),
        node("Add", ["x", "m"], ["s"]),
    ]  # fmt: skip
    check(made(nodes, x=("b", 3, "n", "n")))


def test_rows_without_a_number_stay_without() -> None:
    x = array(*SCORES)
    x[0, 0, 3] = -np.inf  # nothing is seen
    x[0, 1, 4, 2], x[1, 0, 5, 1] = np.nan, np.inf
    before = made(ADDED)
    after, _ = run_pass(before, NAME)
    want, got = (session(m).run(None, {"x": x})[0] for m in (before, after))
    np.testing.assert_array_equal(np.isnan(got), np.isnan(want))


@pytest.mark.parametrize("masking", [
    [node("Add", ["x", "bias"], ["s"])], [node("Add", ["x", "flat"], ["s"])], [node("Relu", ["x"], ["s"])],
    [node("Where", ["seen", "x", "half"], ["s"])], [node("Where", ["seen", "x", "bias"], ["s"])],
])  # fmt: skip
def test_no_mask(masking) -> None:
    _, log = run_pass(made(masking), NAME)
    assert log.applied == 0 and not reasons(log)


def refused(before, reason) -> None:
    after, log = run_pass(before, NAME)
    assert ops(after) == ops(before) and any(reason in r for r in reasons(log)), reasons(log)


def test_a_mask_that_the_input_decides() -> None:
    given = {"inputs": {"c": [8, 8]}, "types": {"c": onnx.TensorProto.BOOL}}
    refused(made([node("Where", ["c", "x", "lowest"], ["s"])], **given), "depends on the input")
    refused(made([node("Where", ["all", "x", "lowest"], ["s"])]), "hide nothing")
    _, log = run_pass(made([node("Add", ["x", "m"], ["s"])], inputs={"m": [8, 8]}), NAME)
    assert log.applied == 0


def test_a_mask_that_a_caller_may_override() -> None:
    _, log = run_pass(made(ADDED, overridable=["mask"]), NAME)
    assert log.applied == 0


def test_other_axes_types_and_opsets() -> None:
    refused(made(ADDED, softmax={"axis": 2}), "last axis")
    check(made(ADDED, softmax={"axis": 3}))
    refused(made(ADDED, opset=12, softmax={"axis": 3}), "opset 13")
    before = made(ADDED, types={"x": 11, "y": 11})
    for t in before.graph.initializer:
        t.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(t).astype("f8"), t.name))
    refused(before, "float32")


def test_in_a_subgraph() -> None:
    def branch(name, *nodes):
        return helper.make_graph(list(nodes), name, [], [helper.make_tensor_value_info(nodes[-1].output[0], 1, None)])

    choice = node("If", ["p"], ["y"], then_branch=branch("then", *ADDED, node("Softmax", ["s"], ["t"])),
                  else_branch=branch("else", node("Neg", ["x"], ["e"])))  # fmt: skip
    before = model([choice], {"x": SCORES, "p": []}, {"y": SCORES}, {"mask": WEIGHTS["mask"]}, types={"p": 9})
    after, log = run_pass(before, NAME)
    assert log.applied == 1
    assert_same(before, after, {"x": array(*SCORES), "p": np.array(True)})

"""Slices, Splits and Gathers for each other, where one does the work of several."""

import numpy as np
import onnx
import pytest

from tests.support import array, assert_same, model, node, ops, reasons, run_pass


def check(name, nodes, left, weights=None, *, inputs=None, outputs=("y",), shape=(4, 6, 32), reason=None, opset=17, **options):
    inputs = inputs or {"x": list(shape)}
    before = model(nodes, inputs, list(outputs), weights, opset=opset)
    after, log = run_pass(before, name, **options)
    assert dict(ops(after)) == left, ops(after)
    assert (reason is None) == (not log.refusals), reasons(log)
    if reason is not None:
        assert reason in reasons(log)[0]
    assert_same(before, after, {n: array(*shape, seed=i) for i, n in enumerate(inputs)}, exact=True)
    return after


def cut(source: str, target: str, start: int, end: int, axis: int) -> onnx.NodeProto:
    return node("Slice", [source, f"i{start}", f"i{end}", f"i{axis}"], [target])


def numbers(*nodes: onnx.NodeProto) -> dict[str, np.ndarray]:
    return {n: np.asarray([int(n[1:])]) for step in nodes for n in step.input if n[0] == "i"}


FAR = 2**63 - 1


# --- slices to a Split ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("opset", [11, 13, 18])
@pytest.mark.parametrize("axis", [1, -2])
def test_pieces_of_a_whole_axis(opset: int, axis: int) -> None:
    pieces = [cut("x", "c", -3, FAR, axis), cut("x", "a", 0, 2, 1), cut("x", "b", 2, 3, axis)]
    nodes = [*pieces, node("Concat", ["a", "c", "b"], ["y"], axis=1)]
    after = check("slices-to-split", nodes, {"Split": 1, "Concat": 1}, numbers(*nodes), opset=opset)
    assert after.graph.node[0].op_type == "Split" and list(after.graph.node[0].output) == ["a", "b", "c"]
    pieces = [cut("x", "y", 0, 3, axis), cut("x", "z", 3, 99, axis)]
    check("slices-to-split", pieces, {"Split": 1}, numbers(*pieces), opset=opset, outputs=("y", "z"))


def test_all_the_axes_named() -> None:
    whole = {"s0": np.asarray([0, 0, 0]), "e0": np.asarray([99, 3, FAR]), "s1": np.asarray([0, 3, 0]), "e1": np.asarray([FAR, FAR, 32])}
    nodes = [node("Slice", ["x", "s0", "e0"], ["y"]), node("Slice", ["x", "s1", "e1"], ["z"])]
    check("slices-to-split", nodes, {"Split": 1}, whole, outputs=("y", "z"))


@pytest.mark.parametrize(
    "pieces",
    [
        [cut("x", "y", 0, 3, 1), cut("x", "z", 2, 6, 1)],
        [cut("x", "y", 0, 3, 1), cut("x", "z", 4, 6, 1)],
        [cut("x", "y", 1, 3, 1), cut("x", "z", 3, 6, 1)],
        [cut("x", "y", 0, 3, 1), cut("x", "z", 3, 5, 1)],
        [cut("x", "y", 0, 3, 1), cut("x", "z", 3, 6, 1), cut("x", "w", 3, 6, 1)],
        [cut("x", "y", 0, 2, 0), cut("x", "z", 2, 6, 1)],
        [cut("x", "y", 0, 8, 2), cut("x", "z", 8, 32, 2)],  # runs of 8 elements
        [cut("x", "y", 0, 0, 1), cut("x", "z", 0, 6, 1)],
    ],
)
def test_not_the_pieces_of_an_axis(pieces) -> None:
    check("slices-to-split", pieces, {"Slice": len(pieces)}, numbers(*pieces), outputs=[p.output[0] for p in pieces])


def test_an_axis_of_unknown_size() -> None:
    pieces = [cut("x", "y", 0, 3, 1), cut("x", "z", 3, FAR, 1)]
    check("slices-to-split", pieces, {"Slice": 2}, numbers(*pieces), inputs={"x": [4, "n", 32]}, outputs=("y", "z"))
    check("slices-to-split", pieces, {"Split": 1}, numbers(*pieces), inputs={"x": ["n", 6, "m"]}, outputs=("y", "z"))


# --- a Slice of one to a Gather ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("opset", [11, 17])
@pytest.mark.parametrize("start, end, axis", [(0, 1, 0), (2, 3, 1), (-1, FAR, 1), (-3, -2, -1)])
def test_one_element(opset: int, start: int, end: int, axis: int) -> None:
    squeeze = node("Squeeze", ["a", f"i{axis}"], ["y"]) if opset >= 13 else node("Squeeze", ["a"], ["y"], axes=[axis])
    nodes = [cut("x", "a", start, end, axis), squeeze]
    check("slice-to-gather", nodes, {"Gather": 1}, numbers(*nodes), opset=opset, inputs={"x": [4, "n", "m"]})


def test_more_or_less_than_one_element() -> None:
    for size, nodes in (
        (1, [cut("x", "a", 0, 2, 1), node("Squeeze", ["a", "i1"], ["y"])]),
        (6, [cut("x", "a", 0, 1, 1), node("Squeeze", ["a", "i1", ], ["b"]), node("Sub", ["b", "a"], ["y"])]),
    ):
        left = {"Slice": 1, "Squeeze": 1, **({"Sub": 1} if len(nodes) > 2 else {})}
        reason = "has 2 consumers" if len(nodes) > 2 else None
        check("slice-to-gather", nodes, left, numbers(*nodes), inputs={"x": [4, "n", 32]}, shape=(4, size, 32), reason=reason)
    nodes = [cut("x", "a", 0, 1, 1), node("Squeeze", ["a", "both"], ["y"])]
    check("slice-to-gather", nodes, {"Slice": 1, "Squeeze": 1}, {**numbers(*nodes), "both": np.asarray([0, 1])}, shape=(1, 6, 32))


# --- a Split of which one piece is used -------------------------------------------------------------------------------


@pytest.mark.parametrize("opset", [11, 17, 18])
def test_one_piece_used(opset: int) -> None:
    weights = {"parts": np.asarray([1, 2, 3])}
    for given in (True, False):
        attributes = {"split": [1, 2, 3]} if given and opset < 13 else {"num_outputs": 3} if not given and opset >= 18 else {}
        split = node("Split", ["x", "parts"] if given and opset >= 13 else ["x"], ["a", "b", "c"], axis=-2, **attributes)
        used = {k: v for k, v in weights.items() if k in split.input}
        check("split-to-slice", [split, node("Neg", ["b"], ["y"])], {"Slice": 1, "Neg": 1}, used, opset=opset)
        check("split-to-slice", [split, node("Sub", ["b", "b"], ["y"])], {"Slice": 1, "Sub": 1}, used, opset=opset)
        check("split-to-slice", [split, node("Concat", ["b", "a"], ["y"], axis=1)], {"Split": 1, "Concat": 1}, used, opset=opset)


# --- Split and Concat -------------------------------------------------------------------------------------------------

SPLIT = node("Split", ["x", "parts"], ["a", "b", "c"], axis=1)
PARTS = {"parts": np.asarray([1, 2, 3])}


def test_pieces_joined_again() -> None:
    name = "eliminate-split-concat"
    check(name, [SPLIT, node("Concat", ["a", "b", "c"], ["d"], axis=-2), node("Neg", ["d"], ["y"])], {"Neg": 1}, PARTS)
    check(name, [SPLIT, node("Concat", ["c", "a", "b", "c", "a"], ["y"], axis=1)], {"Split": 1, "Concat": 1}, PARTS)
    for inputs, axis in ((["a", "c", "b"], 1), (["a", "b"], 1), (["b", "c"], 1)):
        check(name, [SPLIT, node("Concat", inputs, ["y"], axis=axis)], {"Split": 1, "Concat": 1}, PARTS)
    even = node("Split", ["x"], ["a", "b"], axis=0)
    check(name, [even, node("Concat", ["a", "b"], ["y"], axis=1)], {"Split": 1, "Concat": 1})
    after = check(name, [SPLIT, node("Concat", ["c", "a", "b", "c"], ["y"], axis=1), node("Neg", ["b"], ["z"])],
                  {"Split": 1, "Concat": 1, "Neg": 1}, PARTS, outputs=("y", "z"))
    assert list(after.graph.node[1].input) == ["c", "x"]


def test_joined_values_split_again() -> None:
    name, inputs = "eliminate-split-concat", {"x": [4, 6, 32], "z": [4, 6, 32]}
    join = node("Concat", ["x", "z", "x"], ["j"], axis=1)
    back = node("Split", ["j"], ["a", "b", "c"], axis=-2)
    check(name, [join, back, node("Sub", ["b", "a"], ["d"]), node("Div", ["d", "c"], ["y"])], {"Sub": 1, "Div": 1}, inputs=inputs)
    check(name, [join, back, node("Sub", ["b", "a"], ["d"]), node("Div", ["d", "c"], ["y"]), node("Neg", ["j"], ["w"])],
          {"Concat": 1, "Sub": 1, "Div": 1, "Neg": 1}, inputs=inputs, outputs=("y", "w"))
    uneven = node("Split", ["j", "parts"], ["a", "b", "c"], axis=1)
    check(name, [join, uneven, node("Concat", ["c", "b", "a"], ["y"], axis=1)], {"Concat": 2, "Split": 1}, {"parts": np.asarray([5, 7, 6])},
          inputs=inputs)
    check(name, [node("Concat", ["x", "z"], ["j"], axis=1), node("Split", ["j"], ["y", "w"], axis=1)], {"Identity": 2}, inputs=inputs,
          outputs=("y", "w"))

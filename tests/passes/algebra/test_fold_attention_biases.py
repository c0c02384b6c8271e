"""The biases of keys and values leave the attention, where nothing but the attention reads them."""

import numpy as np
import pytest

from tests.support import array, assert_same, model, node, ops, reasons, run_pass

NAME = "fold-attention-biases"
X = ("n", "s", 8)
WEIGHTS = {
    **{f"w{p}": array(8, 8, seed=i) for i, p in enumerate("qkvo")}, **{f"b{p}": array(8, seed=9 + i) for i, p in enumerate("qkvo")},
    "heads": np.array([0, 0, 2, 4]), "joined": np.array([0, 0, 8]), "root": np.float32(2), "quarter": np.float32(0.25),
    "full": array(6, 8, seed=20), "one": array(1, seed=21),
}  # fmt: skip


def projected(part, perm, bias=None, heads="heads"):
    return [
        node("MatMul", ["x", f"w{part}"], [f"{part}m"]), node("Add", [f"{part}m", bias or f"b{part}"], [part]),
        node("Reshape", [part, heads], [f"{part}h"]), node("Transpose", [f"{part}h"], [f"{part}t"], perm=perm),
    ]  # fmt: skip


def attention(*, key=None, value=None, scores=None, axis=-1, query=None):
    return [
        *(query or projected("q", [0, 2, 1, 3])), *(key or projected("k", [0, 2, 3, 1])), *(value or projected("v", [0, 2, 1, 3])),
        node("MatMul", ["qt", "kt"], ["qk"]), *(scores or [node("Div", ["qk", "root"], ["sc"])]), node("Softmax", ["sc"], ["p"], axis=axis),
        node("MatMul", ["p", "vt"], ["pv"]), node("Transpose", ["pv"], ["pt"], perm=[0, 2, 1, 3]),
        node("Reshape", ["pt", "joined"], ["pr"]), node("MatMul", ["pr", "wo"], ["om"]), node("Add", ["om", "bo"], ["y"]),
    ]  # fmt: skip


def made(nodes, outputs=("y",), x=X, opset=17, inputs=None, **kwargs):
    used = {i for n in nodes for i in n.input}
    return model(nodes, {"x": x, **(inputs or {})}, outputs, {k: v for k, v in WEIGHTS.items() if k in used}, opset=opset, **kwargs)


def check(before, applied, **feeds):
    after, log = run_pass(before, NAME)
    assert log.applied == applied, reasons(log)
    assert ops(after)["Add"] == ops(before)["Add"] - applied
    assert_same(before, after, {"x": array(2, 6, 8), **feeds})
    again, log = run_pass(after, NAME)
    assert log.applied == 0 and ops(again) == ops(after)
    return after


@pytest.mark.parametrize("x", [X, (2, 6, 8), ("n", 6, 8)])
def test_both_biases(x) -> None:
    check(made(attention(), x=x), 2)


def test_a_mask_and_a_scale_in_front() -> None:
    masked = [node("Mul", ["quarter", "qk"], ["ql"]), node("Add", ["mask", "ql"], ["sc"])]
    check(made(attention(scores=masked), inputs={"mask": ["n", 1, 1, "s"]}), 2, mask=array(2, 1, 1, 6))


def test_keys_that_are_scaled_and_moved_twice() -> None:
    key = [*projected("k", [0, 2, 1, 3])[:-1], node("Mul", ["kh", "quarter"], ["ks"]), node("Transpose", ["ks"], ["ku"], perm=[0, 2, 1, 3]),
           node("Transpose", ["ku"], ["kt"], perm=[0, 1, 3, 2])]  # fmt: skip
    check(made(attention(key=key)), 2)


def test_one_number_for_all() -> None:
    check(made(attention(key=projected("k", [0, 2, 3, 1], "one"), value=projected("v", [0, 2, 1, 3], "one"))), 2)


def test_a_constant_for_each_place_stays() -> None:
    nodes = attention(key=projected("k", [0, 2, 3, 1], "full"), value=projected("v", [0, 2, 1, 3], "full"))
    _, log = run_pass(made(nodes, x=(2, 6, 8)), NAME)
    assert log.applied == 0
    assert sorted(r.split()[5] for r in reasons(log)) == ["keys", "values"]


@pytest.mark.parametrize("change, applied", [
    ({"axis": 2}, 0),
    ({"scores": [node("Relu", ["qk"], ["sc"])]}, 1),
    ({"scores": [node("Mul", ["qk", "qk"], ["sc"])]}, 1),
    ({"key": [*projected("k", [0, 2, 3, 1]), node("Neg", ["k"], ["z"])]}, 1),
    ({"value": [*projected("v", [0, 2, 1, 3]), node("Neg", ["v"], ["z"])]}, 1),
    ({"value": [*projected("v", [0, 2, 1, 3])[:-1], node("Relu", ["vh"], ["vr"]),
                node("Transpose", ["vr"], ["vt"], perm=[0, 2, 1, 3])]}, 1),
])  # fmt: skip
def test_what_is_no_plain_attention(change, applied) -> None:
    before = made(attention(**change))
    after, log = run_pass(before, NAME)
    assert log.applied == applied
    assert_same(before, after, {"x": array(2, 6, 8)})


def test_scores_over_queries_do_not_forget_the_keys() -> None:
    """The product the other way round: what is on its right are the queries, and their bias counts."""
    nodes = attention(query=projected("q", [0, 2, 3, 1]), key=projected("k", [0, 2, 1, 3]))
    turned = [node("MatMul", ["kt", "qt"], ["qk"]) if n.output[0] == "qk" else n for n in nodes]
    check(made(turned), 2)  # by the same rule: a row of scores belongs to what is on the left


def test_graph_outputs_and_overridable_biases() -> None:
    _, log = run_pass(made(attention(), ("y", "k", "v")), NAME)
    assert log.applied == 0
    _, log = run_pass(made(attention(), overridable=["bk", "bv"]), NAME)
    assert log.applied == 0


def test_before_opset_13() -> None:
    _, log = run_pass(made(attention(axis=3), opset=12), NAME)
    assert log.applied == 0


def test_a_projection_that_is_an_output_keeps_the_bias_of_the_values() -> None:
    before = made(attention(), outputs=("y", "om"))
    after, log = run_pass(before, NAME)
    assert log.applied == 1 and any("the projection 'om' is also a graph output" in r for r in reasons(log)), reasons(log)
    assert_same(before, after, {"x": array(2, 6, 8)})

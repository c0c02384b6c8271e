"""Chains of constant scales and shifts: what is left of them, and which stay."""

import numpy as np
import onnx
import pytest

from tests.support import array, assert_same, model, node, ops, reasons, run_pass

NAME = "merge-affine-chains"
X = (2, 3, 4, 5)
S, V, C = np.float32(0.3), array(5, seed=1, low=0.5), array(3, 1, 1, seed=2, low=0.5)
NORM = {p: array(3, seed=i, low=0.5) for i, p in enumerate("GBMV", 20)}


def chain(*steps, x=X, dtype="float32", opset=17, outputs=("y",), more=(), first=None, **kwargs):
    """Steps of (operator, constant) on x; an operator that ends in "<" takes the constant first."""
    nodes, weights, value = [*(first or [])], {}, "f" if first else "x"
    for i, (kind, constant) in enumerate(steps):
        out = "y" if i == len(steps) - 1 else f"s{i}"
        if constant is None and kind == "BatchNormalization":
            nodes.append(node(kind, [value, *"GBMV"], [out]))
            weights |= NORM
        elif constant is None:
            nodes.append(node(kind, [value], [out]))
        else:
            weights[f"c{i}"] = np.asarray(constant, dtype)
            nodes.append(node(kind.rstrip("<"), [f"c{i}", value] if kind.endswith("<") else [value, f"c{i}"], [out]))
        value = out
    kind = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    shapes = dict.fromkeys(outputs, [None] * len(x))
    return model([*nodes, *more], {"x": x}, shapes, weights, types={"x": kind, **dict.fromkeys(outputs, kind)}, opset=opset, **kwargs)


def becomes(before, left, feed=None, **kwargs) -> None:
    after, log = run_pass(before, NAME)
    assert ops(after) == left, (ops(after), reasons(log))
    assert_same(before, after, {"x": array(*X) if feed is None else feed}, **kwargs)


def refused(before, reason: str) -> None:
    after, log = run_pass(before, NAME)
    assert ops(after) == ops(before)
    assert any(reason in r for r in reasons(log)), reasons(log)


def stays(before) -> None:
    after, log = run_pass(before, NAME)
    assert ops(after) == ops(before) and log.refusals == []


@pytest.mark.parametrize(("steps", "left"), [
    ([("Mul", S), ("Mul", V)], {"Mul": 1}),
    ([("Mul", S), ("Div", C)], {"Mul": 1}),
    ([("Div", V), ("Mul<", V * 2)], {"Mul": 1}),
    ([("Add", S), ("Add<", C)], {"Add": 1}),
    ([("Add", C), ("Sub", V)], {"Add": 1}),
    ([("Sub", C), ("Sub", C * 3), ("Add", C)], {"Add": 1}),
    ([("Sub<", C), ("Add", S)], {"Sub": 1}),
    ([("Sub<", C), ("Sub<", C * 3)], {"Add": 1}),
    ([("Neg", None), ("Mul", C)], {"Mul": 1}),
    ([("Neg", None), ("Add", C)], {"Sub": 1}),
    ([("Neg", None), ("Neg", None), ("Mul", S)], {"Mul": 1}),
    ([("Mul", S), ("Add", V), ("Mul", V), ("Add", C)], {"Mul": 1, "Add": 1}),
    ([("Div", np.float32(255)), ("Sub", C), ("Div", C * 2)], {"Mul": 1, "Add": 1}),
    ([("Mul", [2.0]), ("Mul", [[4.0]])], {"Mul": 1}),
], ids=lambda p: "-".join(k for k, _ in p) if isinstance(p, list) else "")  # fmt: skip
def test_chains(steps, left) -> None:
    becomes(chain(*steps), left)


@pytest.mark.parametrize("steps", [
    [("BatchNormalization", None), ("Mul", C)], [("Add", C), ("BatchNormalization", None)],
    [("Sub", C), ("BatchNormalization", None), ("Mul", S), ("Add", C), ("Neg", None)],
    [("BatchNormalization", None), ("BatchNormalization", None)],
])  # fmt: skip
def test_a_norm_takes_all(steps) -> None:
    becomes(chain(*steps), {"BatchNormalization": 1})


@pytest.mark.parametrize("dtype", ["int32", "int64"])
@pytest.mark.parametrize(("steps", "left"), [
    ([("Add", 2**31 - 1), ("Add", 2**31 - 5)], {"Add": 1}),
    ([("Mul", 1 << 20), ("Mul<", [[3 << 11]])], {"Mul": 1}),
    ([("Sub<", 7), ("Mul", [3, 4, 5, 6, 7]), ("Add", 1)], {"Mul": 1, "Add": 1}),
    ([("Add", 7), ("Sub", 5)], {"Add": 1}),
])  # fmt: skip
def test_integers_wrap_around(dtype: str, steps, left) -> None:
    becomes(chain(*steps, dtype=dtype), left, (array(*X) * 1e8).astype(dtype), exact=True)


def test_unknown_rank_and_sizes() -> None:
    becomes(chain(("Mul", S), ("Div", S * 2), x=["n", 3, "h", "w"]), {"Mul": 1})
    becomes(chain(("Mul", S), ("Div", V), x=["n", 3, "h", 5]), {"Mul": 1})
    refused(chain(("Mul", S), ("Div", V), x=["n", 3, "h", "w"]), "may widen")


@pytest.mark.parametrize(("dtype", "rtol"), [("float16", 5e-3), ("float64", 1e-12)])
def test_other_types(dtype: str, rtol: float) -> None:
    becomes(chain(("Mul", S), ("Mul", V), dtype=dtype), {"Mul": 1}, array(*X, dtype=dtype), rtol=rtol)


# --- what stays ---------------------------------------------------------------------------------------------------


def test_one_scale_and_one_shift_stay() -> None:
    for steps in ([("Mul", S), ("Add", V)], [("Add", S), ("Mul", V)], [("Div", S), ("Sub<", V)]):
        stays(chain(*steps))


@pytest.mark.parametrize("kind", ["Max", "Pow", "Unsqueeze", "Concat"])
def test_other_operators_with_a_constant_are_no_step(kind: str) -> None:
    """Around a Mul and an Add: nothing of them may be taken for a scale or a shift."""
    constant = np.asarray([0]) if kind == "Unsqueeze" else array(*X, low=0.5)
    attributes = {"axis": 0} if kind == "Concat" else {}
    nodes = [
        node(kind, ["x", "c"], ["a"], **attributes), node("Mul", ["a", "m"], ["b"]), node("Add", ["b", "m"], ["d"]),
        node(kind, ["d", "c"], ["y"], **attributes),
    ]  # fmt: skip
    before = model(nodes, {"x": X}, ["y"], {"c": constant, "m": np.float32([0.3])})
    stays(before)


def test_constants_that_cancel() -> None:
    refused(chain(("Add", np.float32(2**23)), ("Sub", np.float32(2**23))), "cancel")
    refused(chain(("Mul", S), ("Add", np.float32(2**23)), ("Add", np.float32(0.25 - 2**23))), "cancel")


def test_products_out_of_range() -> None:
    refused(chain(("Mul", np.float32(1e30)), ("Mul", np.float32(1e30))), "not be finite")
    refused(chain(("Mul", np.float32(1e-30)), ("Mul", np.float32(1e-30))), "too small")
    refused(chain(("Mul", S), ("Div", np.float32(0))), "divides by zero")
    refused(chain(("Mul", S), ("Mul", np.float32(np.nan))), "finite")


def test_constants_that_widen() -> None:
    refused(chain(("Mul", S), ("Mul", array(2, 1, 1, 1, 1)), x=(3, 4, 1, 5), outputs=("y",)), "widen")
    refused(chain(("Mul", C), ("Mul", V), x=(2, 1, 4, 5)), "widen")


def test_products_that_grow() -> None:
    row, column = array(300, low=0.5), array(300, 1, low=0.5)
    refused(chain(("Mul", row), ("Mul", column), x=(1, 300, 300)), "would be large")


def test_integer_division() -> None:
    refused(chain(("Mul", 4), ("Div", 3), dtype="int64"), "not exact")


def test_consumers_and_outputs() -> None:
    stays(chain(("Mul", S), ("Mul", V), more=[node("Relu", ["s0"], ["z"])], outputs=("y", "z")))
    stays(chain(("Mul", S), ("Mul", V), outputs=("y", "s0")))
    stays(chain(("Mul", S), ("Mul", V), overridable=["c0"]))


def test_norm_in_training_or_with_other_constants() -> None:
    refused(chain(("BatchNormalization", None), ("Mul", V)), "not one value a channel")
    before = chain(("BatchNormalization", None), ("Mul", C), opset=14)
    before.graph.node[0].attribute.append(onnx.helper.make_attribute("training_mode", 1))
    before.graph.node[0].output.extend(["rm", "rv"])
    stays(before)


def test_a_spelled_out_activation_is_left_whole() -> None:
    gelu = [node("Erf", ["x"], ["e"]), node("Mul", ["x", "e"], ["f"])]
    refused(chain(("Mul", np.float32(0.5)), ("Mul", V), first=gelu), "the runtime fuses")


def test_a_second_run_changes_nothing() -> None:
    once, _ = run_pass(chain(("Mul", S), ("Add", V), ("Mul", V), ("Add", C)), NAME)
    twice, log = run_pass(once, NAME)
    assert log.applied == 0 and twice.SerializeToString() == once.SerializeToString()


@pytest.mark.parametrize("kind", ["Max", "Min", "Pow", "PRelu"])
def test_other_operators_with_a_constant_are_no_steps(kind) -> None:
    for steps in ([(kind, S), ("Sub", S)], [("Mul", S), (kind, S), ("Mul", V)]):
        before = chain(*steps)
        after, _ = run_pass(before, NAME)
        assert ops(after) == ops(before)

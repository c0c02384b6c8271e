"""Rotary positions: which spellings become RotaryEmbedding, and which stay."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from tests.support import array, assert_same, model, node, ops, reasons, run_pass

NAME = "fuse-rotary-embedding"
OP = "RotaryEmbedding"
N, H, LONGEST = 3, 8, 16
ANGLES = np.outer(np.arange(LONGEST), 10.0 ** -np.arange(H // 2)).astype(np.float32)


def spelled(
    *, by: str = "split", table: str = "cut", packed: bool = True, swap: bool = False, length: Any = "s", batch: Any = "b",
    cos: Any = None, extra: tuple[str, ...] = (), lower_first: bool = True, dtype: int = onnx.TensorProto.FLOAT,
) -> onnx.ModelProto:
    """x cos + rotate(x) sin on [B, N, S, H], which was [B, S, N*H] where `packed`."""
    both = np.concatenate([ANGLES, ANGLES], axis=1)
    constants = {"cosines": np.cos(both) if cos is None else cos, "sines": np.sin(both), "angles": ANGLES}
    constants["sizes"] = np.asarray([0, 0, N, H])
    constants |= {n: np.asarray([v]) for n, v in {"zero": 0, "one": 1, "three": 3, "half": H // 2, "end": 2**62, "last": -1}.items()}
    nodes: list[onnx.NodeProto] = []

    def add(kind: str, inputs: list[str], output: str, **attributes: Any) -> str:
        nodes.append(node(kind, inputs, [output], **attributes))
        return output

    x = "x"
    if packed:
        x = add("Transpose", [add("Reshape", ["x", "sizes"], "split_heads")], "heads", perm=[0, 2, 1, 3])
    if by == "split":
        nodes.append(node("Split", [x], ["lower", "upper"], axis=-1))
    else:
        add("Slice", [x, "zero", "half", "three"], "lower")
        add("Slice", [x, "half", "end", "last" if by == "slice-last" else "three"], "upper")
    add("Neg", ["upper"], "negated")
    turned = add("Concat", ["negated", "lower"] if lower_first else ["lower", "negated"], "turned", axis=-1)
    add("Shape", ["x"], "shape")
    add("Gather", ["shape", "one" if packed else "two"], "length", axis=0)
    constants["two"] = np.asarray([2])
    tables = []
    for name, kind in (("cosines", "Cos"), ("sines", "Sin")):
        if table == "cut":
            tables.append(add("Slice", [name, "zero", "length", "zero"], f"{name}_cut"))
        elif table == "static":
            tables.append(name)
        else:
            if kind == "Cos":
                cut = add("Slice", ["angles", "zero", "length", "zero"], "angles_cut")
                wide = add("Unsqueeze", [cut, "zero"], "angles_wide")
                add("Concat", [wide, wide], "angles_twice", axis=-1)
            tables.append(add("Unsqueeze", [add(kind, ["angles_twice"], f"{name}_cut"), "one"], f"{name}_wide"))
    plain = add("Mul", [tables[0], x] if swap else [x, tables[0]], "plain")
    other = add("Mul", [tables[1], turned] if swap else [turned, tables[1]], "other")
    add("Add", [other, plain] if swap else [plain, other], "y")
    numpy_type = onnx.helper.tensor_dtype_to_np_dtype(dtype)
    constants = {n: a.astype(numpy_type) if a.dtype == np.float32 else a for n, a in constants.items()}
    dims = [batch, length, N * H] if packed else [batch, N, length, H]
    outputs = dict.fromkeys(("y", *extra), [None] * 4)
    return model(nodes, {"x": dims}, outputs, constants, types=dict.fromkeys(("x", "y", *extra), dtype))


def feeds(packed: bool = True, b: int = 2, s: int = 5) -> dict[str, np.ndarray]:
    return {"x": array(b, s, N * H) if packed else array(b, N, s, H)}


def refused(before: onnx.ModelProto, reason: str) -> None:
    after, log = run_pass(before, NAME)
    assert ops(after) == ops(before)
    assert any(reason in r for r in reasons(log)), reasons(log)


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("by", ["split", "slice", "slice-last"])
@pytest.mark.parametrize("table", ["cut", "computed"])
@pytest.mark.parametrize("swap", [False, True])
def test_spellings(packed: bool, by: str, table: str, swap: bool) -> None:
    before = spelled(by=by, table=table, packed=packed, swap=swap)
    after, log = run_pass(before, NAME)
    count = ops(after)
    assert count[OP] == 1 and not count["Neg"] and not count["Concat"], reasons(log)
    for b, s in ((2, 5), (1, 1), (3, LONGEST)):
        assert_same(before, after, feeds(packed, b, s), rtol=1e-6)


def test_fixed_length() -> None:
    before = spelled(table="static", length=LONGEST)
    after, _ = run_pass(before, NAME)
    assert ops(after)[OP] == 1
    assert_same(before, after, feeds(s=LONGEST), rtol=1e-6)


def test_heads_side_by_side_are_turned_before_they_are_split() -> None:
    after, _ = run_pass(spelled(), NAME)
    turn = next(n for n in after.graph.node if n.op_type == OP)
    assert turn.input[0] == "x" and ops(after)["Transpose"] == 1


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"extra": ("turned",)}, "'turned', inside it, is also needed elsewhere"),
        ({"cos": np.cos(np.concatenate([ANGLES, ANGLES + 1], axis=1))}, "alike for both halves"),
        ({"dtype": onnx.TensorProto.DOUBLE}, "not known to be of float32"),
    ],
)
def test_refusals(options: dict, reason: str) -> None:
    refused(spelled(**options), reason)


def test_tables_by_sequence() -> None:
    before = spelled(table="static", length=LONGEST, batch=2, cos=np.cos(np.ones((2, 1, LONGEST, H), np.float32)))
    refused(before, "differ from sequence to sequence")


def test_another_order_of_halves_is_no_rotation() -> None:
    before = spelled(lower_first=False)
    after, log = run_pass(before, NAME)
    assert ops(after) == ops(before) and not reasons(log)


def test_a_table_that_a_caller_may_override() -> None:
    before = spelled()
    before.graph.input.append(onnx.helper.make_tensor_value_info("cosines", onnx.TensorProto.FLOAT, [LONGEST, H]))
    refused(before, "alike for both halves")

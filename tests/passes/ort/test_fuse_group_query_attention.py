"""Causal and grouped attention: which spellings become GroupQueryAttention, and which stay."""

from __future__ import annotations

from functools import partial

import numpy as np
import onnx
import pytest

from tests.passes.attention import checks
from tests.passes.attention.spelled import LOWEST, Spelled
from tests.support import model, node, ops

NAME = "fuse-group-query-attention"
OP = "GroupQueryAttention"
CAUSAL_FORMS = ["table", "not-table", "added-table", "compared", "trilu", "trilu-added"]
fused = partial(checks.fused, NAME, OP)
refused = partial(checks.refused, NAME)
unmatched = partial(checks.unmatched, NAME)


def attribute(proto: onnx.ModelProto, name: str) -> object:
    found = next(n for n in proto.graph.node if n.op_type == OP)
    return {a.name: onnx.helper.get_attribute_value(a) for a in found.attribute}.get(name)


@pytest.mark.parametrize("mask", [*CAUSAL_FORMS, "static"])
@pytest.mark.parametrize("scale", ["div", "mul", "query", "both", "none"])
def test_causal(mask: str, scale: str) -> None:
    after = fused(Spelled(mask=mask, scale=scale))
    assert attribute(after, "causal") is None
    assert attribute(after, "scale") == pytest.approx(1.0 if scale == "none" else 8**-0.5, rel=1e-6)


@pytest.mark.parametrize("mask", CAUSAL_FORMS)
@pytest.mark.parametrize("sizes", [{"b": 1, "s": 1}, {"b": 3, "s": 1}, {"b": 2, "s": 7}])
def test_causal_with_symbolic_sizes(mask: str, sizes: dict[str, int]) -> None:
    fused(Spelled(mask=mask, batch="b", lengths=("s", "s")), **sizes)


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("mask", ["", "table", "compared", "padding", "full", "heads", "matrix", "choice", "chosen"])
@pytest.mark.parametrize("transpose", ["two", "flat"])
def test_shared_heads(groups: int, mask: str, transpose: str) -> None:
    after = fused(Spelled(groups=groups, mask=mask, transpose=transpose))
    assert attribute(after, "kv_num_heads") == groups and not ops(after)["Transpose"]
    assert attribute(after, "causal") == (None if mask in ("table", "compared") else 0)


@pytest.mark.parametrize("mask", ["", "padding", "matrix", "choice", "table"])
def test_shared_heads_with_symbolic_sizes(mask: str) -> None:
    for sizes in ({"b": 1, "s": 6}, {"b": 3, "s": 4}):
        fused(Spelled(groups=2, mask=mask, batch="b", lengths=("s", "s"), transpose="two"), **sizes)


@pytest.mark.parametrize(
    "options", [{"transpose": "two"}, {"transpose": "flat"}, {"flat": True}, {"merge": "rows"}, {"guard": True}, {"axis": 3}]
)
def test_spellings(options: dict) -> None:
    fused(Spelled(mask="table", **options))


def test_query_key_and_value_of_one_product() -> None:
    after = fused(Spelled(mask="table", split="qkv", transpose="two"))
    assert ops(after)["Split"] == 1 and not ops(after)["Transpose"]


@pytest.mark.parametrize("fill", [-1e30, LOWEST, float("-inf")])
def test_numbers_that_remove_a_score(fill: float) -> None:
    fused(Spelled(mask="not-table", fill=fill))


def test_a_number_that_only_lowers_a_score_is_no_causal_mask() -> None:
    unmatched(Spelled(mask="not-table", fill=-1e4).build())


def test_tables_that_are_not_causal() -> None:
    for table in (np.triu(np.ones((16, 16), bool)), np.tril(np.ones((16, 16), bool), 1), np.ones((16, 16), bool)):
        unmatched(Spelled(mask="table", given={"table": table}).build())


def test_no_causal_mask_and_no_shared_heads() -> None:
    for mask in ("", "padding", "choice"):
        unmatched(Spelled(mask=mask).build())


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"lengths": (3, 5), "mask": "", "groups": 2}, "not known to be of one length"),
        ({"lengths": ("s", "t"), "mask": "", "groups": 2, "transpose": "two"}, "not known to be of one length"),
        ({"size": 12, "value_size": 12}, "no multiple of 8"),
        ({"value_size": 16}, "differ in size"),
        ({"scale": "late"}, "the scale is applied after the mask"),
        ({"axis": 2}, "does not run along the keys"),
        ({"extra": ("p",)}, "'p', inside it, is also needed elsewhere"),
        ({"extra": ("scores",)}, "'scores', inside it, is also needed elsewhere"),
        ({"merge": "none"}, "not brought to heads side by side"),
    ],
)
def test_refusals(options: dict, reason: str) -> None:
    refused(Spelled(**({"mask": "added-table"} | options)).build(), reason)


def test_a_softmax_over_something_else() -> None:
    nodes = [node("Tanh", ["x"], ["t"]), node("Softmax", ["t"], ["p"], axis=-1), node("MatMul", ["p", "v"], ["y"])]
    refused(model(nodes, {"x": [2, 3, 4], "v": [2, 4, 5]}, ["y"]), "a Tanh is in the way")
    unmatched(model([node("MatMul", ["x", "v"], ["y"])], {"x": [2, 3, 4], "v": [2, 4, 5]}, ["y"]))


def test_a_mask_that_a_caller_may_override() -> None:
    spelled = Spelled(mask="static")
    before = spelled.build()
    info = onnx.helper.make_tensor_value_info("table", onnx.TensorProto.FLOAT, spelled.constants["table"].shape)
    before.graph.input.append(info)
    unmatched(before)

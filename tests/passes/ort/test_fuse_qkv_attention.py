"""Self-attention with its projections: which spellings become Attention of com.microsoft, and which stay."""

from __future__ import annotations

from functools import partial

import numpy as np
import onnx
import pytest

from tests.passes.attention import checks
from tests.passes.attention.spelled import LOWEST, Spelled
from tests.support import array, assert_same, ops, run_pass

NAME = "fuse-qkv-attention"
OP = "Attention"
fused = partial(checks.fused, NAME, OP, rtol=5e-5)
refused = partial(checks.refused, NAME)
unmatched = partial(checks.unmatched, NAME)


def stacked(spelled: Spelled) -> Spelled:
    """Query, key and value of one product, x W + b."""
    build = spelled.build

    def changed() -> onnx.ModelProto:
        before = build()
        graph = before.graph
        width = 3 * spelled.heads * spelled.size
        graph.input[0].type.tensor_type.shape.dim[2].dim_value = 12
        spelled.inputs["x"] = [spelled.batch, spelled.lengths[0], 12]
        graph.initializer.append(onnx.numpy_helper.from_array(array(12, width, seed=3), "w"))
        graph.initializer.append(onnx.numpy_helper.from_array(array(width, seed=4), "b"))
        nodes = [onnx.helper.make_node("MatMul", ["x", "w"], ["xw"]), onnx.helper.make_node("Add", ["b", "xw"], ["xwb"])]
        next(n for n in graph.node if n.op_type == "Reshape").input[0] = "xwb"
        old = list(graph.node)
        del graph.node[:]
        graph.node.extend(nodes + old)
        return before

    spelled.build = changed  # type: ignore[method-assign]
    return spelled


@pytest.mark.parametrize("mask", ["", "padding", "full", "heads", "matrix", "choice", "chosen", "table", "compared"])
def test_masks(mask: str) -> None:
    fused(Spelled(split="products", mask=mask))


@pytest.mark.parametrize("mask", ["", "padding", "table"])
def test_symbolic_sizes(mask: str) -> None:
    for sizes in ({"b": 1, "s": 6}, {"b": 3, "s": 1}):
        fused(Spelled(split="products", mask=mask, batch="b", lengths=("s", "s")), **sizes)


@pytest.mark.parametrize(
    "options", [{"scale": "both"}, {"scale": "none"}, {"transpose": "flat"}, {"flat": True}, {"size": 6, "value_size": 10}]
)
def test_spellings(options: dict) -> None:
    fused(Spelled(split="products", **options))


def test_the_weight_of_one_product_is_used_as_it_is() -> None:
    after = fused(stacked(Spelled(split="qkv", transpose="two")))
    assert next(n for n in after.graph.node if n.op_type == OP).input[1:3] == ["w", "b"]


@pytest.mark.parametrize("mask", ["choice", "full"])
def test_rows_that_are_masked_throughout(mask: str) -> None:
    for fill in (LOWEST, float("-inf")):
        for guard in (False, True):
            spelled = Spelled(split="products", mask=mask, fill=fill, guard=guard)
            before, after = spelled.build(), fused(spelled)
            feeds = spelled.feeds()
            feeds["keep" if mask == "choice" else "mask"][1, :, 2] = False if mask == "choice" else fill
            assert_same(before, after, feeds, rtol=5e-5)


def test_a_product_without_a_bias() -> None:
    spelled = Spelled(split="products")
    before = spelled.build()
    add = next(n for n in before.graph.node if n.output[0] == "k_biased")
    next(n for n in before.graph.node if "k_biased" in n.input).input[0] = "k_product"
    before.graph.node.remove(add)
    after, _ = run_pass(before, NAME)
    assert ops(after)[OP] == 1
    assert_same(before, after, spelled.feeds(), rtol=5e-5)


def test_query_key_and_value_of_different_inputs_stay() -> None:
    unmatched(Spelled().build())
    spelled = Spelled(split="products")
    before = spelled.build()
    before.graph.input.append(onnx.helper.make_tensor_value_info("z", onnx.TensorProto.FLOAT, [2, 5, 12]))
    next(n for n in before.graph.node if n.output[0] == "k_product").input[0] = "z"
    unmatched(before)


def test_a_weight_that_a_caller_may_override() -> None:
    before = Spelled(split="products").build()
    before.graph.input.append(onnx.helper.make_tensor_value_info("wk", onnx.TensorProto.FLOAT, [12, 32]))
    unmatched(before)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"merge": "none"}, "not brought to heads side by side"),
        ({"mask": "choice", "fill": -1e4}, "a number that does not remove them"),
        ({"extra": ("k_biased",)}, "is also needed elsewhere"),
        ({"extra": ("p",)}, "'p', inside it, is also needed elsewhere"),
    ],
)
def test_refusals(options: dict, reason: str) -> None:
    refused(Spelled(split="products", **options).build(), reason)


def test_weights_are_joined_in_order() -> None:
    spelled = Spelled(split="products", size=8)
    after = fused(spelled)
    joined = {i.name: onnx.numpy_helper.to_array(i) for i in after.graph.initializer}
    weight = next(a for a in joined.values() if a.shape == (12, 96))
    np.testing.assert_array_equal(weight, np.concatenate([array(12, 32, seed=ord(n)) for n in "qkv"], axis=1))

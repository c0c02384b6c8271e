"""Embeddings that are added up and normalized become one operator."""

import numpy as np
import pytest
from onnx import TensorProto

from tests.passes.fusion.expressions import Expression, refused, unmatched
from tests.passes.ort.common import becomes
from tests.support import array, rng

NAME = "fuse-embed-layernorm"
IDS = ("n", "s")


def embedded(*, order="(w+t)+p", segments=True, shapes=None, width=8, norm=None, dtype="float32", **given) -> tuple[Expression, dict]:
    e = Expression(dtype)
    tables = {"w": array(9, 8, dtype=dtype), "p": array(6, width, seed=1, dtype=dtype), "t": array(2, 8, seed=2, dtype=dtype)}
    parts = {k: e.Gather(v, f"{k}_ids") for k, v in tables.items() if k != "t" or segments}
    if not segments:
        summed = e.Add(parts["w"], parts["p"])
    elif order == "(w+t)+p":
        summed = e.Add(e.Add(parts["w"], parts["t"]), parts["p"])
    else:
        summed = e.Add(parts["t"], e.Add(parts["p"], parts["w"]))
    norm = norm or [array(8, seed=3, dtype=dtype), array(8, seed=4, dtype=dtype)]
    e.LayerNormalization(summed, *norm, output="y", **given)
    inputs = {"w_ids": IDS, "p_ids": (1, "s"), "t_ids": IDS} | (shapes or {})
    if not segments:
        del inputs["t_ids"]
    return e, inputs


def feeds(inputs, dtype):
    r = rng()
    sizes = {"n": 2, "s": 5}
    limits = {"w_ids": 9, "p_ids": 6, "t_ids": 2}
    return {k: r.integers(0, limits[k], tuple(sizes.get(d, d) for d in v)).astype(dtype) for k, v in inputs.items()}


def build(made, ids="int64"):
    e, inputs = made
    kind = TensorProto.INT64 if ids == "int64" else TensorProto.INT32
    return e.model(inputs, {"y": [None] * 3}, types=dict.fromkeys(inputs, kind)), feeds(inputs, ids)


@pytest.mark.parametrize("order", ["(w+t)+p", "t+(p+w)"])
@pytest.mark.parametrize("ids", ["int64", "int32"])
@pytest.mark.parametrize("positions", [(1, "s"), IDS])
def test_three(order, ids, positions) -> None:
    before, given = build(embedded(order=order, shapes={"p_ids": positions}, axis=-1, epsilon=1e-12), ids)
    becomes(NAME, before, {"EmbedLayerNormalization": 1} | ({"Cast": 3} if ids == "int64" else {}), given)


def test_two() -> None:
    before, given = build(embedded(segments=False), "int32")
    becomes(NAME, before, {"EmbedLayerNormalization": 1}, given)


def test_one_sequence() -> None:
    before, given = build(embedded(shapes=dict.fromkeys(("w_ids", "p_ids", "t_ids"), (1, 4))), "int32")
    becomes(NAME, before, {"EmbedLayerNormalization": 1}, given)


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"shapes": {"p_ids": ("s",)}}, "not known to be [batch, sequence]"),
        ({"shapes": {"t_ids": ("n", 1)}}, "not known to be of one shape"),
        ({"shapes": {"p_ids": (1, 1)}}, "as many as words"),
        ({"norm": [array(8)]}, "its scale and bias are not vectors"),
        ({"stash_type": 11}, "another type than float32"),
        ({"dtype": "float64"}, "float32 or float16"),
        ({"width": 1}, "not matrices of one width"),
    ],
)
def test_refusals(given, reason) -> None:
    refused(NAME, build(embedded(**given))[0], reason)


def test_a_sum_that_is_used_elsewhere() -> None:
    e, inputs = embedded()
    e.Neg("v4", output="z")
    before = e.model(inputs, {"y": [None] * 3, "z": [None] * 3}, types=dict.fromkeys(inputs, TensorProto.INT64))
    refused(NAME, before, "the sum of embeddings 'v4' has 2 consumers: y, z")


def test_other_sums() -> None:
    e = Expression()
    e.LayerNormalization(e.Add(e.Gather(array(9, 8), "i"), "x"), array(8), array(8), output="y")
    unmatched(NAME, e.model({"i": IDS, "x": ("n", "s", 8)}, {"y": [None] * 3}, types={"i": TensorProto.INT64}))
    e = Expression()
    e.LayerNormalization(e.Add(e.Gather(array(9, 8), "i", axis=1), e.Gather(array(9, 8), "i", axis=1)), np.ones(8, "f4"), output="y")
    unmatched(NAME, e.model({"i": (2, 8)}, {"y": [None] * 3}, types={"i": TensorProto.INT64}))


def test_an_embedding_added_to_itself() -> None:
    e = Expression()
    gathered = e.Gather(array(9, 8), "ids")
    e.LayerNormalization(e.Add(gathered, gathered), array(8, seed=3), array(8, seed=4), output="y")
    refused(NAME, e.model({"ids": IDS}, {"y": [None] * 3}, types={"ids": TensorProto.INT64}), "added to itself")

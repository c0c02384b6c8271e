"""Indices that name every element, in order, and those that nearly do."""

import numpy as np
import pytest
from onnx import TensorProto

from tests.support import array, assert_same, model, node, ops, run_pass

PASS = "eliminate-full-selections"
X = {"x": array(2, 3, 4)}
ALL = np.stack(np.indices((2, 3)), axis=-1)
ALONG = np.broadcast_to(np.arange(3).reshape(1, 3, 1), (2, 3, 4)).copy()


@pytest.mark.parametrize(
    ("kind", "indices", "settings", "gone"),
    [
        ("GatherND", ALL, {}, True),
        ("GatherND", np.asarray([[0], [1]]), {}, True),
        ("GatherND", np.asarray([[1], [0]]), {}, False),
        ("GatherND", np.asarray([[0]]), {}, False),
        ("GatherND", ALL[:, :2], {}, False),
        ("GatherND", np.asarray([[0], [1]]), {"batch_dims": 1}, False),
        ("GatherElements", ALONG, {"axis": 1}, True),
        ("GatherElements", ALONG, {"axis": -2}, True),
        ("GatherElements", ALONG[:, :2], {"axis": 1}, False),
        ("GatherElements", ALONG * 0, {"axis": 1}, False),
    ],
)
def test_gathering(kind, indices, settings, gone) -> None:
    nodes = [node("Relu", ["x"], ["r"]), node(kind, ["r", "i"], ["g"], **settings), node("Neg", ["g"], ["y"])]
    rank = {"GatherND": indices.ndim - 1 + 3 - indices.shape[-1] - settings.get("batch_dims", 0), "GatherElements": 3}[kind]
    before = model(nodes, {"x": [2, 3, 4]}, {"y": [None] * rank}, {"i": indices})
    after, log = run_pass(before, PASS)
    assert log.applied == gone and ops(after)[kind] == (not gone)
    assert_same(before, after, X, exact=True)


@pytest.mark.parametrize(
    ("kind", "indices", "settings", "gone"),
    [
        ("ScatterND", ALL, {}, True),
        ("ScatterND", ALL[::-1].copy(), {}, False),
        ("ScatterND", ALL, {"reduction": "add"}, False),
        ("ScatterElements", ALONG, {"axis": 1}, True),
        ("ScatterElements", ALONG, {"axis": 1, "reduction": "add"}, False),
        ("ScatterElements", ALONG * 0, {"axis": 1}, False),
    ],
)
def test_scattering(kind, indices, settings, gone) -> None:
    scatter = node(kind, ["r", "i", "new"], ["s"], **settings)
    nodes = [node("Relu", ["x"], ["r"]), node("Tanh", ["x"], ["new"]), scatter, node("Neg", ["s"], ["y"])]
    before = model(nodes, {"x": [2, 3, 4]}, {"y": [2, 3, 4]}, {"i": indices}, opset=18)
    after, log = run_pass(before, PASS)
    assert log.applied == gone and ops(after)[kind] == (not gone)
    if gone:
        assert not ops(after)["Relu"]
    assert_same(before, after, X, exact=True)


def test_unknown_sizes_and_indices_stay() -> None:
    for inputs in ({"x": ["n", 3]}, {"x": [2, 3], "i": [2, 1]}):
        before = model(
            [node("GatherND", ["x", "i"], ["y"])], inputs, {"y": [2, 3]}, {} if "i" in inputs else {"i": np.asarray([[0], [1]])},
            types={"i": TensorProto.INT64},
        )
        after, log = run_pass(before, PASS)
        assert log.applied == 0 and ops(after) == ops(before)

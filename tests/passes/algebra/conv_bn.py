"""A linear operator before a BatchNormalization, for the tests of its fusion."""

import numpy as np
import onnx
from onnx import helper

from tests.support import array, assert_same, model, node, ops, reasons, run_pass

NAME = "fuse-conv-bn"


def params(channels: int, prefix: str = "", dtype: str = "float32", seed: int = 0) -> dict[str, np.ndarray]:
    return {
        f"{prefix}s": array(channels, seed=seed + 1, low=0.5, dtype=dtype),
        f"{prefix}b": array(channels, seed=seed + 2, dtype=dtype),
        f"{prefix}m": array(channels, seed=seed + 3, dtype=dtype),
        f"{prefix}v": array(channels, seed=seed + 4, low=0.1, dtype=dtype),
    }


def bn(x: str, y: str, prefix: str = "", **attributes) -> onnx.NodeProto:
    return node(
        "BatchNormalization",
        [x, *(f"{prefix}{p}" for p in "sbmv")],
        attributes.pop("outputs", [y]),
        name=attributes.pop("name", "bn"),
        **attributes,
    )


def conv_bn(inputs=("x", "w"), weights=None, *, x=(2, 3, 6, 6), channels=4, opset=17, bn_attributes=None, op="Conv", dtype=1, **attributes):
    weights = {"w": array(4, 3, 3, 3)} if weights is None else weights
    kind = helper.tensor_dtype_to_np_dtype(dtype)
    weights = {k: v.astype(kind) for k, v in (weights | params(channels)).items()}
    return model(
        [node(op, list(inputs), ["c"], **attributes), bn("c", "y", **(bn_attributes or {}))],
        {"x": x},
        {"y": [None] * len(x)},
        weights,
        opset=opset,
        types={"x": dtype, "y": dtype},
    )


def refused(before: onnx.ModelProto, reason: str, feeds=None, **options) -> None:
    """The pass leaves the model alone and says why."""
    after, log = run_pass(before, NAME, **options)
    assert ops(after) == ops(before)
    assert log.applied == 0
    assert any(reason in r for r in reasons(log)), reasons(log)
    if feeds:
        assert_same(before, after, feeds, exact=True)

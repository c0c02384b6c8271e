"""Blocks moved between channels and space, in the orders that have an operator and in others."""

import onnx
import pytest

from tests.passes.fusion.expressions import Expression, fused, refused, unmatched
from tests.support import array, assert_same

NAME = "fuse-depth-to-space"
DCR, CRD, SPACE = (0, 3, 4, 1, 5, 2), (0, 1, 4, 2, 5, 3), (0, 3, 5, 1, 2, 4)


def moved(perm, split, join, *, x=(2, 12, 4, 6), opset=17, dtype="float32", outputs=("y",)) -> onnx.ModelProto:
    e = Expression(dtype, opset)
    e.Reshape(e.Transpose(e.Reshape("x", list(split)), perm=list(perm)), list(join), output="y")
    return e.model({"x": x}, list(outputs))


CASES = [
    (DCR, (2, 2, 2, 3, 4, 6), (2, 3, 8, 12), "DepthToSpace", b"DCR"),
    (CRD, (2, 3, 2, 2, 4, 6), (2, 3, 8, 12), "DepthToSpace", b"CRD"),
    (SPACE, (2, 12, 2, 2, 3, 2), (2, 48, 2, 3), "SpaceToDepth", None),
]


@pytest.mark.parametrize(("perm", "split", "join", "op_type", "mode"), CASES)
@pytest.mark.parametrize("dtype", ["float32", "float16", "float64"])
def test_blocks(perm, split, join, op_type, mode, dtype) -> None:
    before = moved(perm, split, join, dtype=dtype)
    after = fused(NAME, before, {op_type: 1})
    attributes = {a.name: onnx.helper.get_attribute_value(a) for a in after.graph.node[0].attribute}
    assert attributes["blocksize"] == 2 and attributes.get("mode", b"DCR") == (mode or b"DCR")
    assert_same(before, after, {"x": array(2, 12, 4, 6, dtype=dtype)}, exact=True)


@pytest.mark.parametrize(("perm", "split", "join", "op_type", "mode"), CASES)
def test_symbolic_batch(perm, split, join, op_type, mode) -> None:
    before = moved(perm, (-1, *split[1:]), (-1, *join[1:]), x=("n", 12, 4, 6))
    assert_same(before, fused(NAME, before, {op_type: 1}), {"x": array(2, 12, 4, 6)}, exact=True)


@pytest.mark.parametrize("perm", [(0, 4, 2, 1, 5, 3), (0, 1, 3, 5, 2, 4)])
def test_other_orders(perm) -> None:
    unmatched(NAME, moved(perm, (2, 3, 2, 2, 4, 6), (2, 12, 4, 6)))


@pytest.mark.parametrize(
    ("perm", "split", "join"),
    [
        (DCR, (2, 2, 3, 2, 4, 6), (2, 2, 8, 18)),  # blocks that are not square
        (CRD, (2, 3, 2, 2, 4, 6), (2, 3, 4, 24)),  # joined otherwise
        (CRD, (2, 12, 1, 1, 4, 6), (2, 12, 4, 6)),
        (SPACE, (2, 12, 2, 2, 2, 3), (2, 48, 2, 3)),
    ],
)
def test_other_splits(perm, split, join) -> None:
    unmatched(NAME, moved(perm, split, join))


def test_refusals() -> None:
    perm, split, join, *_ = CASES[1]
    refused(NAME, moved(perm, split, join, opset=10), "needs opset 11")
    refused(NAME, moved(perm, split, join, outputs=("y", "v0")), "graph output")
    refused(NAME, moved(perm, split, join, dtype="int32"), "of a type that runtimes move so")
    refused(NAME, moved(perm, (4, 3, 2, 2, 4, 3), join), "not known to be")

"""Transposes that move nothing in memory."""

import pytest

from tests.passes.layout.transposes import t
from tests.support import array, assert_same, model, node, ops, run_pass


@pytest.mark.parametrize(
    "dims, shape, perm, kind",
    [
        (["N", 3, 1, 1], (2, 3, 1, 1), (0, 2, 3, 1), "Reshape"),
        (["N", 1, "L", 5], (2, 1, 4, 5), (0, 2, 1, 3), "Reshape"),
        ([1, "N", "L"], (1, 2, 4), (1, 0, 2), "Reshape"),
        ([1, "N", "L", 5], (1, 2, 4, 5), (1, 2, 0, 3), "Transpose"),  # two sizes would have to be worked out
        ([1, "N", 3, 1], (1, 2, 3, 1), (1, 0, 3, 2), "Reshape"),
        (["N", 3, 4, 1], (2, 3, 4, 1), (0, 2, 1, 3), "Transpose"),
        (["N", "C", "H", "W"], (2, 3, 1, 1), (0, 2, 3, 1), "Transpose"),
        ([2, 0, 1], (2, 0, 1), (0, 2, 1), "Reshape"),
    ],
)
def test_only_where_nothing_moves(dims, shape, perm, kind) -> None:
    before = model([t("x", "a", *perm), node("Neg", ["a"], ["y"])], {"x": dims}, ["y"])
    after, _ = run_pass(before, "transpose-to-reshape")
    assert ops(after) == {kind: 1, "Neg": 1}
    assert_same(before, after, {"x": array(*shape)}, exact=True)

"""Equations that are matrix products or permutations, and those that are not."""

import pytest

from tests.passes.fusion.expressions import Expression, fused, refused, unmatched
from tests.support import array, assert_same

NAME = "einsum-to-matmul"
SIZES = {"b": 2, "h": 3, "q": 4, "k": 5, "d": 6, "s": 7, "i": 4, "j": 5, "m": 3, "B": 2}


def einsum(equation: str, dtype: str = "float32", sizes=SIZES, symbolic: str = ""):
    operands = equation.replace(" ", "").split("->")[0].split(",")
    e = Expression(dtype)
    names = ["x", "z"][: len(operands)]
    e.Einsum(*names, equation=equation, output="y")
    shapes = {n: [c if c in symbolic else sizes[c] for c in labels] for n, labels in zip(names, operands)}
    feeds = {n: array(*(sizes[c] for c in labels), seed=i, dtype=dtype) for i, (n, labels) in enumerate(zip(names, operands))}
    return e.model(shapes, {"y": None} if not symbolic else {"y": [None] * len(equation.split("->")[-1])}), feeds


@pytest.mark.parametrize(
    ("equation", "transposes"),
    [
        ("ij,jk->ik", 0), ("ij,jk", 0), ("ij , kj -> ik", 1), ("ji,jk->ik", 1), ("ij,jk->ki", 2), ("bhqd,bhkd->bhqk", 1),
        ("bhqk,bhkd->bhqd", 0),
        ("bqhd,bkhd->bhqk", 2), ("bhqk,bkhd->bqhd", 2), ("bsd,dk->bsk", 0), ("bsd,kd->bsk", 1), ("bij,bjk->bik", 0), ("Bij,Bkj->Bki", 1),
        ("bijm,mk->bijk", 0), ("bds,dk->bks", 2),
    ],
)  # fmt: skip
def test_products(equation, transposes) -> None:
    before, feeds = einsum(equation)
    expected = {"MatMul": 1, "Transpose": transposes} if transposes else {"MatMul": 1}
    assert_same(before, fused(NAME, before, expected), feeds)


def test_symbolic_sizes() -> None:
    before, feeds = einsum("bhqd,bhkd->bhqk", symbolic="bqk")
    assert_same(before, fused(NAME, before, {"Transpose": 1, "MatMul": 1}), feeds)


@pytest.mark.parametrize(("equation", "expected"), [("ijk->kij", {"Transpose": 1}), ("ij->ij", {"Identity": 1}), ("kji", {"Transpose": 1})])
def test_permutations(equation, expected) -> None:
    before, feeds = einsum(equation)
    assert_same(before, fused(NAME, before, expected), feeds, exact=True)


@pytest.mark.parametrize(
    "equation",
    ["ij->i", "ii->i", "ij,ij->ij", "ij,kl->ijkl", "ij,j->i", "bij,bjk->ik", "ijk,jkm->im", "bij,bj->bi", "ijm,jk->ik", "i,j->ij"],
)
def test_other_equations(equation) -> None:
    unmatched(NAME, einsum(equation, sizes=SIZES | {"l": 2})[0])


def test_ellipsis_and_three_operands() -> None:
    e = Expression()
    e.Einsum("x", "z", equation="...ij,...jk->...ik", output="y")
    unmatched(NAME, e.model({"x": (2, 3, 4), "z": (2, 4, 5)}, ["y"]))
    e = Expression()
    e.Einsum("x", "z", "z", equation="ij,jk,kl->il", output="y")
    unmatched(NAME, e.model({"x": (3, 4), "z": (4, 4)}, ["y"]))


def test_refusals() -> None:
    e = Expression()
    e.Einsum("x", "z", equation="ij,jk->ik", output="y")
    refused(NAME, e.model({"x": (3, "j"), "z": (4, 5)}, {"y": [3, 5]}), "not known to agree")
    refused(NAME, einsum("ij,jk->ik", dtype="int32")[0], "floating-point")

"""Views, permutations, casts, concatenations and slices in a row, on ATen graphs."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from tests.aten.support import refusals  # noqa: E402
from tests.passes.aten.test_cleanup import _x, check  # noqa: E402

RESHAPES, TRANSPOSES, CASTS = "merge-reshapes", "eliminate-transposes", "merge-casts"


@pytest.mark.parametrize(
    ("function", "left"),
    [
        (lambda x: x.view(6, 4).view(3, 8), "view"), (lambda x: x.view(6, 4).unsqueeze(1), "view"),
        (lambda x: x.flatten(1).unflatten(1, (4, 3)), "view"), (lambda x: x.view(4, 6).view(6, 4).view(-1), "view"),
        (lambda x: x.view(6, 4).view(2, 3, 4), ""), (lambda x: x.unsqueeze(0).squeeze(0), ""),
        (lambda x: x.unsqueeze(0).unsqueeze(0), "unsqueeze unsqueeze"),
    ],
)  # fmt: skip
def test_views_in_a_row(function, left):
    check(lambda self, x: function(x.neg()) * 2, RESHAPES, left=f"neg {left} mul")


def test_views_that_serve_others_stay():
    check(lambda self, x: (y := x.neg().view(6, 4)).view(24) + y.sum(), RESHAPES, left="neg view view sum add")


def test_view_over_sizes_that_are_not_known():
    dims = {0: torch.export.Dim("batch", min=2, max=64)}
    check(lambda self, x: x.neg().view(-1, 4).view(x.shape[0], 6, 2) * 2, f"{RESHAPES} prune-dead-nodes",
          _x(), dynamic=((dims,),), samples=[(_x(5, 3, 4),)], left="neg sym_size view mul")  # fmt: skip


def test_a_view_that_the_memory_does_not_allow_stays():
    check(lambda self, x: x.transpose(1, 2).reshape(2, 12).view(24) * 2, RESHAPES, left="transpose clone view mul")
    check(lambda self, x: x.mT.unsqueeze(1).flatten(0, 1).flatten() * 2, RESHAPES, left="transpose clone _unsafe_view mul")


@pytest.mark.parametrize(
    ("function", "left"),
    [
        (lambda x: x.transpose(0, 1).transpose(0, 1), ""), (lambda x: x.permute(2, 0, 1).permute(1, 2, 0), ""),
        (lambda x: x.permute(2, 0, 1).transpose(-1, -2), "transpose"), (lambda x: x.mT.transpose(0, 1), "permute"),
        (lambda x: x.movedim(0, 2).permute(0, 2, 1), "transpose"), (lambda x: x[0].t().t(), "select"),
        (lambda x: x.movedim((0, 1), (1, 0)).permute(1, 2, 0), "transpose"),
    ],
)  # fmt: skip
def test_permutations_in_a_row(function, left):
    check(lambda self, x: function(x.neg()) * 2, TRANSPOSES, left=f"neg {left} mul")


def test_a_permutation_that_ends_in_an_output_keeps_sharing_what_it_shared():
    candidate = check(lambda self, x: (x.mT.mT, x.neg().mT.mT), TRANSPOSES, left="transpose transpose neg")
    assert "not the program's to hand out" in refusals(candidate)[0]


@pytest.mark.parametrize(
    ("dtype", "first", "second", "left", "reason"),
    [
        (torch.float32, torch.float64, torch.float32, "", None),
        (torch.int8, torch.int32, torch.float32, "_to_copy", None),
        (torch.float32, torch.float16, torch.float32, "_to_copy _to_copy", "FLOAT16 in between does not hold every FLOAT exactly"),
        (torch.float32, torch.int64, torch.float32, "_to_copy _to_copy", "INT64 in between does not hold every FLOAT exactly"),
        (torch.float16, torch.float32, torch.int32, "_to_copy _to_copy", "casts to INT32 from FLOAT16 and from FLOAT may differ"),
    ],
)
def test_casts_in_a_row(dtype, first, second, left, reason):
    x = (_x() * 9).to(dtype)
    candidate = check(lambda self, x: x.neg().to(first).to(second) * 2, f"prune-dead-nodes {CASTS}", x, left=f"neg {left} mul")
    assert refusals(candidate) == ([reason] if reason else [])


@pytest.mark.parametrize(
    ("function", "left"),
    [
        (lambda x: torch.cat([torch.cat([x, x.neg()], 1), x], -2), "neg cat"),
        (lambda x: torch.cat([torch.cat([x, x.neg()], 0), torch.cat([x, x], 0)], 1), "neg cat cat cat"),
        (lambda x: torch.cat([y := torch.cat([x, x.neg()], 1), y.abs()], 1), "neg cat abs cat"),
        (lambda x: torch.cat([torch.cat([(x > 0), (x < 0)], 1), x], 1), "gt lt cat cat"),
    ],
)  # fmt: skip
def test_concatenations_in_a_row(function, left):
    check(lambda self, x: function(x) * 2, "merge-concats", left=f"{left} mul")


def test_a_concatenation_of_too_many_is_refused():
    from tests.aten.support import exported, rewritten
    from tests.passes.aten.test_cleanup import Fn

    program = exported(Fn(lambda self, x: torch.cat([torch.cat([x, x]), x])), _x())
    candidate = rewritten(program, "merge-concats", options={"merge-concats": {"max-inputs": 2}})
    assert refusals(candidate) == ["it would have more than 2 inputs"]


@pytest.mark.parametrize(
    ("function", "left"),
    [
        (lambda x: x[:, 1:][:, :2], "slice"), (lambda x: x[:, 1:8:2][:, 1:], "slice"), (lambda x: x[:, -6:][:, -2:], "slice"),
        (lambda x: x[:, 2:][:, 9:], "slice"), (lambda x: x[:, 1:][0:1], "slice slice"),
        (lambda x: (y := x[:, 1:])[:, 1:] + y[:, :-1], "slice slice slice add"),
    ],
)  # fmt: skip
def test_slices_in_a_row(function, left):
    check(lambda self, x: function(x.neg()) * 2, "eliminate-noop-selections merge-slices", _x(2, 9, 3), left=f"neg {left} mul")


def test_slices_of_a_size_that_is_not_known():
    length = torch.export.Dim("length", min=6, max=64)
    candidate = check(lambda self, x: x.neg()[:, -4:][:, -2:] + x[:, 1:5][:, 1:3], "merge-slices", _x(2, 9, 3), dynamic=(({1: length},),),
                      samples=[(_x(2, 6, 3),), (_x(2, 30, 3),)], left="neg slice slice slice add")  # fmt: skip
    assert refusals(candidate) == ["what both take of axis 1 hangs on its size, which is not known"]

"""Constants folded, equal computations and equal tensors merged, on ATen graphs."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402

from tests.aten.support import assert_same, exported, ops, refusals, result, rewritten  # noqa: E402
from tests.passes.aten.test_cleanup import Fn, _x, check  # noqa: E402

FOLD, FLOAT = "fold-constants", "fold-float-constants"


# --- fold-constants -------------------------------------------------------------------------------------------------


def test_factories_arithmetic_and_movement():
    def function(self, x):
        mask = torch.arange(4) >= torch.arange(3)[:, None]
        return x.masked_fill(mask, 0.0) + torch.full((4,), 2.0) * self.w.sqrt() + torch.tensor([1.0, 2, 3, 4])

    candidate = check(function, FOLD, left="masked_fill add add", w=torch.arange(4.0))
    assert candidate.model.graph.parameters["w_folded"] == ("w",)


def test_results_are_those_of_eager_to_the_bit_where_kernels_round():
    def function(self, x):
        return x @ torch.softmax(self.w.exp() @ self.w, -1)

    assert not check(function, FOLD, w=_x(4, 4)).applications
    check(function, FLOAT, w=_x(4, 4), left="matmul")


def test_normalized_weight_becomes_one():
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.utils.parametrizations.weight_norm(nn.Linear(4, 5))

        def forward(self, x):
            return self.layer(x)

    module = Net()
    candidate = rewritten(exported(module, _x()), FLOAT)
    assert ops(result(candidate)) == {"linear": 1}
    (made,) = (name for name, old in candidate.model.graph.parameters.items() if len(old) == 2)
    assert "weight" in made and made.endswith("_folded")
    assert_same(module, result(candidate), (_x(),), rtol=1e-6)


def test_what_would_grow_is_refused_and_what_it_is_made_of_is_folded():
    def function(self, x):
        return x + (self.w.sqrt() * 2).repeat(400, 1, 1)

    x = _x(1, 400, 4, 60)
    candidate = check(function, FOLD, x, left="repeat add", w=torch.rand(4, 60))
    assert "folded it would take 384,000 bytes in the place of 960" in refusals(candidate)[0]


def test_total_growth_is_capped():
    def function(self, x):
        return x + self.w + torch.arange(8000.0).neg() + torch.arange(8000.0).abs()

    candidate = check(function, FOLD, _x(2, 8000), left="add arange neg add arange abs add", w=torch.rand(8000))
    assert all("the model may grow by 320 in all" in r for r in refusals(candidate))


def test_narrow_weights_stay_narrow():
    def function(self, x):
        return x @ (self.w.float() * self.s)

    candidate = check(function, f"{FOLD} {FLOAT}", _x(2, 64), w=torch.randint(-9, 9, (64, 64), dtype=torch.int8), s=torch.rand(64))
    assert not candidate.applications and "its weights are kept in their narrow type" in refusals(candidate)


def test_random_numbers_and_changing_buffers_are_not_folded():
    def function(self, x):
        self.count.add_(1)
        return x + torch.rand(4) * 0 + self.count * 2

    module = Fn(function, count=torch.zeros(1))
    candidate = rewritten(exported(module, _x()), FOLD, FLOAT)
    assert ops(result(candidate))["rand"] == 1
    assert_same(module, result(candidate), (_x(),), (_x(),), rtol=0)


def test_a_value_that_is_returned_is_not_a_constant_that_a_caller_could_write_into():
    module = Fn(lambda self, x: (x + 1, self.w.sqrt(), self.w.neg().view(-1)), w=torch.rand(2, 3))
    candidate = rewritten(exported(module, _x()), FOLD)
    assert not candidate.applications and any("not the program's to hand out" in r for r in refusals(candidate))
    made = result(candidate).module()
    made(_x())[1].fill_(9)
    assert torch.equal(made(_x())[1], module.w.sqrt())


def test_views_of_weights_stay_views():
    candidate = check(lambda self, x: x @ self.w.t(), f"{FOLD} {FLOAT}", w=_x(5, 4))
    assert not candidate.applications and "w" in candidate.model.graph.parameters


def test_sizes_of_dynamic_dimensions_are_not_constant():
    batch = torch.export.Dim("batch", min=2, max=64)
    check(lambda self, x: x + torch.arange(x.shape[0])[:, None, None] + torch.arange(4), FOLD, _x(), dynamic=(({0: batch},),),
          samples=[(_x(7, 3, 4),)], left="sym_size arange unsqueeze unsqueeze add add")  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.int64, torch.bool, torch.complex64])
def test_other_types(dtype):
    w = (torch.arange(4) - 1).to(dtype)
    check(lambda self, x: torch.where(x > 0, self.w.flip(0).view(1, 4), self.w[0]), FOLD, w=w)
    candidate = check(lambda self, x: x.to(torch.int64) * (self.w != self.w.flip(0)), FOLD, w=w)
    assert candidate.applications


# --- common subexpressions ------------------------------------------------------------------------------------------

CSE = "eliminate-common-subexpressions"


def test_equal_operators_are_computed_once():
    def function(self, x):
        a, b = x.relu().view(2, 12), x.relu().view(2, 12)
        (p, q), (r, s) = a.split(6, 1), b.split(6, 1)
        return torch.topk(p + r, 2, -1)[0] + torch.topk(p + r, 2, -1)[1] + (q * s).sum()

    check(function, f"{CSE} prune-dead-nodes", left="relu view split getitem getitem add topk getitem getitem add mul sum add")


@pytest.mark.parametrize(
    "function",
    [
        lambda x: (x + 0.0) * (x + -0.0), lambda x: torch.rand(3) + torch.rand(3) + x, lambda x: (x * 1).relu() + (x * 1.0).neg(),
        lambda x: x.sum(1) + x.sum(2).sum(1, keepdim=True), lambda x: torch.nn.functional.dropout(x, 0.5, True) + 1,
    ],
)  # fmt: skip
def test_operators_that_are_not_equal(function):
    program = exported(Fn(lambda self, x: function(x)), _x(2, 3, 3))
    assert not rewritten(program, CSE).applications


def test_equal_outputs_stay_apart():
    candidate = check(lambda self, x: (x.relu(), x.relu(), x.relu() + 1, x.view(-1), x.view(-1)), CSE, left="relu relu add view")
    assert "both returned" in refusals(candidate)[0]
    made, x = result(candidate).module(), _x()
    a, b, *_ = made(x)
    a.fill_(5)
    assert torch.equal(b, x.relu())


def test_equal_random_functions_of_a_generator_are_drawn_anew():
    module = Fn(lambda self, x: (torch.rand_like(x), torch.rand_like(x)))
    program = result(rewritten(exported(module, _x()), CSE, "prune-dead-nodes"))
    a, b = program.module()(_x())
    assert not torch.equal(a, b)


# --- equal tensors --------------------------------------------------------------------------------------------------

MERGE = "merge-equal-initializers"


class Twins(nn.Module):
    """Two layers of equal weights, one that differs in its last element, and buffers beside them."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(40, 40), nn.Linear(40, 40), nn.Linear(40, 40)
        for other in (self.b, self.c):
            other.load_state_dict(self.a.state_dict())
        with torch.no_grad():
            self.c.weight[-1, -1] += 1e-6
        self.register_buffer("w", self.a.weight.detach().clone())

    def forward(self, x):
        return self.a(x) + self.b(x) * self.c(x) + x @ self.w.t()


def test_equal_tensors_become_one_and_the_map_says_so():
    module = Twins()
    candidate = rewritten(exported(module, _x(3, 40)), MERGE)
    parameters = candidate.model.graph.parameters
    assert parameters["a.weight"] == ("a.weight", "b.weight") and parameters["a.bias"] == ("a.bias", "b.bias", "c.bias")
    assert set(result(candidate).state_dict) == {"a.weight", "a.bias", "c.weight", "w"}
    assert_same(module, result(candidate), (_x(3, 40),), rtol=0)
    assert ops(result(rewritten(exported(module, _x(3, 40)), MERGE, CSE)))["linear"] == 2


def test_a_tensor_that_is_returned_or_changes_stays_its_own():
    def function(self, x):
        self.c.add_(1)
        return x + self.a + self.b + self.c, self.b

    ones = torch.ones(4)
    candidate = rewritten(exported(Fn(function, a=ones.clone(), b=ones.clone(), c=ones.clone()), _x()), MERGE)
    assert not candidate.applications and "not the program's to hand out" in refusals(candidate)[0]


def test_tensors_of_one_memory_are_merged_unread(monkeypatch):
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one = nn.Parameter(torch.rand(40, 40))
            self.two = nn.Parameter(self.one.data)

        def forward(self, x):
            return x @ self.one + x @ self.two

    module = Tied()
    program = exported(module, _x(3, 40))
    monkeypatch.setattr("graphopt.aten.context.to_array", lambda tensor: pytest.fail("read"))
    candidate = rewritten(program, MERGE)
    assert candidate.model.graph.parameters == {"one": ("one", "two")}
    assert_same(module, result(candidate), (_x(3, 40),), rtol=0)


def test_a_second_run_finds_nothing():
    passes = FOLD, FLOAT, MERGE, CSE, "prune-dead-nodes"
    first = result(rewritten(exported(Twins(), _x(3, 40)), *passes))
    assert not rewritten(first, *passes).applications

"""Clean-up of ATen graphs: what nothing uses, what does nothing, and what has to stay all the same."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402

from tests.aten.support import assert_same, exported, ops, refusals, result, rewritten  # noqa: E402

F = nn.functional


class Fn(nn.Module):
    """A function as a module, with tensors to go with it."""

    def __init__(self, function, **buffers) -> None:
        super().__init__()
        self.function = function
        for name, tensor in buffers.items():
            self.register_buffer(name, tensor)

    def forward(self, *inputs):
        return self.function(self, *inputs)


def _x(*shape: int, seed: int = 0):
    return torch.randn(*(shape or (2, 3, 4)), generator=torch.Generator().manual_seed(seed))


def check(function, passes, *inputs, left=None, dynamic=None, rtol=0.0, samples=(), **buffers):
    """Run passes over a function; its result is eager's; `left` is what is left of its operators."""
    module = Fn(function, **buffers)
    inputs = inputs or (_x(),)
    candidate = rewritten(exported(module, *inputs, dynamic=dynamic), *passes.split())
    program = result(candidate)
    assert_same(module, program, inputs, *samples, rtol=rtol, atol=0.0 if rtol == 0 else None)
    if left is not None:
        assert sorted(ops(program).elements()) == sorted(left.split()), (str(program.graph), refusals(candidate))
    return candidate


# --- prune-dead-nodes -----------------------------------------------------------------------------------------------


def test_unused_operators_and_tensors_go():
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.unused = nn.BatchNorm1d(3), nn.Linear(3, 3)

        def forward(self, x):
            self.unused(x.transpose(1, 2)).relu()
            return self.norm(x)

    module = Net().eval()
    program = result(rewritten(exported(module, _x()), "prune-dead-nodes"))
    assert sorted(ops(program)) == ["_native_batch_norm_legit_no_training", "getitem"]
    assert set(program.state_dict) == {"norm.weight", "norm.bias", "norm.running_mean", "norm.running_var"}
    assert_same(module, program, (_x(),))


def test_a_buffer_that_changes_stays_though_nothing_reads_it():
    def count(self, x):
        self.calls.add_(1)
        return x.relu()

    module = Fn(count, calls=torch.zeros(1))
    program = result(rewritten(exported(module, _x()), "prune-dead-nodes"))
    assert ops(program) == {"add": 1, "relu": 1}
    assert_same(module, program, (_x(),), (_x(),))
    made = program.module()
    made(_x()), made(_x())
    assert float(made.calls) == 2


def test_assertions_stay():
    def function(self, x):
        torch._check(x.max().item() < 100)
        return x + 1

    program = result(rewritten(exported(Fn(function), _x()), "prune-dead-nodes"))
    assert ops(program) == {"max": 1, "item": 1, "lt": 1, "_assert_scalar": 1, "add": 1}
    with pytest.raises(RuntimeError, match="Runtime assertion failed"):
        program.module()(_x() + 1000)


def test_random_numbers_stay_though_nothing_reads_them_any_more():
    """They move the generator, so that the next ones would be others."""
    def function(self, x):
        return torch.where(torch.ones(4, dtype=torch.bool), x, torch.rand(4)) + torch.rand(4)

    passes = "fold-constants", "eliminate-noop-arithmetic", "prune-dead-nodes"
    program = result(rewritten(exported(Fn(function), _x()), *passes))
    assert ops(program) == {"rand": 2, "add": 1}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        expected = function(None, _x())
        torch.manual_seed(0)
        assert torch.equal(program.module()(_x()), expected)


def test_a_check_of_types_goes_where_the_graph_proves_it_and_stays_on_an_input():
    check(lambda self, x: (x.relu().to(torch.float64), x.to(torch.float64)), "prune-dead-nodes",
          left="relu _to_copy _assert_tensor_metadata _to_copy")  # fmt: skip


def test_the_other_name_of_a_tied_weight_is_in_the_map():
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.head = nn.Embedding(5, 3), nn.Linear(3, 5, bias=False)
            self.head.weight = self.embed.weight

        def forward(self, x):
            return self.head(self.embed(x))

    module, x = Tied(), torch.tensor([[1, 2]])
    candidate = rewritten(exported(module, x), "prune-dead-nodes")
    program = candidate.model.graph
    (name,) = program.parameters
    assert sorted(program.parameters[name]) == ["embed.weight", "head.weight"]
    assert_same(module, result(candidate), (x,))


# --- copies ---------------------------------------------------------------------------------------------------------


def test_copies_inside_go():
    check(lambda self, x: F.dropout(x.relu(), training=False).detach().clone() * 2, "eliminate-identity", left="relu mul")


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (lambda self, x: x.clone(), "not the program's to hand out"),
        (lambda self, x: x.clone().view(-1), "shares the memory of"),
        (lambda self, x: x.transpose(0, 1).clone(memory_format=torch.preserve_format)[0], "shares the memory of"),
        (lambda self, x: (self.w.clone(), x + self.w), "not the program's to hand out"),
        (lambda self, x: [(y := x.relu()), y.clone()], "both returned"),
        (lambda self, x: [(y := x.relu())[0], y.clone().t()], "both returned"),
    ],
)
def test_copies_that_keep_an_output_apart_stay(function, reason):
    candidate = check(function, "eliminate-identity", _x(2, 3), w=_x(2, 3))
    assert not candidate.applications and any(reason in r for r in refusals(candidate))


def test_who_writes_into_an_output_changes_nothing_else():
    def function(self, x):
        y = x.relu()
        return y.clone().clone(), y.clone(), self.w.clone(), x.clone().view(-1)

    module = Fn(function, w=_x(2, 3))
    candidate = rewritten(exported(module, _x(2, 3)), "eliminate-identity", "eliminate-common-subexpressions", "prune-dead-nodes", rounds=3)
    made, x = result(candidate).module(), _x(2, 3)
    first = made(x)
    kept = [t.clone() for t in first]
    first[0].fill_(7), first[2].fill_(7), first[3].fill_(7)
    assert torch.equal(first[1], kept[1]) and torch.equal(x, _x(2, 3))
    assert all(torch.equal(a, b) for a, b in zip(made(x), kept))


def test_a_copy_that_lays_out_memory_anew_stays():
    check(lambda self, x: x.transpose(1, 2).contiguous().view(2, 12) + 1, "eliminate-identity eliminate-noop-shape-ops merge-reshapes",
          left="transpose clone view add")  # fmt: skip


def test_dropout_in_training_mode_is_refused():
    class Drops(nn.Module):
        def forward(self, x):
            return F.dropout(x, 0.5, training=True) + 1

    program = torch.export.export(Drops(), (_x(),))
    assert refusals(rewritten(program, "eliminate-dropout")) == ["it is in training mode"]


def test_dropout_that_is_kept_as_an_operator_goes():
    program = torch.export.export(Fn(lambda self, x: F.dropout(x.relu(), 0.5, training=False) + 1).eval(), (_x(),))
    assert ops(result(rewritten(program, "eliminate-dropout"))) == {"relu": 1, "add": 1}


# --- no-ops ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x * 1, lambda x: x / 1, lambda x: x**1, lambda x: x - 0, lambda x: x + -0.0, lambda x: -0.0 + x,
        lambda x: x * torch.ones(4), lambda x: torch.maximum(x, torch.full((4,), -torch.inf)),
        lambda x: torch.where(torch.ones(3, 4, dtype=torch.bool), x, 2.0), lambda x: x.masked_fill(torch.zeros(4, dtype=torch.bool), 1.0),
    ],
)  # fmt: skip
def test_neutral_numbers(function):
    special = torch.tensor([[-0.0, 0.0, torch.inf, torch.nan], [1e-45, -1.5, 3.0, -torch.inf]]).expand(3, 2, 4).transpose(0, 1).contiguous()
    module = Fn(lambda self, x: function(x.abs()).neg())
    program = result(rewritten(exported(module, special), "eliminate-identity", "fold-constants", "eliminate-noop-arithmetic"))
    assert ops(program) == {"abs": 1, "neg": 1}
    bits = [m(special).view(torch.int32) for m in (module, program.module())]
    assert torch.equal(*bits)


@pytest.mark.parametrize(
    ("function", "dtype"),
    [
        (lambda x: x + 0.0, torch.float32), (lambda x: x - (-0.0), torch.float32), (lambda x: x * 1.0, torch.int64),
        (lambda x: x / 1, torch.int64), (lambda x: x + 0, torch.bool), (lambda x: x * torch.ones(5, 1, 1), torch.float32),
        (lambda x: x * torch.ones((), dtype=torch.float64), torch.int32), (lambda x: 2 / x, torch.float32),
    ],
)  # fmt: skip
def test_numbers_that_are_not_neutral(function, dtype):
    x = _x(1, 3, 4).to(dtype)
    module = Fn(lambda self, x: function(x.flip(0)).sum(1))
    candidate = rewritten(exported(module, x), "eliminate-noop-arithmetic")
    assert not candidate.applications
    assert_same(module, result(candidate), (x,))


def test_a_positive_zero_goes_where_rounding_is_allowed():
    candidate = check(lambda self, x: (x.neg() + 0).relu(), "eliminate-noop-arithmetic eliminate-zero-additions", left="neg relu")
    assert refusals(candidate) == ["adding 0.0 turns -0.0 into 0.0"]


@pytest.mark.parametrize("function", [lambda x: (x + 1).float(), lambda x: (x + 1).to(torch.float32, copy=True)])
def test_casts_to_the_same_type(function):
    check(lambda self, x: function(x) * 2, "eliminate-noop-cast eliminate-identity prune-dead-nodes", left="add mul")


def test_a_cast_that_lays_out_memory_anew_stays():
    check(lambda self, x: x.neg().to(torch.float32, memory_format=torch.channels_last, copy=True) * 2, "eliminate-noop-cast",
          _x(2, 3, 4, 5), left="neg _assert_tensor_metadata _to_copy mul")  # fmt: skip


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x.view(2, 3, 4), lambda x: x.reshape(x.shape), lambda x: x.expand(2, 3, 4), lambda x: x.expand(-1, -1, -1),
        lambda x: x.flatten(2), lambda x: x.squeeze(), lambda x: x.squeeze(1), lambda x: x.repeat(1, 1, 1), lambda x: x.permute(0, 1, 2),
        lambda x: x.transpose(1, 1), lambda x: x.transpose(-1, 2), lambda x: x[:], lambda x: x[:, 0:9], lambda x: torch.cat([x]),
        lambda x: F.pad(x, (0, 0)), lambda x: x.split(4, -1)[0], lambda x: x.roll(0, 1), lambda x: x.narrow(1, 0, 3),
    ],
)  # fmt: skip
def test_shapes_and_selections_that_change_nothing(function):
    check(lambda self, x: function(x.neg()) * 2, "eliminate-noop-shape-ops eliminate-noop-selections eliminate-identity prune-dead-nodes",
          left="neg mul")  # fmt: skip


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x.view(3, 2, 4), lambda x: x.flip(0), lambda x: x.transpose(0, 1), lambda x: x[:, 1:], lambda x: F.pad(x, (1, -1)),
        lambda x: x.roll(1, 1), lambda x: x.expand(5, 2, 3, 4), lambda x: torch.cat([x, x]), lambda x: x[:, ::2],
    ],
)  # fmt: skip
def test_shapes_and_selections_that_change_something(function):
    candidate = check(lambda self, x: function(x.neg()) * 2, "eliminate-noop-shape-ops eliminate-noop-selections")
    assert not candidate.applications


def test_symbolic_sizes():
    batch = torch.export.Dim("batch", min=2, max=64)
    check(lambda self, x: x.neg().view(x.shape[0], -1, 4)[: x.shape[0]].expand(x.shape[0], 3, 4) * 2,
          "eliminate-noop-shape-ops eliminate-noop-selections prune-dead-nodes", _x(), dynamic=(({0: batch},),),
          samples=[(_x(7, 3, 4),)], left="neg mul")  # fmt: skip


@pytest.mark.parametrize(
    ("function", "left"),
    [
        (lambda x: x.relu().relu(), "relu"), (lambda x: x.neg().neg().floor(), "floor"), (lambda x: x.neg().abs(), "abs"),
        (lambda x: torch.maximum(y := x.exp(), y), "exp"), (lambda x: torch.where(x > 0, y := x.exp(), y), "exp"),
        (lambda x: (x > 0).logical_not().logical_not(), "gt"), (lambda x: x.logical_not().logical_not(), "logical_not logical_not"),
        (lambda x: x.relu().abs(), "relu abs"), (lambda x: torch.where((x > 0).logical_not(), x, 1.0), "gt where"),
        (lambda x: torch.where(~(x > 0), x, 1.0) + torch.where(~(x > 0), 2.0, x), "gt gt where where add"),
    ],
)  # fmt: skip
def test_repeated_and_undone(function, left):
    module = Fn(lambda self, x: function(x))
    candidate = rewritten(exported(module, _x()), "eliminate-idempotent", "eliminate-not", "prune-dead-nodes")
    found = [n for n in ops(result(candidate)).elements() if not n.startswith("scalar_tensor")]
    assert sorted(found) == sorted(left.split())
    assert_same(module, result(candidate), (_x(),))


def test_a_second_run_finds_nothing():
    passes = ("eliminate-identity", "eliminate-noop-shape-ops", "eliminate-noop-arithmetic", "prune-dead-nodes")
    module = Fn(lambda self, x: (x.relu().clone().view(2, 3, 4) * 1).clone())
    first = result(rewritten(exported(module, _x()), *passes))
    assert ops(first) == {"relu": 1}
    assert not rewritten(first, *passes).applications

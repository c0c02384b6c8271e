"""Weights of torch programs stored as int8."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402

from tests.aten.support import exported, ops, refusals, result, rewritten  # noqa: E402
from tests.passes.aten.test_cleanup import Fn, _x  # noqa: E402

QUANTIZE = "quantize-weights"
ALL = {QUANTIZE: {"min-elements": 1}}


class Product(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(16, 24))

    def forward(self, x):
        return x @ self.weight


MODULES = {
    "linear": (lambda: nn.Linear(16, 24), (4, 16), 0, "weight"),
    "conv": (lambda: nn.Conv2d(8, 24, 3, groups=2), (1, 8, 7, 7), 0, "weight"),
    "transposed": (lambda: nn.ConvTranspose2d(8, 6, 3), (1, 8, 7, 7), 1, "weight"),
    "transposed, groups": (lambda: nn.ConvTranspose1d(8, 6, 3, groups=2), (1, 8, 7), 0, "weight"),
    "product": (Product, (4, 16), 1, "weight"),
}


@pytest.mark.parametrize("name", MODULES)
def test_the_answers_are_those_of_rounded_weights(name):
    build, shape, axis, key = MODULES[name]
    torch.manual_seed(0)
    module, x = build(), _x(*shape)
    candidate = rewritten(exported(module, x), QUANTIZE, options=ALL)
    program = result(candidate)
    stored, scale = program.state_dict[f"{key}_int8"], program.state_dict[f"{key}_scale"]
    assert stored.dtype is torch.int8 and key not in program.state_dict
    assert candidate.model.graph.parameters[f"{key}_int8"] == (key,)
    weight = module.state_dict()[key].double().numpy()
    others = tuple(i for i in range(weight.ndim) if i != axis)
    wanted = np.abs(weight).max(others, keepdims=True) / 127  # written down here, not taken from the pass
    assert np.allclose(np.broadcast_to(scale.numpy(), wanted.shape), wanted, rtol=1e-6)
    rounded = np.clip(np.rint(weight / wanted), -127, 127)
    assert np.abs(rounded - stored.numpy()).max() <= 1 and (rounded != stored.numpy()).mean() < 0.01
    module.load_state_dict({**module.state_dict(), key: stored.float() * scale})
    torch.testing.assert_close(program.module()(x), module(x), rtol=1e-6, atol=1e-6)


def test_of_a_table_only_the_rows_that_are_read_are_made_numbers():
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(50, 8, padding_idx=0)

        def forward(self, x, y):
            return self.table(x) + self.table(y)

    module, inputs = Net(), (torch.tensor([[1, 0, 49]]), torch.tensor([[3, 3, 7]]))
    program = result(rewritten(exported(module, *inputs), QUANTIZE, options=ALL))
    assert [tuple(n.meta["val"].shape) for n in program.graph.nodes if "mul" in str(n.target)] == [(1, 3, 8), (1, 3, 8)]
    found, expected = program.module()(*inputs), module(*inputs)
    assert (found - expected).abs().max() < 0.02 * expected.abs().max() and not torch.equal(found, expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_types(dtype):
    module, x = nn.Linear(16, 24).to(dtype), _x(20, 16).to(dtype)  # on fewer rows there is a kernel
    program = result(rewritten(exported(module, x), QUANTIZE, options=ALL))
    found = program.module()(x)
    assert found.dtype is dtype and ops(program) == {"mul": 1, "linear": 1}
    assert (found - module(x)).abs().max() < 0.05 * module(x).abs().max()


def test_folding_and_clean_up_do_not_undo_it():
    module, x = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64)), _x(2, 64)
    passes = QUANTIZE, "fold-constants", "fold-float-constants", "fold-affine", "eliminate-common-subexpressions", "prune-dead-nodes"
    candidate = rewritten(exported(module, x), *passes, rounds=2)
    assert ops(result(candidate)) == {"mul": 2, "linear": 2, "relu": 1}
    assert "2 weights, 32768 bytes to 8704" in candidate.runs[0].notes[0]


def test_one_scale_a_weight():
    options = {QUANTIZE: {"min-elements": 1, "granularity": "tensor"}}
    program = result(rewritten(exported(nn.Linear(16, 24), _x(4, 16)), QUANTIZE, options=options))
    assert program.state_dict["weight_scale"].shape == (1,)


def _small():
    return rewritten(exported(nn.Linear(16, 24), _x(4, 16)), QUANTIZE)


def test_small_weights_stay():
    assert not _small().applications and not refusals(_small())


def _tied():
    function = nn.functional
    return Fn(lambda self, x: function.linear(function.embedding(x, self.w), self.w), w=_x(40, 8)), torch.tensor([[1, 2]])


def _infinite():
    return Fn(lambda self, x: x @ self.w, w=torch.full((16, 24), torch.inf)), _x(4, 16)


@pytest.mark.parametrize(
    ("made", "reason", "options"),
    [
        (_tied(), "is also taken by", {}),
        ((Fn(lambda self, x: (x @ self.w, self.w), w=_x(16, 24)), _x(4, 16)), "is also an output", {}),
        ((Fn(lambda self, x: x @ self.w + self.w.sum(), w=_x(16, 24)), _x(4, 16)), "is also taken by 'sum_1'", {}),
        (_infinite(), "would not be finite", {}),
        ((nn.Linear(16, 24), _x(4, 16)), "the signal-to-noise ratio would be", {"min-snr": 90.0}),
        ((nn.Linear(1, 24), _x(4, 1)), "the scales would take more than the weight saves", {}),
    ],
)
def test_refusals(made, reason, options):
    module, x = made
    candidate = rewritten(exported(module, x), QUANTIZE, options={QUANTIZE: {"min-elements": 1, **options}})
    assert not candidate.applications and any(reason in r for r in refusals(candidate)), refusals(candidate)


def test_a_weight_that_changes_is_none():
    def function(self, x):
        self.w.mul_(0.5)
        return x @ self.w

    assert not rewritten(exported(Fn(function, w=_x(16, 24)), _x(4, 16)), QUANTIZE, options=ALL).applications

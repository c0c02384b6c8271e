"""Activations, softmax and instance normalization spelled out in torch programs, and what only looks like them."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402

from tests.aten.support import assert_same, exported, ops, refusals, result, rewritten  # noqa: E402
from tests.passes.aten.test_cleanup import Fn, _x  # noqa: E402

F = nn.functional
HARD, GATE, SILU, SOFT, LOG = "fuse-hardswish", "fuse-hardsigmoid", "fuse-silu", "fuse-softmax", "fuse-log-softmax"
INSTANCE, LAYER = "fuse-instance-normalization", "fuse-layer-normalization"


def clip(x):
    return torch.clamp(x + 3, 0, 6)


def shifted(x, dim=-1):
    return x - x.amax(dim, keepdim=True)


def softmax(x, dim=-1):
    e = torch.exp(shifted(x, dim))
    return e / e.sum(dim, keepdim=True)


def by_max(x):
    e = (x - x.max(dim=1, keepdim=True).values).exp()
    return e / torch.sum(e, 1, keepdim=True)


def log_softmax(x, dim=-1):
    d = shifted(x, dim)
    return d - d.exp().sum(dim, keepdim=True).log()


SPELLED = {
    "x * clip / 6": (HARD, lambda x: x * clip(x) / 6, "hardswish"),
    "x * (clip / 6)": (HARD, lambda x: x * (clip(x) / 6), "hardswish"),
    "(x / 6) * clip": (HARD, lambda x: (x / 6) * clip(x), "hardswish"),
    "clip * x * 0.16666667": (HARD, lambda x: clip(x) * x * 0.16666667, "hardswish"),
    "relu6": (HARD, lambda x: x * F.relu6(3 + x) / 6, "hardswish"),
    "hardtanh": (HARD, lambda x: x * (F.hardtanh(x + 3.0, 0.0, 6.0) * (1 / 6)), "hardswish"),
    "x * hardsigmoid": (HARD, lambda x: F.hardsigmoid(x) * x, "hardswish"),
    "gate": (GATE, lambda x: clip(x) / 6, "hardsigmoid"),
    "gate of relu6": (GATE, lambda x: F.relu6(x + 3) * 0.16666667, "hardsigmoid"),
    "silu": (SILU, lambda x: x * torch.sigmoid(x), "silu"),
    "silu, turned": (SILU, lambda x: torch.sigmoid(x) * x, "silu"),
    "softmax": (SOFT, softmax, "softmax"),
    "softmax over channels": (SOFT, lambda x: softmax(x, 1), "softmax"),
    "softmax by max": (SOFT, by_max, "softmax"),
    "log softmax": (LOG, log_softmax, "log_softmax"),
    "log of softmax": (LOG, lambda x: torch.log(torch.softmax(x, 2)), "log_softmax"),
}


@pytest.mark.parametrize(
    ("name", "dtype"), [*((name, torch.float32) for name in SPELLED), ("x * clip / 6", torch.float64), ("softmax", torch.float64)]
)
def test_what_is_spelled_out_becomes_one_operator(name, dtype):
    which, function, operator = SPELLED[name]
    module, batch = Fn(lambda self, x: function(x)), torch.export.Dim("batch")
    program = exported(module, _x(3, 4, 5).to(dtype), dynamic=(({0: batch},),))
    candidate = rewritten(program, which, "prune-dead-nodes")
    made = result(candidate)
    assert ops(made) == {operator: 1}, ops(made)
    wide = torch.linspace(-8, 8, 7 * 4 * 5, dtype=dtype).reshape(7, 4, 5)
    assert_same(module, made, (_x(3, 4, 5).to(dtype),), (wide,), rtol=1e-6)


def test_softmax_of_large_numbers_stays_finite():
    made = result(rewritten(exported(Fn(lambda self, x: softmax(x)), _x(3, 5)), SOFT))
    assert torch.isfinite(made.module()(_x(3, 5) * 1000)).all()


UNLIKE = {
    "another shift": (HARD, lambda x: x * torch.clamp(x + 2, 0, 6) / 6),
    "another bound": (HARD, lambda x: x * torch.clamp(x + 3, 0, 5) / 6),
    "no lower bound": (HARD, lambda x: x * torch.clamp(x + 3, max=6) / 6),
    "another divisor": (HARD, lambda x: x * clip(x) / 7),
    "the inverse": (HARD, lambda x: x * (6 / clip(x + 10))),
    "times another": (HARD, lambda x: x.abs() * clip(x) / 6),
    "hardsigmoid times another": (HARD, lambda x: F.hardsigmoid(x) * x.abs()),
    "gate with another divisor": (GATE, lambda x: clip(x) / 3),
    "scaled sigmoid": (SILU, lambda x: x * torch.sigmoid(1.5 * x)),
    "sigmoid over x": (SILU, lambda x: torch.sigmoid(x) / x.abs().add(1)),
    "sum over another axis": (SOFT, lambda x: (e := torch.exp(shifted(x))) / e.sum(0, keepdim=True)),
    "sum of another": (SOFT, lambda x: torch.exp(shifted(x)) / torch.exp(x * 0.5).sum(-1, keepdim=True)),
    "no dimension kept": (SOFT, lambda x: (e := torch.exp(shifted(x, 0))) / e.sum(0)),
    "log of another sum": (LOG, lambda x: (d := shifted(x)) - d.exp().sum(0, keepdim=True).log()),
    "log of sigmoid": (LOG, lambda x: torch.log(torch.sigmoid(x))),
}


@pytest.mark.parametrize("name", UNLIKE)
def test_what_only_looks_alike_is_left(name):
    which, function = UNLIKE[name]
    module = Fn(lambda self, x: function(x))
    candidate = rewritten(exported(module, _x(5, 5)), which)
    assert not candidate.applications
    assert_same(module, result(candidate), (_x(5, 5),))


REFUSED = {
    "clip is returned": (HARD, lambda x: ((c := clip(x)) * x / 6, c)),
    "shift is used": (HARD, lambda x: (s := x + 3) * 0 + x * torch.clamp(s, 0, 6) / 6),
    "sigmoid is returned": (SILU, lambda x: ((s := torch.sigmoid(x)) * x, s)),
    "sigmoid is used": (SILU, lambda x: (s := torch.sigmoid(x)) * x + s),
    "exp is used": (SOFT, lambda x: (e := torch.exp(shifted(x))) / e.sum(-1, keepdim=True) + e),
    "no maximum": (SOFT, lambda x: (e := torch.exp(x)) / e.sum(-1, keepdim=True)),
    "the probability is used": (LOG, lambda x: torch.log(p := torch.softmax(x, -1)) * p),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_something_else_needs_is_left(name):
    which, function = REFUSED[name]
    module = Fn(lambda self, x: function(x))
    candidate = rewritten(exported(module, _x(5, 5)), which)
    made = result(candidate)
    assert not candidate.applications
    assert_same(module, made, (_x(5, 5),))
    if name in ("shift is used", "exp is used", "the probability is used", "no maximum"):
        assert any("other users" in r or "overflows" in r for r in refusals(candidate)), refusals(candidate)


class Instance(nn.Module):
    """Spelled out over the axes after the second."""

    def __init__(self, scale=True, bias=True, rank=4, variance=False, channels=6):
        super().__init__()
        shape = (1, channels, *[1] * (rank - 2))
        self.scale = nn.Parameter(torch.randn(shape)) if scale else None
        self.bias = nn.Parameter(torch.randn(shape[1:])) if bias else None
        self.axes, self.variance = tuple(range(2, rank)), variance

    def forward(self, x):
        d = x - x.mean(self.axes, keepdim=True)
        v = x.var(self.axes, correction=0, keepdim=True) if self.variance else (d * d).mean(self.axes, keepdim=True)
        y = d / torch.sqrt(v + 1e-5)
        y = y if self.scale is None else y * self.scale
        return y if self.bias is None else y + self.bias


@pytest.mark.parametrize("options", [{}, {"bias": False}, {"scale": False}, {"rank": 5}, {"variance": True}])
@pytest.mark.parametrize("passes", [(INSTANCE,), (LAYER, INSTANCE)])
def test_instance_normalization(options, passes):
    torch.manual_seed(0)
    module, rank = Instance(**options), options.get("rank", 4)
    shapes = [(2, 6, 5, 4, 3)[:rank], (4, 6, 5, 7, 3)[:rank]]
    program = exported(module, _x(*shapes[0]), dynamic=({0: torch.export.Dim("batch"), 3: torch.export.Dim("width")},))
    made = result(rewritten(program, *passes, "prune-dead-nodes"))
    assert ops(made)["instance_norm"] == 1 and not {"mean", "sqrt", "layer_norm"} & set(ops(made))
    assert_same(module, made, *((_x(*shape) * 3 + 1,) for shape in shapes), rtol=1e-5)


def test_without_a_scale_for_channels_it_is_a_layer_normalization():
    module = Instance(scale=False, bias=False)
    made = result(rewritten(exported(module, _x(2, 6, 5, 4)), LAYER, INSTANCE, "prune-dead-nodes"))
    assert ops(made) == {"layer_norm": 1}
    assert_same(module, made, (_x(2, 6, 5, 4),))


@pytest.mark.parametrize(
    "function",
    [
        lambda self, x: (d := x - x.mean((1, 2, 3), keepdim=True)) * torch.rsqrt((d * d).mean((1, 2, 3), keepdim=True) + 1e-5) * self.w,
        lambda self, x: (x - x.mean((2, 3), keepdim=True)) * torch.rsqrt(x.var((2, 3), keepdim=True) + 1e-5) * self.w,
        lambda self, x: (d := x - x.mean((2, 3), keepdim=True)) * torch.rsqrt((d * d).mean((2, 3), keepdim=True) + 1e-5) * x,
    ],
)
def test_other_normalizations_are_left(function):
    module = Fn(function, w=_x(1, 6, 1, 1))
    candidate = rewritten(exported(module, _x(2, 6, 5, 4)), INSTANCE)
    assert not candidate.applications


def test_on_the_way_to_onnx_they_are_left_to_the_passes_there():
    from tests.support import REGISTRY

    assert not any(REGISTRY.get(name).before_export for name in (HARD, GATE, SILU, SOFT, LOG, INSTANCE))

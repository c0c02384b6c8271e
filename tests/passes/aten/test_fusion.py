"""Attention, layer normalization and GELU that are spelled out, on ATen graphs."""

from __future__ import annotations

import math

import pytest

torch = pytest.importorskip("torch")

from tests.aten.support import assert_same, exported, ops, refusals, result, rewritten  # noqa: E402
from tests.passes.aten.test_cleanup import Fn, _x, check  # noqa: E402

ATTENTION, SDPA = "fuse-scaled-dot-product-attention", "scaled_dot_product_attention"
LOWEST = torch.finfo(torch.float32).min


def _qkv(length: int = 5, keys: int | None = None, heads: int = 2, size: int = 8, dtype=torch.float32):
    return tuple(_x(2, heads, n, size, seed=i).to(dtype) for i, n in enumerate((length, keys or length, keys or length)))


def spelled(scores, mask=None, *, size=8):
    """An attention as a module: the scores of a query and a key, and what is done to them before the softmax."""
    def function(self, q, k, v, *more):
        s = scores(q, k)
        return torch.softmax(s if mask is None else mask(self, s, *more), -1) @ v

    return function


def plain(q, k):
    return q @ k.transpose(-1, -2) / math.sqrt(8)


@pytest.mark.parametrize(
    "scores",
    [
        plain, lambda q, k: (q @ k.mT) * 0.3, lambda q, k: (q * 0.3) @ k.mT, lambda q, k: (q / 2) @ (k * 0.5).mT, lambda q, k: q @ k.mT,
        lambda q, k: q @ (k.mT * torch.tensor(0.25)),
    ],
)  # fmt: skip
def test_every_place_of_the_scale(scores):
    candidate = check(spelled(scores), f"{ATTENTION} eliminate-transposes prune-dead-nodes", *_qkv(), rtol=1e-5)
    assert ops(result(candidate))[SDPA] == 1 and "softmax" not in ops(result(candidate))


@pytest.mark.parametrize(
    ("mask", "buffers"),
    [
        (lambda self, s: s.masked_fill(~self.m[: s.shape[-2], : s.shape[-1]], -math.inf), {"m": torch.ones(9, 9).tril().bool()}),
        (lambda self, s: s.masked_fill(~self.m[:5, :5], LOWEST), {"m": torch.ones(9, 9).tril().bool()}),
        (lambda self, s: s + self.m[:, :, :5, :5], {"m": torch.full((1, 1, 9, 9), LOWEST).triu(1)}),
        (lambda self, s: s + self.m[:5, :5], {"m": torch.full((9, 9), -math.inf).triu(1)}),
    ],
)
def test_causal_masks(mask, buffers):
    candidate = check(spelled(plain, mask), f"{ATTENTION} prune-dead-nodes", *_qkv(), rtol=1e-5, **buffers)
    (node,) = [n for n in result(candidate).graph.nodes if SDPA in str(n.target)]
    assert node.args[3:6] == (None, 0.0, True)


def test_a_causal_mask_over_more_keys_than_queries_stays_a_mask():
    mask = torch.ones(9, 9).tril().bool()
    candidate = check(spelled(plain, lambda self, s: s.masked_fill(~self.m[:5, :7], -math.inf)), ATTENTION, *_qkv(5, 7), rtol=1e-5, m=mask)
    assert ops(result(candidate))[SDPA] == 1


def test_a_mask_of_flags_keeps_the_mean_of_rows_that_it_hides():
    flags = torch.tensor([[1, 1, 1, 0, 0], [0, 0, 0, 0, 0]])
    function = spelled(plain, lambda self, s, flags: s + (1.0 - flags[:, None, None, :].float()) * LOWEST)
    candidate = check(function, f"{ATTENTION} prune-dead-nodes", *_qkv(), flags, rtol=1e-5, samples=[(*_qkv(), torch.ones_like(flags))])
    assert ops(result(candidate))[SDPA] == 1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_types_of_attention(dtype):
    rtol = {torch.float16: 4e-3, torch.bfloat16: 3e-2, torch.float64: 1e-12}[dtype]
    candidate = check(spelled(plain), ATTENTION, *_qkv(dtype=dtype), rtol=rtol)
    assert ops(result(candidate))[SDPA] == 1


def test_layout_behind_attention_and_dynamic_sizes():
    def function(self, x):
        q, k, v = (t.view(x.shape[0], x.shape[1], 2, 8).transpose(1, 2) for t in (x, x * 2, x + 1))
        return (torch.softmax(plain(q, k), -1) @ v).transpose(1, 2).reshape(x.shape[0], x.shape[1], 16) + 1

    dims = {0: torch.export.Dim("batch", min=2, max=9), 1: torch.export.Dim("length", min=2, max=99)}
    candidate = check(function, f"{ATTENTION} eliminate-transposes eliminate-identity", _x(3, 5, 16), dynamic=((dims,),), rtol=1e-5,
                      samples=[(_x(2, 9, 16),)])  # fmt: skip
    assert ops(result(candidate))[SDPA] == 1


def _returned(self, q, k, v):
    p = torch.softmax(plain(q, k), -1)
    return p @ v, p


@pytest.mark.parametrize(
    ("function", "inputs", "reason"),
    [
        (spelled(plain, lambda self, s, m: s + m), (*_qkv(), torch.zeros(5, 5)), "hide a row throughout by -inf"),
        (spelled(plain, lambda self, s, m: s.masked_fill(m, -math.inf)), (*_qkv(), torch.eye(5).bool()), "no row is hidden throughout"),
        (spelled(plain, lambda self, s: s.masked_fill(torch.eye(5).bool(), -5.0)), _qkv(), "does not remove them"),
        (spelled(plain, lambda self, s: (s + torch.zeros(5, 5)) * 2), _qkv(), "scaled after it is masked"),
        (spelled(plain, lambda self, s: s + torch.zeros(5, 5) + torch.ones(5, 5)), _qkv(), "not those of a product"),
        (spelled(plain, lambda self, s: torch.tanh(s)), _qkv(), "not those of a product"),
        (spelled(lambda q, k: (q @ k.mT) * -1.0), _qkv(), "not a positive number"),
        (spelled(plain), tuple(t[:, 0] for t in _qkv()), "batch and heads are made one"),
        (spelled(plain), (_qkv()[0], *_qkv(heads=1)[1:]), "batch and heads of query, key and value are not known to be equal"),
        (_returned, _qkv(), "is also an output"),
        (lambda self, q, k, v: torch.softmax(plain(q, k), -2) @ v, _qkv(), "does not run along the keys"),
        (lambda self, q, k, v: torch.softmax(plain(q, k), -1, dtype=torch.float64).float() @ v, _qkv(), None),
    ],
)  # fmt: skip
def test_attention_that_is_refused(function, inputs, reason):
    candidate = check(function, ATTENTION, *inputs)
    assert SDPA not in ops(result(candidate))
    assert reason is None or any(reason in r for r in refusals(candidate)), refusals(candidate)


def test_a_row_that_is_hidden_by_infinity_stays_nan():
    m = torch.zeros(5, 5)
    m[2] = -math.inf
    module = Fn(spelled(plain, lambda self, s: s + self.m), m=m)
    program = result(rewritten(exported(module, *_qkv()), ATTENTION))
    assert program.module()(*_qkv())[:, :, 2].isnan().all()


# --- layer normalization --------------------------------------------------------------------------------------------

NORM = "fuse-layer-normalization"


def _centred(x, axes=(-1,)):
    return x - x.mean(axes, keepdim=True)


@pytest.mark.parametrize(
    ("function", "axes"),
    [
        (lambda x, d: d / torch.sqrt((d * d).mean(-1, keepdim=True) + 1e-5), (-1,)),
        (lambda x, d: d * torch.rsqrt(d.pow(2).mean(-1, keepdim=True) + 1e-5), (-1,)),
        (lambda x, d: d / torch.sqrt(x.var(-1, keepdim=True, unbiased=False) + 1e-5), (-1,)),
        (lambda x, d: d * torch.rsqrt(d.pow(2).mean((-2, -1), keepdim=True) + 1e-5), (-2, -1)),
    ],
)
@pytest.mark.parametrize("affine", [True, False])
def test_layer_normalization(function, axes, affine):
    def whole(self, x):
        y = function(x, _centred(x, axes))
        return y * self.w + self.b if affine else y

    w, b = (_x(*(_x().shape[a] for a in axes), seed=s) for s in (1, 2))
    candidate = check(whole, NORM, _x() * 3 + 1, rtol=1e-5, w=w, b=b)
    assert ops(result(candidate)) == {"layer_norm": 1}


@pytest.mark.parametrize(
    "function",
    [
        lambda self, x: (d := _centred(x)) * torch.rsqrt(d.pow(2).mean(-2, keepdim=True) + 1e-5),
        lambda self, x: _centred(x) * torch.rsqrt(x.var(-1, keepdim=True) + 1e-5),
        lambda self, x: (d := _centred(x, (1,))) * torch.rsqrt(d.pow(2).mean(1, keepdim=True) + 1e-5),
        lambda self, x: x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5),
        lambda self, x: ((d := _centred(x)) * torch.rsqrt(d.pow(2).mean(-1, keepdim=True) + 1e-5), d),
    ],
)
def test_what_is_no_layer_normalization(function):
    candidate = check(function, NORM)
    assert not candidate.applications


# --- gelu -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x * 0.5 * (1 + torch.erf(x / math.sqrt(2))), lambda x: 0.5 * (x * (torch.erf(x * math.sqrt(0.5)) + 1)),
        lambda x: x * ((1 + torch.erf(x / math.sqrt(2))) / 2), lambda x: x * (1 + torch.erf(x / torch.tensor(2.0).sqrt())) * 0.5,
        lambda x: 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * torch.pow(x, 3)))),
        lambda x: 0.5 * x * (1 + torch.tanh((x + x**3 * 0.044715) * math.sqrt(2 / math.pi))),
    ],
)  # fmt: skip
def test_gelu(function):
    module = Fn(lambda self, x: function(x.neg()))
    x = _x(4, 50) * 3
    program = result(rewritten(exported(module, x), "eliminate-identity", "fold-constants", "fuse-gelu", "prune-dead-nodes"))
    assert ops(program) == {"neg": 1, "gelu": 1}
    assert_same(module, program, (x,), (x.abs() * 5,), rtol=1e-5)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x * 0.5 * (1 + torch.erf(x / 1.4142)), lambda x: x * 0.5 * (1.001 + torch.erf(x / math.sqrt(2))),
        lambda x: (x + 1) * 0.5 * (1 + torch.erf(x / math.sqrt(2))), lambda x: x * (1 + torch.erf(x / math.sqrt(2))),
        lambda x: 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.0447 * torch.pow(x, 3)))),
        lambda x: (e := torch.erf(x / math.sqrt(2))) + x * 0.5 * (1 + e),
    ],
)  # fmt: skip
def test_what_is_no_gelu(function):
    candidate = check(lambda self, x: function(x.neg()), "fuse-gelu")
    assert not candidate.applications

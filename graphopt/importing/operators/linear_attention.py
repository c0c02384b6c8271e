"""Operators of attention-free language models: linear attention with its state, causal convolution with its state, SwiGLU."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from graphopt.importing.operators.attention import heads_apart, heads_together
from graphopt.importing.table import operator

_RULES = ("linear", "gated", "delta", "gated_delta")


def _refuse(attributes: dict[str, Any]) -> str | None:
    rule = attributes.get("update_rule", "gated_delta")
    return None if rule in _RULES else f"its update_rule '{rule}' is not known"


@operator("LinearAttention", since=27, several=True, refuse=_refuse)
def linear_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    state: Tensor | None = None,
    decay: Tensor | None = None,
    beta: Tensor | None = None,
    *,
    chunk_size: int = 64,
    kv_num_heads: int,
    q_num_heads: int,
    scale: float = 0.0,
    update_rule: str = "gated_delta",
) -> tuple[Tensor, Tensor]:
    """Token by token, in float32: a state [batch, heads, key, value] forgets, and takes in the outer product of a key and
    a value, or of what the value adds to what the state would have answered."""
    kind = q.dtype
    precise = torch.float64 if kind == torch.float64 else torch.float32
    q, k, v = (heads_apart(x, n).to(precise) for x, n in ((q, q_num_heads), (k, kv_num_heads), (v, kv_num_heads)))
    factor = scale or 1 / math.sqrt(q.shape[3])
    now = state.to(precise) if state is not None else k.new_zeros((*k.shape[:2], k.shape[3], v.shape[3]))
    gated, delta = "gated" in update_rule, "delta" in update_rule
    kept = torch.exp(heads_apart(decay.to(precise), kv_num_heads)) if gated and decay is not None else None
    rate = beta.to(precise).transpose(1, 2) if delta and beta is not None else None
    rows = []
    for t in range(q.shape[2]):
        key, value = k[:, :, t, :, None], v[:, :, t, None, :]
        if kept is not None:
            now = now * kept[:, :, t, :, None]
        if rate is not None:
            value = (value - key.transpose(2, 3) @ now) * rate[:, :, t, None, None]
        now = now + key * value
        answer = now.repeat_interleave(q_num_heads // kv_num_heads, 1) if q_num_heads != kv_num_heads else now
        rows.append(q[:, :, t, None, :] @ answer * factor)
    return heads_together(torch.cat(rows, 2)).to(kind), now.to(kind if state is None else state.dtype)


@operator("CausalConvWithState", since=27, several=True)
def causal_conv(
    x: Tensor, w: Tensor, b: Tensor | None = None, state: Tensor | None = None, *, activation: str = "none"
) -> tuple[Tensor, Tensor]:
    """Each channel by itself, over what is past alone; the state is the end of all that was seen."""
    past = w.shape[2] - 1
    seen = functional.pad(x, [past, 0]) if state is None else torch.cat([state.to(x.dtype), x], 2)
    y = functional.conv1d(seen, w, b, groups=w.shape[0])
    if activation in ("silu", "swish"):
        y = functional.silu(y)
    return y, seen.narrow(2, seen.shape[2] - past, past)


@operator("SwiGLU", since=28)
def swiglu(a: Tensor, b: Tensor, *, alpha: float = 1.0) -> Tensor:
    return a * torch.sigmoid(alpha * a) * b


@operator("RMSNormalization", since=23)
def rms_normalization(x: Tensor, scale: Tensor, *, axis: int = -1, epsilon: float = 1e-5, stash_type: int = 1) -> Tensor:
    """Normalized in float32, scaled in the scale's own type."""
    along = list(range(axis % x.dim(), x.dim()))
    shape = [x.shape[a] for a in along]
    if x.dtype == scale.dtype == torch.float32 and list(scale.shape) == shape:
        return functional.rms_norm(x, shape, scale, epsilon)
    wide = x.float() if stash_type == 1 else x
    found = wide * torch.rsqrt((wide * wide).mean(along, keepdim=True) + epsilon)
    return (found.to(x.dtype) * scale).to(scale.dtype)

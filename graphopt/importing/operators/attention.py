"""Attention: torch's scaled_dot_product_attention where nothing between its steps is asked for, spelled out elsewhere."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, fx
from torch.nn import functional

from graphopt.importing.table import operator
from graphopt.importing.values import NotImportable, as_tensor, dtype_of


def heads_apart(x: Tensor, heads: int) -> Tensor:
    """[batch, steps, heads * size] as [batch, heads, steps, size]."""
    return x.reshape(x.shape[0], x.shape[1], heads, x.shape[2] // heads).transpose(1, 2)


def heads_together(x: Tensor) -> Tensor:
    """[batch, heads, steps, size] as [batch, steps, heads * size]."""
    return x.transpose(1, 2).reshape(x.shape[0], x.shape[2], x.shape[1] * x.shape[3])


def _visible(
    queries: Any, keys: Any, offset: Any, causal: bool, left: int, right: int, filled: Tensor | None, device: torch.device
) -> Tensor | None:
    """Which keys each query may see: none after its own place, none outside its window, none beyond what is filled."""
    seen = None
    columns = torch.arange(keys, device=device)
    if causal or left >= 0 or right >= 0:
        rows = torch.arange(queries, device=device)[:, None]
        place = rows + (offset.reshape(-1, 1, 1, 1) if isinstance(offset, Tensor) else offset)
        bounds = [columns <= place] if causal else []
        bounds += [columns >= place - left] if left >= 0 else []
        bounds += [columns <= place + right] if right >= 0 else []
        for bound in bounds:
            seen = bound if seen is None else seen & bound
    if filled is not None:
        bound = columns < filled.reshape(-1, 1, 1, 1)
        seen = bound if seen is None else seen & bound
    return seen


def _bias(mask: Tensor | None, seen: Tensor | None, keys: Any, like: Tensor) -> Tensor | None:
    """The mask and what may be seen as one: a bool, or what is added to the scores; of rank 2 or 4."""
    if mask is not None:
        missing = keys - mask.shape[-1]
        if not (isinstance(missing, int) and missing == 0):
            mask = functional.pad(mask, [0, missing], value=False if mask.dtype == torch.bool else -math.inf)
        if mask.dim() in (1, 3):
            mask = mask[None]
        if mask.dtype != torch.bool:
            mask = mask.to(like.dtype)
    if mask is None or seen is None:
        return seen if mask is None else mask
    if mask.dtype == torch.bool:
        return mask & seen
    return torch.where(seen, mask, torch.full((), -math.inf, dtype=mask.dtype, device=mask.device))


def _refuse(attributes: dict[str, Any]) -> str | None:
    if attributes.get("softmax_precision"):
        try:
            dtype_of(attributes["softmax_precision"])
        except NotImportable as reason:
            return str(reason)
    return None


@operator("Attention", since=23, several=True, refuse=_refuse)
def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None = None,
    past_key: Tensor | None = None,
    past_value: Tensor | None = None,
    filled: Tensor | None = None,
    *,
    is_causal: int = 0,
    kv_num_heads: int | None = None,
    left_window_size: int = -1,
    q_num_heads: int | None = None,
    qk_matmul_output_mode: int = 0,
    right_window_size: int = -1,
    scale: float | None = None,
    softcap: float = 0.0,
    softmax_precision: int | None = None,
    outputs: int,
) -> tuple[Tensor | None, ...]:
    flat = q.dim() == 3
    if flat:
        q, k, v = heads_apart(q, q_num_heads), heads_apart(k, kv_num_heads), heads_apart(v, kv_num_heads)
    offset: Any = 0
    if past_key is not None and past_value is not None:
        offset = past_key.shape[2]
        k, v = torch.cat([past_key, k], 2), torch.cat([past_value, v], 2)
    elif filled is not None:
        offset = filled.to(torch.int64) - q.shape[2]
    present = k, v
    factor = scale if scale is not None else 1 / math.sqrt(q.shape[3])
    top_left = bool(is_causal) and isinstance(offset, int) and offset == 0 and left_window_size < 0 and right_window_size < 0
    alone = top_left and mask is None and filled is None
    plain = outputs < 4 and not softcap and (softmax_precision is None or dtype_of(softmax_precision) in (q.dtype, torch.float32))
    seen = None
    if not (plain and alone):
        seen = _visible(q.shape[2], k.shape[2], offset, bool(is_causal), left_window_size, right_window_size, filled, q.device)
    bias = _bias(mask, seen, k.shape[2], q)
    shown = None
    if plain:
        shared = q.shape[1] != k.shape[1]
        y = functional.scaled_dot_product_attention(q, k, v, bias, 0.0, alone, scale=factor, enable_gqa=shared)
    else:
        precise = None if softmax_precision is None else dtype_of(softmax_precision)
        y, shown = _spelled_out(q, k, v, bias, factor, softcap, precise, qk_matmul_output_mode)
    return (heads_together(y) if flat else y, *present, shown)[:outputs]


def _spelled_out(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float, softcap: float, precise: torch.dtype | None, show: int
) -> tuple[Tensor, Tensor]:
    """The result, and what it was at one stage: scores (0), capped (1), with the bias (2), probabilities (3)."""
    group = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(group, 1) if group > 1 else k, v.repeat_interleave(group, 1) if group > 1 else v
    root = math.sqrt(scale)
    scores = (q * root) @ (k * root).transpose(2, 3)
    stages = [scores]
    if softcap:
        scores = softcap * torch.tanh(scores / softcap)
    stages.append(scores)
    hidden = None
    if bias is not None:
        if bias.dtype == torch.bool:
            bias = torch.zeros_like(bias, dtype=q.dtype).masked_fill(~bias, -math.inf)
        scores = scores + bias
        hidden = (bias == -math.inf).all(-1, keepdim=True)
    stages.append(scores)
    chances = torch.softmax(scores if precise is None else scores.to(precise), -1)
    if hidden is not None:  # a query that sees no key at all answers 0
        chances = torch.where(hidden, torch.zeros((), dtype=chances.dtype, device=chances.device), chances)
    chances = chances.to(q.dtype)
    stages.append(chances)
    return chances @ v, stages[show]


@operator("FlexAttention", domain="ai.onnx.preview", refuse=_refuse)
def flex_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    prob_mod: fx.GraphModule | None = None,
    scale: float | None = None,
    score_mod: fx.GraphModule | None = None,
    softmax_precision: int | None = None,
    captures: tuple[Any, ...],
) -> Tensor:
    """Attention with the user's own functions of the scores and of the probabilities."""
    precise = dtype_of(softmax_precision) if softmax_precision else torch.float64 if q.dtype == torch.float64 else torch.float32
    group = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(group, 1) if group > 1 else k, v.repeat_interleave(group, 1) if group > 1 else v
    factor = scale if scale is not None else 1 / math.sqrt(q.shape[3])
    scores = (q @ k.transpose(2, 3)).to(precise) * factor
    if score_mod is not None:
        scores = as_tensor(score_mod(scores, *captures)[0])
    chances = torch.softmax(scores, -1)
    if prob_mod is not None:
        chances = as_tensor(prob_mod(chances, *captures)[0])
    return chances.to(v.dtype) @ v


@operator("RotaryEmbedding", since=23)
def rotary_embedding(
    x: Tensor,
    cos: Tensor,
    sin: Tensor,
    positions: Tensor | None = None,
    *,
    interleaved: int = 0,
    num_heads: int = 0,
    rotary_embedding_dim: int = 0,
) -> Tensor:
    """Pairs of features turned by the angle of their place; [batch, heads, steps, size] or [batch, steps, heads * size]."""
    flat = x.dim() == 3
    y = heads_apart(x, num_heads) if flat else x
    if positions is not None:
        cos, sin = cos[positions.to(torch.int64)], sin[positions.to(torch.int64)]
    y = rotated(y, cos.unsqueeze(1), sin.unsqueeze(1), bool(interleaved), rotary_embedding_dim or y.shape[-1])
    return heads_together(y) if flat else y


def rotated(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool, size: Any) -> Tensor:
    """The first ``size`` features turned, pairs being neighbours or one from each half."""
    turning, rest = x[..., :size], x[..., size:]
    cos, sin = cos[..., : size // 2], sin[..., : size // 2]
    if interleaved:
        a, b = turning[..., 0::2], turning[..., 1::2]
    else:
        a, b = turning.chunk(2, -1)
    real, imaginary = cos * a - sin * b, sin * a + cos * b
    turned = torch.stack([real, imaginary], -1).flatten(-2) if interleaved else torch.cat([real, imaginary], -1)
    return torch.cat([turned, rest], -1)

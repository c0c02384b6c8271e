"""ONNX Runtime's own operators of attention (com.microsoft)."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from graphopt.importing.operators.attention import heads_apart, heads_together, rotated
from graphopt.importing.operators.contrib import DOMAIN
from graphopt.importing.table import operator
from graphopt.importing.values import NotImportable


def _padding(mask: Tensor | None, keys: Any, filler: float, like: Tensor) -> Tensor | None:
    """What is added to the scores of keys that are padding: a mask of lengths [batch], or of keys [batch, keys], or of both."""
    if mask is None:
        return None
    if mask.dim() == 1:
        if isinstance(mask.shape[0], int) and isinstance(like.shape[0], int) and mask.shape[0] != like.shape[0]:
            raise NotImportable("a mask of more than the lengths of the sequences (mask_index) is not supported")
        seen = torch.arange(keys, device=mask.device)[None, :] < mask[:, None]
    elif mask.dim() in (2, 3):
        seen = mask != 0
    else:
        raise NotImportable(f"a mask of rank {mask.dim()} (mask_index) is not supported")
    seen = seen[:, None, None, :] if seen.dim() == 2 else seen[:, None]
    return torch.zeros(seen.shape, dtype=like.dtype, device=like.device).masked_fill(~seen, filler)


def _attend(
    q: Tensor, k: Tensor, v: Tensor, causal: bool, bias: Tensor | None, mask: Tensor | None, scale: float, filler: float, window: int = -1
) -> Tensor:
    """Attention of heads [batch, heads, steps, size], causal from the end: the last query sees all keys."""
    padding = _padding(mask, k.shape[2], filler, q)
    if padding is not None:
        bias = padding if bias is None else bias + padding
    past = k.shape[2] - q.shape[2]
    alone = causal and bias is None and window < 0 and isinstance(past, int) and past == 0
    if causal and not alone:
        rows = torch.arange(q.shape[2], device=q.device)[:, None] + past
        columns = torch.arange(k.shape[2], device=q.device)
        seen = columns <= rows if window < 0 else (columns <= rows) & (columns > rows - window)
        bias = seen if bias is None else torch.where(seen, bias, torch.full((), -math.inf, dtype=bias.dtype, device=bias.device))
    shared = q.shape[1] != k.shape[1]
    return functional.scaled_dot_product_attention(q, k, v, bias, 0.0, alone, scale=scale or None, enable_gqa=shared)


@operator("MultiHeadAttention", domain=DOMAIN, several=True)
def multi_head_attention(
    q: Tensor,
    k: Tensor | None = None,
    v: Tensor | None = None,
    bias: Tensor | None = None,
    mask: Tensor | None = None,
    attention_bias: Tensor | None = None,
    past_key: Tensor | None = None,
    past_value: Tensor | None = None,
    past_length: Tensor | None = None,
    indirection: Tensor | None = None,
    *,
    mask_filter_value: float = -10000.0,
    num_heads: int,
    scale: float = 0.0,
    unidirectional: int = 0,
    outputs: int,
) -> tuple[Tensor, ...]:
    """Query [batch, steps, hidden]; key and value alike, or by heads."""
    if k is None or v is None or q.dim() != 3 or k.dim() == 5:
        raise NotImportable("MultiHeadAttention with query, key and value in one tensor is not supported")
    if past_length is not None or indirection is not None or outputs > 3:
        raise NotImportable("MultiHeadAttention with a cache that it writes into, or that gives its scores, is not supported")
    if bias is not None:
        widths = [q.shape[2], q.shape[2], bias.shape[0] - 2 * q.shape[2]]
        parts = torch.split(bias, widths)
        q = q + parts[0]
        k, v = (x + part if x.dim() == 3 else x for x, part in zip((k, v), parts[1:], strict=True))
    query = heads_apart(q, num_heads)
    key, value = (heads_apart(x, num_heads) if x.dim() == 3 else x for x in (k, v))
    if past_key is not None and past_value is not None:
        key, value = torch.cat([past_key, key], 2), torch.cat([past_value, value], 2)
    y = _attend(query, key, value, bool(unidirectional), attention_bias, mask, scale, mask_filter_value)
    return heads_together(y), key, value


@operator("Attention", domain=DOMAIN, several=True)
def attention(
    x: Tensor,
    weights: Tensor,
    bias: Tensor | None = None,
    mask: Tensor | None = None,
    past: Tensor | None = None,
    attention_bias: Tensor | None = None,
    *,
    mask_filter_value: float = -10000.0,
    num_heads: int,
    qkv_hidden_sizes: list[int] | None = None,
    scale: float = 0.0,
    unidirectional: int = 0,
    outputs: int,
) -> tuple[Tensor, ...]:
    """Query, key and value are one product of the input; the present keys and values come as one tensor."""
    packed = x @ weights if bias is None else x @ weights + bias
    widths = qkv_hidden_sizes or [packed.shape[2] // 3] * 3
    q, k, v = (heads_apart(part, num_heads) for part in torch.split(packed, widths, 2))
    if past is not None:
        k, v = torch.cat([past[0], k], 2), torch.cat([past[1], v], 2)
    y = heads_together(_attend(q, k, v, bool(unidirectional), attention_bias, mask, scale, mask_filter_value))
    return (y, torch.stack([k, v])) if outputs > 1 else (y,)


def _refuse_group(attributes: dict[str, Any]) -> str | None:
    plain = {"causal", "do_rotary", "kv_num_heads", "local_window_size", "num_heads", "rotary_interleaved", "scale"}
    odd = [n for n, v in attributes.items() if n not in plain and v not in (0, 0.0, "NONE", -1)]
    return f"its attribute '{odd[0]}' is not supported" if odd else None


@operator("GroupQueryAttention", domain=DOMAIN, several=True, refuse=_refuse_group)
def group_query_attention(
    q: Tensor,
    k: Tensor | None,
    v: Tensor | None,
    past_key: Tensor | None,
    past_value: Tensor | None,
    last: Tensor,
    total: Tensor,
    cos: Tensor | None = None,
    sin: Tensor | None = None,
    positions: Tensor | None = None,
    attention_bias: Tensor | None = None,
    *,
    causal: int = 1,
    do_rotary: int = 0,
    kv_num_heads: int,
    local_window_size: int = -1,
    num_heads: int,
    rotary_interleaved: int = 0,
    scale: float = 0.0,
    smooth_softmax: int = 0,
    softcap: float = 0.0,
) -> tuple[Tensor, ...]:
    """``last`` is the place of the last key of each sequence, what is behind it is padding."""
    if past_key is not None and not (isinstance(past_key.shape[2], int) and past_key.shape[2] == 0):
        raise NotImportable("GroupQueryAttention with earlier keys and values is not supported")
    if k is None or v is None:
        size = q.shape[2] // (num_heads + 2 * kv_num_heads)
        q, k, v = torch.split(q, [num_heads * size, kv_num_heads * size, kv_num_heads * size], 2)
    query, key, value = heads_apart(q, num_heads), heads_apart(k, kv_num_heads), heads_apart(v, kv_num_heads)
    if do_rotary:
        at = torch.arange(query.shape[2], device=q.device)[None] if positions is None else positions.to(torch.int64)
        angles = cos[at].unsqueeze(1), sin[at].unsqueeze(1)
        query, key = (rotated(x, *angles, bool(rotary_interleaved), 2 * cos.shape[1]) for x in (query, key))
    y = _attend(query, key, value, bool(causal), attention_bias, last + 1, scale, -math.inf, local_window_size)
    return heads_together(y), key, value


def _refuse_packed(attributes: dict[str, Any]) -> str | None:
    return "sequences packed into one batch are not supported" if attributes.get("is_packed_batching") else None


@operator("RotaryEmbedding", domain=DOMAIN, refuse=_refuse_packed)
def rotary_embedding(
    x: Tensor,
    positions: Tensor,
    cos: Tensor,
    sin: Tensor,
    *,
    interleaved: int = 0,
    is_packed_batching: int = 0,
    num_heads: int = 0,
    rotary_embedding_dim: int = 0,
    scale: float = 1.0,
) -> Tensor:
    """Positions are one for each token, or the one of the first token of all sequences."""
    flat = x.dim() == 3
    y = heads_apart(x, num_heads or x.shape[2] // (2 * cos.shape[1])) if flat else x
    at = positions.to(torch.int64)
    if at.dim() == 1:
        at = at[:, None] + torch.arange(y.shape[2], device=x.device)[None]
    size = rotary_embedding_dim or y.shape[-1]
    y = rotated(y, cos[at].unsqueeze(1), sin[at].unsqueeze(1), bool(interleaved), size)
    return heads_together(y) if flat else y

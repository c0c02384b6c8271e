"""A small decoder in the manner of Llama. Touvron et al., "LLaMA: open and efficient foundation language models", 2023.

RMSNorm (Zhang and Sennrich, 2019), rotary positions (Su et al., 2021), grouped-query attention (Ainslie et al.,
2023) and SwiGLU (Shazeer, 2020).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class RMSNorm(nn.Module):
    """Division by the root mean square, then a scale."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width) + 0.1 * torch.randn(width))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))


def _rotate(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    low, high = x.chunk(2, dim=-1)
    return x * cosine + torch.cat([-high, low], dim=-1) * sine


class Attention(nn.Module):
    """Causal attention whose `groups` key and value heads are each shared by several query heads."""

    def __init__(self, width: int, heads: int, groups: int) -> None:
        super().__init__()
        self.heads, self.groups, self.size = heads, groups, width // heads
        self.query = nn.Linear(width, width, bias=False)
        self.key = nn.Linear(width, groups * self.size, bias=False)
        self.value = nn.Linear(width, groups * self.size, bias=False)
        self.out = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor, cosine: Tensor, sine: Tensor, mask: Tensor) -> Tensor:
        batch, length, width = x.shape
        query = self.query(x).view(batch, length, self.heads, self.size).transpose(1, 2)
        key = self.key(x).view(batch, length, self.groups, self.size).transpose(1, 2)
        value = self.value(x).view(batch, length, self.groups, self.size).transpose(1, 2)
        query, key = _rotate(query, cosine, sine), _rotate(key, cosine, sine)
        shared = self.heads // self.groups
        key, value = self._repeat(key, shared), self._repeat(value, shared)
        scores = query @ key.transpose(-1, -2) / math.sqrt(self.size) + mask
        mixed = (scores.softmax(-1) @ value).transpose(1, 2).reshape(batch, length, width)
        return self.out(mixed)

    def _repeat(self, x: Tensor, times: int) -> Tensor:
        batch, groups, length, size = x.shape
        x = x[:, :, None].expand(batch, groups, times, length, size)
        return x.reshape(batch, groups * times, length, size)


class Block(nn.Module):
    """Attention, then SwiGLU, each behind an RMSNorm and with a skip connection."""

    def __init__(self, width: int, heads: int, groups: int, hidden: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = RMSNorm(width), RMSNorm(width)
        self.attention = Attention(width, heads, groups)
        self.gate = nn.Linear(width, hidden, bias=False)
        self.up = nn.Linear(width, hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor, cosine: Tensor, sine: Tensor, mask: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x), cosine, sine, mask)
        y = self.norm2(x)
        return x + self.down(F.silu(self.gate(y)) * self.up(y))


class Llama(nn.Module):
    """int64 ids [batch, seq] to logits [batch, seq, vocabulary]; up to 512 tokens."""

    def __init__(self, depth: int, width: int, heads: int, groups: int, hidden: int, vocabulary: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, width)
        self.blocks = nn.ModuleList(Block(width, heads, groups, hidden) for _ in range(depth))
        self.norm = RMSNorm(width)
        self.head = nn.Linear(width, vocabulary, bias=False)
        size = width // heads
        rates = 10000.0 ** (-torch.arange(0, size, 2, dtype=torch.float32) / size)
        angles = torch.outer(torch.arange(512, dtype=torch.float32), rates).repeat(1, 2)
        self.register_buffer("cosine", angles.cos(), persistent=False)
        self.register_buffer("sine", angles.sin(), persistent=False)
        causal = torch.full((512, 512), torch.finfo(torch.float32).min).triu(1)
        self.register_buffer("causal", causal, persistent=False)

    def forward(self, input_ids: Tensor) -> Tensor:
        length = input_ids.shape[1]
        x = self.tokens(input_ids)
        cosine, sine, mask = self.cosine[:length], self.sine[:length], self.causal[:length, :length]
        for block in self.blocks:
            x = block(x, cosine, sine, mask)
        return self.head(self.norm(x))


def llama_like(depth: int = 4) -> Llama:
    """Eight query heads over two key-value heads, width 256."""
    return Llama(depth, 256, 8, 2, 688, 4096)

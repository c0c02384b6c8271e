"""BERT in plain torch. Devlin et al., "BERT: pre-training of deep bidirectional transformers", 2018.

Parameters carry the names of the published checkpoints, so that trained weights load unchanged.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class BertConfig:
    """Sizes of a BERT encoder; the defaults are BERT-base."""

    vocabulary: int = 30522
    width: int = 768
    depth: int = 12
    heads: int = 12
    hidden: int = 3072
    positions: int = 512
    segments: int = 2
    pooler: bool = True


class Embeddings(nn.Module):
    """Word, position and segment embeddings, summed and normalised."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(config.vocabulary, config.width)
        self.position_embeddings = nn.Embedding(config.positions, config.width)
        self.token_type_embeddings = nn.Embedding(config.segments, config.width)
        self.LayerNorm = nn.LayerNorm(config.width, eps=1e-12)
        self.register_buffer("positions", torch.arange(config.positions)[None], persistent=False)

    def forward(self, ids: Tensor, segments: Tensor) -> Tensor:
        words = self.word_embeddings(ids) + self.token_type_embeddings(segments)
        return self.LayerNorm(words + self.position_embeddings(self.positions[:, : ids.shape[1]]))


class SelfAttention(nn.Module):
    """Multi-head attention with an additive mask, written out as MatMul, Softmax, MatMul."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.size = config.width // config.heads
        self.query = nn.Linear(config.width, config.width)
        self.key = nn.Linear(config.width, config.width)
        self.value = nn.Linear(config.width, config.width)

    def _split(self, x: Tensor) -> Tensor:
        return x.view(x.shape[0], x.shape[1], self.heads, self.size).transpose(1, 2)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        query, key, value = self._split(self.query(x)), self._split(self.key(x)), self._split(self.value(x))
        scores = query @ key.transpose(-1, -2) / math.sqrt(self.size) + mask
        mixed = (scores.softmax(-1) @ value).transpose(1, 2).contiguous()
        return mixed.view(x.shape[0], x.shape[1], self.heads * self.size)


class Residual(nn.Module):
    """A projection, the skip connection, and LayerNorm after it."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.dense = nn.Linear(inputs, outputs)
        self.LayerNorm = nn.LayerNorm(outputs, eps=1e-12)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        return self.LayerNorm(self.dense(x) + skip)


class Layer(nn.Module):
    """One encoder layer: attention, then a feed-forward net with GELU."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.attention = nn.ModuleDict({"self": SelfAttention(config), "output": Residual(config.width, config.width)})
        self.intermediate = nn.ModuleDict({"dense": nn.Linear(config.width, config.hidden)})
        self.output = Residual(config.hidden, config.width)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        x = self.attention["output"](self.attention["self"](x, mask), x)
        return self.output(nn.functional.gelu(self.intermediate["dense"](x)), x)


class Bert(nn.Module):
    """The encoder: int64 ids, mask and segments [batch, seq] to float32 states [batch, seq, width].

    With `config.pooler` a second output, [batch, width], is the first token through a tanh layer.
    """

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.embeddings = Embeddings(config)
        self.encoder = nn.ModuleDict({"layer": nn.ModuleList(Layer(config) for _ in range(config.depth))})
        if config.pooler:
            self.pooler = nn.ModuleDict({"dense": nn.Linear(config.width, config.width)})
        self.pools = config.pooler

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        # A large finite number, not -inf: a row that is masked throughout must not become NaN.
        mask = (1.0 - attention_mask[:, None, None, :].to(torch.float32)) * torch.finfo(torch.float32).min
        x = self.embeddings(input_ids, token_type_ids)
        for layer in self.encoder["layer"]:
            x = layer(x, mask)
        if not self.pools:
            return x
        return x, torch.tanh(self.pooler["dense"](x[:, 0]))


def bert_base(depth: int = 12, width: int = 768, heads: int = 12, hidden: int = 3072) -> Bert:
    """BERT-base uncased, with its pooler."""
    return Bert(BertConfig(depth=depth, width=width, heads=heads, hidden=hidden))

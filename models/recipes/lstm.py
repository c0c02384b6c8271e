"""A tagger of two bidirectional LSTM layers. Hochreiter and Schmidhuber, "Long short-term memory", 1997."""

from __future__ import annotations

from torch import Tensor, nn


class Tagger(nn.Module):
    """int64 ids [batch, seq] to logits [batch, seq, tags]: embedding, LSTM layers, LayerNorm, a linear head."""

    def __init__(self, vocabulary: int, width: int, depth: int, tags: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, width)
        self.layers = nn.LSTM(width, width, depth, batch_first=True, bidirectional=True)
        self.norm = nn.LayerNorm(2 * width)
        self.head = nn.Linear(2 * width, tags)

    def forward(self, input_ids: Tensor) -> Tensor:
        states, _ = self.layers(self.tokens(input_ids))
        return self.head(self.norm(states))


def lstm(width: int = 128) -> Tagger:
    """The tagger, 2,000 tokens to 20 tags."""
    return Tagger(2000, width, 2, 20)

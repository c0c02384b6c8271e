"""Elements picked by their places: Gather and its kin, TopK, and what selects by value or condition."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from graphopt.importing import host
from graphopt.importing.table import operator
from graphopt.importing.values import as_tensor, is_host, number


def wrapped(indices: Tensor, size: Any) -> Tensor:
    """Indices, of which negative ones count from the end, as int64 from 0 on."""
    indices = indices.to(torch.int64)
    return torch.where(indices < 0, indices + size, indices)


@operator("Gather", hosts=True)
def gather(data: Any, indices: Any, *, axis: int = 0) -> Any:
    """Along one axis; numbers as indices make views where there is one of them."""
    rank = len(data.shape)
    along = axis % rank
    if is_host(indices) and all(isinstance(i, int) for i in indices.items):
        if is_host(data):
            return host.taken(data, indices, along)
        if indices.shape == ():
            return data.select(along, indices.items[0])
    data, indices = as_tensor(data), as_tensor(indices)
    places = wrapped(indices.to(data.device), data.shape[along])
    if indices.dim() == 1:
        return data.index_select(along, places)
    if along == 0 and rank == 2 and data.is_floating_point():
        return torch.nn.functional.embedding(places, data)
    picked = data.index_select(along, places.reshape(-1))
    return picked.reshape(*data.shape[:along], *indices.shape, *data.shape[along + 1 :])


@operator("GatherElements", since=11)
def gather_elements(data: Tensor, indices: Tensor, *, axis: int = 0) -> Tensor:
    return torch.gather(data, axis, wrapped(indices, data.shape[axis]))


@operator("GatherND", since=11)
def gather_nd(data: Tensor, indices: Tensor, *, batch_dims: int = 0) -> Tensor:
    """The last axis of the indices is a place in the first axes of the data, behind those of the batch."""
    depth = indices.shape[-1]
    lead = tuple(data.shape[:batch_dims])
    batch = []
    for i, size in enumerate(lead):  # the batch's own places, shaped to go with those of the indices
        shape = [1] * (indices.dim() - 1)
        shape[i] = size
        batch.append(torch.arange(size, device=data.device).reshape(shape))
    inner = [wrapped(indices[..., i], data.shape[batch_dims + i]) for i in range(depth)]
    return data[(*batch, *inner)]


@operator("TopK", several=True)
def top_k_attribute(x: Tensor, *, k: int, axis: int = -1) -> tuple[Tensor, Tensor]:
    return _top_k(x, k, axis, True)


@operator("TopK", since=10, hosts=True, several=True)
def top_k(x: Any, k: Any, *, axis: int = -1, largest: int = 1, sorted: int = 1) -> tuple[Tensor, Tensor]:
    return _top_k(as_tensor(x), number(k), axis, bool(largest))


def _top_k(x: Tensor, k: Any, axis: int, largest: bool) -> tuple[Tensor, Tensor]:
    """Of equal elements the first one comes first, which torch.topk does not promise and a stable sort does."""
    kind = x.dtype
    if kind in (torch.uint16, torch.uint32):
        x = x.to(torch.int64)
    elif kind == torch.uint64:  # the order of uint64 is that of int64 with the first bit turned
        x = x.view(torch.int64) ^ torch.iinfo(torch.int64).min
    found, places = torch.sort(x, dim=axis, descending=largest, stable=True)
    found, places = found.narrow(axis, 0, k), places.narrow(axis, 0, k)
    if kind == torch.uint64:
        return (found ^ torch.iinfo(torch.int64).min).view(kind), places
    return found.to(kind), places


@operator("OneHot", since=9, hosts=True)
def one_hot(indices: Any, depth: Any, values: Any, *, axis: int = -1) -> Tensor:
    """An index beyond the depth is hot nowhere."""
    size = number(depth)
    size = int(size) if isinstance(size, float) else size
    indices, values = as_tensor(indices), as_tensor(values)
    places = indices.to(torch.int64)
    places = torch.where(places < 0, places + size, places)
    along = axis % (indices.dim() + 1)
    shape = [1] * (indices.dim() + 1)
    shape[along] = size
    steps = torch.arange(size, device=indices.device).reshape(shape)
    return torch.where(places.unsqueeze(along) == steps, values[1], values[0])


@operator("NonZero", since=9)
def non_zero(x: Tensor) -> Tensor:
    return torch.nonzero(x.reshape(1) if x.dim() == 0 else x).T[: max(x.dim(), 0)]


@operator("Compress", since=9)
def compress(x: Tensor, condition: Tensor, *, axis: int | None = None) -> Tensor:
    """A condition may be shorter than the axis; what is beyond it is left out."""
    if axis is None:
        x, axis = x.reshape(-1), 0
    return x.index_select(axis, torch.nonzero(condition).reshape(-1))


@operator("Unique", since=11, several=True)
def unique(x: Tensor, *, axis: int | None = None, sorted: int = 1, outputs: int) -> tuple[Tensor, ...]:
    """Values, where each was first, which of them each element is, and how often each occurs."""
    if axis is None:
        x, axis = x.reshape(-1), 0
    values, inverse, counts = torch.unique(x, sorted=True, return_inverse=True, return_counts=True, dim=axis)
    found, length = values.shape[axis], x.shape[axis]
    steps = torch.arange(length, device=x.device)
    first = torch.full((found,), torch.iinfo(torch.int64).max, device=x.device).scatter_reduce(0, inverse, steps, "amin")
    if not sorted:  # in the order in which they come
        first, order = torch.sort(first)
        values, counts = values.index_select(axis, order), counts[order]
        rank = torch.empty_like(order).scatter(0, order, torch.arange(found, device=x.device))
        inverse = rank[inverse]
    return (values, first, inverse, counts)[:outputs]


@operator("ReverseSequence", since=10)
def reverse_sequence(x: Tensor, lengths: Tensor, *, batch_axis: int = 1, time_axis: int = 0) -> Tensor:
    """Each sequence of the batch turned around up to its own length."""
    moved = x.movedim((batch_axis, time_axis), (0, 1))
    steps = torch.arange(moved.shape[1], device=x.device)[None, :]
    ends = lengths.to(torch.int64)[:, None]
    places = torch.where(steps < ends, ends - 1 - steps, steps)
    rows = torch.arange(moved.shape[0], device=x.device)[:, None]
    return moved[rows, places].movedim((0, 1), (batch_axis, time_axis))


@operator("TfIdfVectorizer", since=9)
def tf_idf(
    x: Tensor,
    *,
    mode: str,
    ngram_counts: list[int],
    ngram_indexes: list[int],
    pool_int64s: list[int],
    min_gram_length: int,
    max_gram_length: int,
    max_skip_count: int,
    weights: list[float] | None = None,
) -> Tensor:
    """How often each n-gram of the pool occurs in a row, with up to so many tokens skipped between two."""
    rows = x.to(torch.int64).reshape(-1, x.shape[-1])
    length, size = rows.shape[1], max(ngram_indexes) + 1
    found = torch.zeros(rows.shape[0], size, dtype=torch.float32, device=x.device)
    number_of = 0
    ends = [*ngram_counts[1:], len(pool_int64s)]
    for n, (begin, end) in enumerate(zip(ngram_counts, ends, strict=True), 1):
        for at in range(begin, end, n):
            gram, place = pool_int64s[at : at + n], ngram_indexes[number_of]
            number_of += 1
            if not min_gram_length <= n <= max_gram_length:
                continue
            for step in range(1, (max_skip_count if n > 1 else 0) + 2):
                windows = length - step * (n - 1)
                if windows <= 0:
                    continue
                same = [rows[:, i * step : i * step + windows] == token for i, token in enumerate(gram)]
                hits = torch.stack(same).all(0).sum(1)
                found[:, place] += hits
    scale = torch.ones(size)
    if weights is not None:
        scale[torch.tensor(ngram_indexes)] = torch.tensor(weights)
    if mode == "IDF":
        found = (found > 0).float() * scale.to(x.device)
    elif mode == "TFIDF":
        found = found * scale.to(x.device)
    return found.reshape(*x.shape[:-1], size)

"""Sequences, as Python lists of tensors, and optional values, as values or None."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from graphopt.importing.table import operator
from graphopt.importing.values import Host, as_tensor, number, numbers, scalar


@operator("SequenceEmpty", since=11)
def sequence_empty(*, dtype: int = 1) -> list[Tensor]:
    return []


@operator("SequenceConstruct", since=11)
def sequence_construct(*parts: Tensor) -> list[Tensor]:
    return list(parts)


@operator("SequenceLength", since=11, hosts=True)
def sequence_length(sequence: list[Tensor]) -> Host:
    return scalar(len(sequence))


@operator("SequenceAt", since=11, hosts=True)
def sequence_at(sequence: list[Tensor], position: Any) -> Tensor:
    return sequence[number(position)]


@operator("SequenceInsert", since=11, hosts=True)
def sequence_insert(sequence: list[Tensor], tensor: Any, position: Any = None) -> list[Tensor]:
    made = list(sequence)  # a copy: others may hold the list
    made.insert(len(made) if position is None else number(position), as_tensor(tensor))
    return made


@operator("SequenceErase", since=11, hosts=True)
def sequence_erase(sequence: list[Tensor], position: Any = None) -> list[Tensor]:
    made = list(sequence)
    del made[-1 if position is None else number(position)]
    return made


@operator("ConcatFromSequence", since=11)
def concat_from_sequence(sequence: list[Tensor], *, axis: int, new_axis: int = 0) -> Tensor:
    return torch.stack(sequence, axis) if new_axis else torch.cat(sequence, axis)


@operator("SplitToSequence", since=11, hosts=True)
def split_to_sequence(x: Any, split: Any = None, *, axis: int = 0, keepdims: int = 1) -> list[Tensor]:
    """A scalar is the length of each part, the last of which may be shorter; without a split each part is one element."""
    x = as_tensor(x)
    if split is None:
        parts = torch.split(x, 1, axis)
        return list(parts) if keepdims else [p.squeeze(axis) for p in parts]
    scalar_split = len(split.shape) == 0
    return list(torch.split(x, number(split) if scalar_split else numbers(split), axis))


@operator("SequenceMap", since=17, several=True)
def sequence_map(
    sequence: list[Tensor], *more: Any, body: fx.GraphModule, captures: tuple[Any, ...], outputs: int
) -> tuple[list[Tensor], ...]:
    """The body, once for each element; of further sequences it is given the element in the same place."""
    made: tuple[list[Tensor], ...] = tuple([] for _ in range(outputs))
    for i, element in enumerate(sequence):
        others = [m[i] if isinstance(m, list) else m for m in more]
        for results, result in zip(made, body(element, *others, *captures), strict=True):
            results.append(as_tensor(result))
    return made


@operator("Optional", since=15, refuse=lambda attributes: "an optional of nothing is not supported" if "type" in attributes else None)
def optional(value: Any = None, *, type: Any = None) -> Any:
    return value


@operator("OptionalHasElement", since=15, hosts=True)
def optional_has_element(value: Any = None) -> Host:
    return scalar(value is not None, torch.bool)


@operator("OptionalGetElement", since=15)
def optional_get_element(value: Any) -> Any:
    if value is None:
        raise ValueError("the optional holds nothing")
    return value

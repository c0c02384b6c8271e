"""LSTM, GRU and RNN: torch's own where they compute the same, spelled out step by step elsewhere.

Values are laid out [steps, batch, features] inside; weights come one direction after the other.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from graphopt.importing.recurrent_cells import ACTIVATIONS, gru_cell, lstm_cell, rnn_cell
from graphopt.importing.table import operator

_DEFAULTS = {"LSTM": ["Sigmoid", "Tanh", "Tanh"], "GRU": ["Sigmoid", "Tanh"], "RNN": ["Tanh"]}


def _refuse(attributes: dict[str, Any]) -> str | None:
    odd = [a for a in attributes.get("activations", ()) if a.lower() not in ACTIVATIONS]
    if odd:
        return f"its activation '{odd[0]}' is not known"
    if attributes.get("direction", "forward") not in ("forward", "reverse", "bidirectional"):
        return f"its direction '{attributes['direction']}' is not known"
    return None


def _reordered(weights: Tensor, order: tuple[int, ...]) -> Tensor:
    """Gates in torch's order; they lie one below the other in the first axis."""
    parts = weights.chunk(len(order), 0)
    return torch.cat([parts[i] for i in order], 0)


def _flat(w: Tensor, r: Tensor, b: Tensor | None, order: tuple[int, ...]) -> list[Tensor]:
    """torch's list of weights: input, state, and their biases, for each direction."""
    found = []
    for d in range(w.shape[0]):
        found += [_reordered(w[d], order), _reordered(r[d], order)]
        if b is not None:
            found += [_reordered(half, order) for half in b[d].chunk(2)]
    return found


def _plain(kind: str, activations: list[str] | None, count: int, lengths: Any, clip: float | None) -> bool:
    """Whether torch's own operator computes this."""
    if lengths is not None or clip is not None:
        return False
    given = [a.lower() for a in activations] if activations else []
    return not given or given == [a.lower() for a in _DEFAULTS[kind]] * count or (kind == "RNN" and given == ["relu"] * count)


def _recur(
    x: Tensor, states: list[Tensor], direction: str, lengths: Tensor | None, cell: Callable[[int, Tensor, list[Tensor]], list[Tensor]]
) -> tuple[Tensor, list[Tensor]]:
    """Every step of every direction: outputs [steps, directions, batch, hidden] and the last states.

    A sequence that is over keeps its state, and its outputs are 0; backwards, it begins at its own end.
    """
    ways = {"forward": (False,), "reverse": (True,), "bidirectional": (False, True)}[direction]
    outputs, last = [], []
    for d, backwards in enumerate(ways):
        state = [s[d] for s in states]
        rows: list[Tensor] = []
        order = range(x.shape[0])
        for t in reversed(order) if backwards else order:
            new = cell(d, x[t], state)
            out = new[0]
            if lengths is not None:
                going = (t < lengths)[:, None]
                new = [torch.where(going, a, b) for a, b in zip(new, state, strict=True)]
                out = torch.where(going, out, torch.zeros((), dtype=out.dtype, device=out.device))
            rows.append(out)
            state = new
        outputs.append(torch.stack(rows[::-1] if backwards else rows) if rows else x.new_zeros((0, *state[0].shape)))
        last.append(state)
    return torch.stack(outputs, 1), [torch.stack(s) for s in zip(*last, strict=True)]


def _directions(y: Tensor, count: int, layout: int) -> Tensor:
    """[steps, batch, directions * hidden] as ONNX has it: [steps, directions, batch, hidden], or [batch, steps, directions, hidden]."""
    split = y.reshape(y.shape[0], y.shape[1], count, y.shape[2] // count)
    return split.permute(1, 0, 2, 3) if layout else split.permute(0, 2, 1, 3)


def _laid_out(y: Tensor, layout: int) -> Tensor:
    return y.permute(2, 0, 1, 3) if layout else y


def _start(given: Tensor | None, x: Tensor, r: Tensor, layout: int) -> Tensor:
    """A first state, [directions, batch, hidden]; 0 where none is given."""
    if given is None:
        return x.new_zeros((r.shape[0], x.shape[1], r.shape[2]))
    return given.transpose(0, 1) if layout else given


def _last(state: Tensor, layout: int) -> Tensor:
    return state.transpose(0, 1) if layout else state


def _through_torch(
    call: Callable[..., tuple[Tensor, ...]], x: Tensor, states: Any, flat: list[Tensor], biased: bool, direction: str
) -> tuple[Tensor, ...]:
    """torch's operator; it knows no direction that is backwards alone, so the sequence is turned around."""
    backwards = direction == "reverse"
    y, *last = call(x.flip(0) if backwards else x, states, flat, biased, 1, 0.0, False, direction == "bidirectional", False)
    return (y.flip(0) if backwards else y, *last)


@operator("LSTM", several=True, refuse=_refuse)
def lstm(
    x: Tensor,
    w: Tensor,
    r: Tensor,
    b: Tensor | None = None,
    lengths: Tensor | None = None,
    h: Tensor | None = None,
    c: Tensor | None = None,
    p: Tensor | None = None,
    *,
    activations: list[str] | None = None,
    activation_alpha: list[float] | None = None,
    activation_beta: list[float] | None = None,
    clip: float | None = None,
    direction: str = "forward",
    hidden_size: int | None = None,
    input_forget: int = 0,
    layout: int = 0,
    output_sequence: int = 0,
) -> tuple[Tensor, ...]:
    x = x.transpose(0, 1) if layout else x
    states = [_start(h, x, r, layout), _start(c, x, r, layout)]
    if p is None and not input_forget and _plain("LSTM", activations, w.shape[0], lengths, clip):
        flat = _flat(w, r, b, (0, 2, 3, 1))
        y, *last = _through_torch(torch.lstm, x, [s.contiguous() for s in states], flat, b is not None, direction)
        return (_directions(y, w.shape[0], layout), *(_last(s, layout) for s in last))
    cell = lstm_cell(w, r, b, p, activations, activation_alpha, activation_beta, clip, bool(input_forget))
    y, last = _recur(x, states, direction, lengths, cell)
    return (_laid_out(y, layout), *(_last(s, layout) for s in last))


@operator("GRU", several=True, refuse=_refuse)
def gru(
    x: Tensor,
    w: Tensor,
    r: Tensor,
    b: Tensor | None = None,
    lengths: Tensor | None = None,
    h: Tensor | None = None,
    *,
    activations: list[str] | None = None,
    activation_alpha: list[float] | None = None,
    activation_beta: list[float] | None = None,
    clip: float | None = None,
    direction: str = "forward",
    hidden_size: int | None = None,
    layout: int = 0,
    linear_before_reset: int = 0,
    output_sequence: int = 0,
) -> tuple[Tensor, ...]:
    x = x.transpose(0, 1) if layout else x
    state = _start(h, x, r, layout)
    if linear_before_reset and _plain("GRU", activations, w.shape[0], lengths, clip):
        y, last = _through_torch(torch.gru, x, state.contiguous(), _flat(w, r, b, (1, 0, 2)), b is not None, direction)
        return _directions(y, w.shape[0], layout), _last(last, layout)
    cell = gru_cell(w, r, b, activations, activation_alpha, activation_beta, clip, bool(linear_before_reset))
    y, (last,) = _recur(x, [state], direction, lengths, cell)
    return _laid_out(y, layout), _last(last, layout)


@operator("RNN", several=True, refuse=_refuse)
def rnn(
    x: Tensor,
    w: Tensor,
    r: Tensor,
    b: Tensor | None = None,
    lengths: Tensor | None = None,
    h: Tensor | None = None,
    *,
    activations: list[str] | None = None,
    activation_alpha: list[float] | None = None,
    activation_beta: list[float] | None = None,
    clip: float | None = None,
    direction: str = "forward",
    hidden_size: int | None = None,
    layout: int = 0,
    output_sequence: int = 0,
) -> tuple[Tensor, ...]:
    x = x.transpose(0, 1) if layout else x
    state = _start(h, x, r, layout)
    if _plain("RNN", activations, w.shape[0], lengths, clip):
        call = torch.rnn_relu if activations and activations[0].lower() == "relu" else torch.rnn_tanh
        y, last = _through_torch(call, x, state.contiguous(), _flat(w, r, b, (0,)), b is not None, direction)
        return _directions(y, w.shape[0], layout), _last(last, layout)
    cell = rnn_cell(w, r, b, activations, activation_alpha, activation_beta, clip)
    y, (last,) = _recur(x, [state], direction, lengths, cell)
    return _laid_out(y, layout), _last(last, layout)

"""One step of LSTM, GRU and RNN as ONNX defines them, with any activations, clipping and peepholes."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

#: From the direction, an input [batch, features] and states [batch, hidden] each, to the new states.
Cell = Callable[[int, Tensor, list[Tensor]], list[Tensor]]
_Activation = Callable[[Tensor], Tensor]

#: Parameters of an activation where the node gives none (ONNX, operator RNN).
_DEFAULTS = {
    "affine": (1.0, 0.0),
    "leakyrelu": (0.01, 0.0),
    "thresholdedrelu": (1.0, 0.0),
    "scaledtanh": (1.0, 1.0),
    "hardsigmoid": (0.2, 0.5),
    "elu": (1.0, 0.0),
}

ACTIVATIONS = frozenset({*_DEFAULTS, "sigmoid", "tanh", "relu", "softsign", "softplus"})


def _activation(name: str, alpha: float | None, beta: float | None) -> _Activation:
    name = name.lower()
    first, second = _DEFAULTS.get(name, (0.0, 0.0))
    a, b = first if alpha is None else alpha, second if beta is None else beta
    found: dict[str, _Activation] = {
        "sigmoid": torch.sigmoid,
        "tanh": torch.tanh,
        "relu": torch.relu,
        "affine": lambda x: a * x + b,
        "leakyrelu": lambda x: functional.leaky_relu(x, a),
        "thresholdedrelu": lambda x: torch.where(x > a, x, torch.zeros_like(x)),
        "scaledtanh": lambda x: a * torch.tanh(b * x),
        "hardsigmoid": lambda x: (a * x + b).clamp(0.0, 1.0),
        "elu": lambda x: functional.elu(x, a),
        "softsign": functional.softsign,
        "softplus": functional.softplus,
    }
    return found[name]


def _activations(
    names: list[str] | None, defaults: list[str], count: int, alpha: list[float] | None, beta: list[float] | None
) -> list[list[_Activation]]:
    """The activations of each direction. Parameters are handed out in turn to the activations that have them."""
    names = names or defaults * count
    if len(names) == len(defaults):
        names = names * count
    alphas, betas = list(alpha or ()), list(beta or ())
    made = []
    for name in names:
        has_alpha = name.lower() in _DEFAULTS
        has_beta = name.lower() in ("affine", "scaledtanh", "hardsigmoid")
        made.append(_activation(name, alphas.pop(0) if has_alpha and alphas else None, betas.pop(0) if has_beta and betas else None))
    each = len(defaults)
    return [made[d * each : (d + 1) * each] for d in range(count)]


def _clipper(clip: float | None) -> _Activation:
    return (lambda x: x) if clip is None else (lambda x: x.clamp(-clip, clip))


def _biases(b: Tensor | None, d: int, gates: int, like: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """The biases of the input and of the state, a list of gates each."""
    if b is None:
        zero = like.new_zeros(())
        return [zero] * gates, [zero] * gates
    first, second = b[d].chunk(2)
    return list(first.chunk(gates)), list(second.chunk(gates))


def lstm_cell(
    w: Tensor, r: Tensor, b: Tensor | None, p: Tensor | None, names: list[str] | None, alpha: list[float] | None,
    beta: list[float] | None, clip: float | None, input_forget: bool,
) -> Cell:  # fmt: skip
    """Gates input, output, forget, cell; peepholes input, output, forget. The gates are clipped, the cell is not (ONNX Runtime)."""
    functions = _activations(names, ["Sigmoid", "Tanh", "Tanh"], w.shape[0], alpha, beta)
    clipped = _clipper(clip)

    def step(d: int, x: Tensor, state: list[Tensor]) -> list[Tensor]:
        f, g, h = functions[d]
        hidden, cell = state
        wb, rb = _biases(b, d, 4, x)
        gates = (x @ w[d].T + hidden @ r[d].T).chunk(4, 1)
        i, o, forget, new = (gate + u + v for gate, u, v in zip(gates, wb, rb, strict=True))
        holes = p[d].chunk(3) if p is not None else None
        if holes is not None:
            i, forget = i + holes[0] * cell, forget + holes[2] * cell
        i = f(clipped(i))
        forget = 1 - i if input_forget else f(clipped(forget))
        after = forget * cell + i * g(clipped(new))
        if holes is not None:
            o = o + holes[1] * after
        return [f(clipped(o)) * h(after), after]

    return step


def gru_cell(
    w: Tensor, r: Tensor, b: Tensor | None, names: list[str] | None, alpha: list[float] | None, beta: list[float] | None,
    clip: float | None, linear_before_reset: bool,
) -> Cell:  # fmt: skip
    """Gates update, reset, hidden."""
    functions = _activations(names, ["Sigmoid", "Tanh"], w.shape[0], alpha, beta)
    clipped = _clipper(clip)

    def step(d: int, x: Tensor, state: list[Tensor]) -> list[Tensor]:
        f, g = functions[d]
        (hidden,) = state
        wb, rb = _biases(b, d, 3, x)
        xz, xr, xh = (part + bias for part, bias in zip((x @ w[d].T).chunk(3, 1), wb, strict=True))
        rz, rr, rh = r[d].chunk(3)
        z = f(clipped(xz + hidden @ rz.T + rb[0]))
        reset = f(clipped(xr + hidden @ rr.T + rb[1]))
        if linear_before_reset:
            new = g(clipped(xh + reset * (hidden @ rh.T + rb[2])))
        else:
            new = g(clipped(xh + (reset * hidden) @ rh.T + rb[2]))
        return [(1 - z) * new + z * hidden]

    return step


def rnn_cell(
    w: Tensor, r: Tensor, b: Tensor | None, names: list[str] | None, alpha: list[float] | None, beta: list[float] | None, clip: float | None
) -> Cell:
    functions = _activations(names, ["Tanh"], w.shape[0], alpha, beta)
    clipped = _clipper(clip)

    def step(d: int, x: Tensor, state: list[Tensor]) -> list[Tensor]:
        (f,) = functions[d]
        wb, rb = _biases(b, d, 1, x)
        return [f(clipped(x @ w[d].T + wb[0] + state[0] @ r[d].T + rb[0]))]

    return step

"""Activations that the runtime's FusedConv and FusedGemm compute."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from graphopt.rewriting import Refuse, guards, same_domain, use_count

from ..fusion.reading import number

# Operator: its parameters, with their defaults.
PARAMETERS: dict[str, dict[str, float]] = {
    "Elu": {"alpha": 1.0},
    "HardSigmoid": {"alpha": 0.2, "beta": 0.5},
    "HardSwish": {},
    "LeakyRelu": {"alpha": 0.01},
    "Relu": {},
    "Selu": {"alpha": 1.67326319217681884765625, "gamma": 1.05070102214813232421875},
    "Sigmoid": {},
    "Softplus": {},
    "Softsign": {},
    "Tanh": {},
    "ThresholdedRelu": {"alpha": 1.0},
}

_LOWEST, _LARGEST = float(np.finfo(np.float32).min), float(np.finfo(np.float32).max)
_QUANTIZED = ("DequantizeLinear", "QuantizeLinear")


def parameters(node: ir.Node) -> dict[str, float]:
    """The parameters of an activation by name, defaults filled in."""
    return {name: float(guards.attribute(node, name, default)) for name, default in PARAMETERS[node.op_type].items()}


def clip_bounds(node: ir.Node) -> list[float]:
    """The bounds of a Clip; refuses those that are not constant."""
    bounds = []
    for i, (name, default) in enumerate((("min", _LOWEST), ("max", _LARGEST)), 1):
        value = node.inputs[i] if i < len(node.inputs) else None
        if value is None:
            bounds.append(float(guards.attribute(node, name, default)))
            continue
        found = number(value)
        if found is None:
            raise Refuse(f"the bound {value.name!r} of the Clip is not a constant number")
        bounds.append(found)
    return bounds


def require_unquantized(node: ir.Node, output: ir.Value) -> None:
    """Refuse an operator between DequantizeLinear and QuantizeLinear, which the runtime makes one quantized operator of."""
    if any(v is not None and _is(v.producer(), _QUANTIZED[:1]) for v in node.inputs[:2]):
        raise Refuse("it is quantized, and the runtime has an operator for it with what stands around it")
    if use_count(output) == 1 and _is(output.uses()[0].node, _QUANTIZED[1:]):
        raise Refuse("its result is quantized, and the runtime has an operator for it with what stands around it")


def _is(node: ir.Node | None, types: tuple[str, ...]) -> bool:
    return node is not None and node.op_type in types and (same_domain(node.domain, "") or node.domain == "com.microsoft")

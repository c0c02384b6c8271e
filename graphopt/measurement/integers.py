"""What the runtime runs on integers: a graph in QDQ form is a wish, and the graph that the runtime ends with is the answer."""

from __future__ import annotations

import re
from collections.abc import Iterable

from graphopt.measurement.runtime_graph import FinalGraph

_KERNEL = re.compile(
    r"^(QLinear|QGemm|QMoE|QAttention|QEmbed|QOrdered|MatMulInteger|ConvInteger|DynamicQuantize(?!Linear)|MatMulNBits|GatherBlockQuantized)"
)
_EDGES = ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear")
#: A product on integers without the scaling behind it: more passes over the data, in float.
_UNFUSED = ("MatMulInteger", "ConvInteger")


def asks_for_integers(op_types: Iterable[str]) -> bool:
    """Whether a graph with these operators asks the runtime for integer kernels."""
    return any(name in ("QuantizeLinear", "DynamicQuantizeLinear") or _KERNEL.match(name) for name in op_types)


def integer_kernels(graph: FinalGraph) -> dict[str, int]:
    """How often each integer kernel occurs, without its domain, the most frequent first."""
    found = {name.split("::")[-1]: count for name, count in graph.operators.items() if _KERNEL.match(name.split("::")[-1])}
    return dict(sorted(found.items(), key=lambda item: (-item[1], item[0])))


def on_integers(graph: FinalGraph) -> str:
    """One line on it: the kernels, and the conversions that are left between them and float operators."""
    kernels = integer_kernels(graph)
    edges = {name: graph.operators.get(name, 0) for name in _EDGES}
    left = _listed([f"{count} {name}" for name, count in edges.items() if count])
    if not kernels:
        return f"the runtime runs nothing on integers: it keeps {left or 'no conversion either'}"
    text = "the runtime runs on integers: " + ", ".join(f"{count} {name}" for name, count in kernels.items())
    text += f"; {left} convert between these and float operators" if left else ""
    unfused = [f"{kernels[name]} {name}" for name in _UNFUSED if name in kernels]
    return text + (f"; it scales the sums of {' and '.join(unfused)} in operators of their own, which is slower" if unfused else "")


def _listed(parts: list[str]) -> str:
    return ", ".join(parts[:-1]) + (" and " if len(parts) > 1 else "") + parts[-1] if parts else ""

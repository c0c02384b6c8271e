"""What the runtime runs on integers: a graph in QDQ form is a wish, and the graph that the runtime ends with is the answer."""

from __future__ import annotations

import re

from graphopt.measurement.runtime_graph import FinalGraph

_KERNEL = re.compile(
    r"^(QLinear|QGemm|QMoE|QAttention|QEmbed|QOrdered|MatMulInteger|ConvInteger|DynamicQuantize|MatMulNBits|GatherBlockQuantized)"
)
_EDGES = ("QuantizeLinear", "DequantizeLinear")


def integer_kernels(graph: FinalGraph) -> dict[str, int]:
    """How often each integer kernel occurs, without its domain, the most frequent first."""
    found = {name.split("::")[-1]: count for name, count in graph.operators.items() if _KERNEL.match(name.split("::")[-1])}
    return dict(sorted(found.items(), key=lambda item: (-item[1], item[0])))


def on_integers(graph: FinalGraph) -> str:
    """One line on it: the kernels, and the conversions that are left between them and float operators."""
    kernels = integer_kernels(graph)
    edges = {name: graph.operators.get(name, 0) for name in _EDGES}
    left = " and ".join(f"{count} {name}" for name, count in edges.items() if count)
    if not kernels:
        return f"the runtime runs nothing on integers: it keeps {left or 'no conversion either'}"
    text = ", ".join(f"{count} {name}" for name, count in kernels.items())
    return f"the runtime runs on integers: {text}" + (f"; {left} convert between these and float operators" if left else "")

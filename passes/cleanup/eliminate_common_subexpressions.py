"""Equal computations, done once: value numbering over the graph and the subgraphs that see its values."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import onnx_ir as ir

from graphopt.rewriting import Context, Editor, Match, Pass, attribute_graphs, option, scalar_of

if TYPE_CHECKING:
    from graphopt.aten import AtenContext

# Two of them draw different numbers, a given seed notwithstanding: each holds a generator of its own.
_RANDOM = frozenset(
    ("Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike")
)
_DOMAINS = ("", "ai.onnx.ml")
_KINDS = ir.AttributeType
_SCALARS = {_KINDS.INT, _KINDS.STRING}
_LISTS = {_KINDS.INTS, _KINDS.STRINGS}


@dataclass(frozen=True)
class EliminateCommonSubexpressions(Pass):
    """Compute equal nodes once."""

    name = "eliminate-common-subexpressions"
    kinds = frozenset({"onnx", "torch"})

    constant_bytes: int = option(1024, "compare tensors in attributes up to this size; larger ones count as different", minimum=0)

    def run_aten(self, context: AtenContext) -> None:
        from ..aten import eliminate_common_subexpressions

        eliminate_common_subexpressions.run(context)

    def run(self, context: Context) -> None:
        deterministic = _deterministic_functions(context)
        roots = [graph for graph, scope in context.index.scopes.items() if scope.owner is None]
        for graph in roots:
            self._graph(graph, context, deterministic)

    def _graph(self, graph: ir.Graph, context: Context, deterministic: frozenset[tuple[str, str, str]]) -> None:
        # Nodes are visited in the order in which they run, and a subgraph when its owner is: whatever stands in the
        # table of an outer graph by then is computed before, and the table of a sibling is not seen.
        stack = [_Frame(iter(graph))]
        while stack:
            frame = stack[-1]
            if frame.subgraphs:
                stack.append(_Frame(iter(frame.subgraphs.pop())))
                continue
            node = next(frame.nodes, None)
            if node is None:
                stack.pop()
                continue
            frame.subgraphs = [g for a in node.attributes.values() for g in attribute_graphs(a)][::-1]
            if frame.subgraphs:
                continue
            key = self._key(node, context, deterministic)
            if key is None:
                continue
            earlier = next((found for f in reversed(stack) if (found := f.table.get(key)) is not None), None)
            if earlier is None or not _merge(node, earlier, context):
                frame.table.setdefault(key, node)

    def _key(self, node: ir.Node, context: Context, deterministic: frozenset[tuple[str, str, str]]) -> Hashable | None:
        """What equal nodes have in common; None for a node that equals no other."""
        local = bool(context.model.functions) and node.op_identifier() in context.model.functions
        if (local and node.op_identifier() not in deterministic) or (not local and node.domain not in _DOMAINS):
            return None
        if node.op_type in _RANDOM or (node.op_type == "Dropout" and not _infers(node, context)):
            return None
        if not node.outputs:
            return None
        attributes = node.attributes
        described: tuple = ()
        if attributes:
            parts = []
            for name in sorted(attributes):
                part = self._attribute(attributes[name])
                if part is None:
                    return None
                parts.append((name, part))
            described = tuple(parts)
        outputs = node.outputs
        omitted = 1 if len(outputs) == 1 else tuple(not v.name for v in outputs)
        return node.domain, node.op_type, node.overload, node.inputs, described, omitted

    def _attribute(self, attribute: ir.Attr) -> Hashable | None:
        kind = attribute.type
        if attribute.is_ref():
            return kind, "reference", attribute.ref_attr_name
        value = attribute.value
        if kind in _SCALARS:
            return kind, value
        if kind in _LISTS:
            return kind, tuple(value)
        if kind == _KINDS.FLOAT:
            return kind, repr(value)  # 0.0 is not -0.0
        if kind == _KINDS.FLOATS:
            return kind, repr(tuple(value))
        if kind == _KINDS.TENSOR:
            if value.dtype == ir.DataType.STRING:
                strings = value.string_data()
                small = sum(map(len, strings)) <= self.constant_bytes
                return (kind, value.dtype, value.shape.numpy(), tuple(strings)) if small else None
            return (kind, value.dtype, value.shape.numpy(), value.tobytes()) if value.nbytes <= self.constant_bytes else None
        return None


@dataclass
class _Frame:
    nodes: Iterator[ir.Node]
    table: dict[Hashable, ir.Node] = field(default_factory=dict)
    subgraphs: list[ir.Graph] = field(default_factory=list)


def _merge(node: ir.Node, earlier: ir.Node, context: Context) -> bool:
    """Let the consumers of `node` take the outputs of `earlier`."""
    for mine, other in zip(node.outputs, earlier.outputs):
        if mine.is_graph_output():
            if earlier.graph is not node.graph:
                context.log.refuse(node, "it names an output of a subgraph, and its equal stands outside of it")
                return False
            if other.is_graph_output():
                context.log.refuse(node, f"it and its equal {earlier.name!r} both name a graph output")
                return False
    if not context.log.permit(node):
        return False
    context.log.settled(node)
    editor = Editor(context, Match(node, [node]))
    for mine, other in zip(node.outputs, earlier.outputs):
        if mine.name:
            editor.replace(mine, other)
    editor.commit()
    return True


def _infers(node: ir.Node, context: Context) -> bool:
    """Whether a Dropout is known not to be in training mode."""
    opset = context.opset(node)
    return opset >= 7 and (opset < 12 or len(node.inputs) < 3 or node.inputs[2] is None or scalar_of(node.inputs[2]) is False)


def _deterministic_functions(context: Context) -> frozenset[tuple[str, str, str]]:
    """The local functions that give equal results for equal arguments: all that they do, functions they call included, does."""
    functions = context.model.functions
    if not functions:
        return frozenset()
    bodies = {f: i for i, f in functions.items()}
    calls: dict[tuple[str, str, str], list[tuple[str, str, str]]] = {i: [] for i in functions}  # callee to callers
    tainted: list[tuple[str, str, str]] = []
    for graph, scope in context.index.scopes.items():
        if scope.function is None:
            continue
        mine = bodies[scope.function]
        for node in graph:
            called = node.op_identifier()
            if called in functions:
                calls[called].append(mine)
            elif node.domain not in _DOMAINS or node.op_type in _RANDOM or node.op_type == "Dropout":
                tainted.append(mine)
    reached = dict.fromkeys(tainted)
    while tainted:
        for caller in calls[tainted.pop()]:
            if caller not in reached:
                reached[caller] = None
                tainted.append(caller)
    return frozenset(i for i in functions if i not in reached)

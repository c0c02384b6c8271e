"""Is a graph sound: every value made once, before it is used, within reach? Linear in nodes, on the graph in memory.

What is checked is the ONNX IR specification's "Graphs" and "Names Within a Graph": single static assignment, topological
order, nested scopes, functions that see nothing from outside, an opset for every domain in use.
"""

from __future__ import annotations

from collections.abc import Iterable

import onnx_ir as ir

from graphopt.model import subgraphs_of


class StructureError(ValueError):
    """The graph is not sound; the message names the node and the value."""


class Unsorted(StructureError):
    """A node uses what a later node produces: to be sorted, unless there is a cycle."""


def check(model: ir.Model, notes: list[str]) -> None:
    """Checks a model as it was loaded; sorts graphs that are not in topological order, and repairs what has one reading.

    Raises:
        StructureError: the first fault found.
    """
    functions = set(model.functions)
    _check_top(model.graph, "the graph", model.opset_imports, functions, notes)
    for identifier, function in model.functions.items():
        where = f"function '{':'.join(filter(None, identifier))}'"
        imports = {**model.opset_imports, **function.opset_imports}
        _check_top(function.graph, where, imports, functions, notes)


def _check_top(graph: ir.Graph, where: str, imports: dict[str, int], functions: set, notes: list[str]) -> None:
    for attempt in range(2):
        try:
            _check_graph(graph, where, set(), (), imports, functions, notes)
            return
        except Unsorted:
            if attempt:
                raise
            try:
                graph.sort()
            except ValueError:
                raise StructureError(f"{where} has a cycle: {_cycle(graph)}") from None
            notes.append(f"{where} was not in topological order: sorted")


def _check_graph(
    graph: ir.Graph,
    where: str,
    made: set[ir.Value],
    around: tuple[ir.Graph, ...],
    imports: dict[str, int],
    functions: set,
    notes: list[str],
) -> None:
    """``made`` holds the values that exist so far, here and in the graphs around; values are compared by identity."""
    names = _names_of(value.name for value in graph.inputs)
    if names is None or len(names) != len(graph.inputs):
        raise StructureError(f"{where} has two inputs of one name, or one without a name")
    made.update(graph.inputs)
    made.update(graph.initializers.values())
    domains = set()
    for node in graph:
        for value in node.inputs:
            if value is not None and value not in made:
                _missing(node, value, where)
        if node.attributes:
            for inner in subgraphs_of(node):
                # Values of the inner graph stay in `made`: no name outside it can lead to them, so they do no harm.
                inner_where = f"a subgraph of {_label(node)}"
                _check_graph(inner, inner_where, made, (*around, graph), imports, functions, notes)
        made.update(node.outputs)
        if node.domain not in domains:
            domains.add(node.domain)
            if node.domain not in imports and not any(f[0] == node.domain for f in functions):
                raise StructureError(f"{_label(node)}: its domain '{node.domain or 'ai.onnx'}' is not among the opset imports")
    for index, value in enumerate(graph.outputs):
        if value not in made:
            outer = _by_name(value.name, around, made)
            if outer is None:
                raise StructureError(f"{where}: output {index} '{value.name}' is not produced by any node")
            graph.outputs[index] = made_here = _identity(graph, outer, value)
            made.add(made_here)
            notes.append(f"{where} returns '{outer.name}' of a graph around it: passed through an Identity node")


def _names_of(names: Iterable[str | None]) -> set[str] | None:
    result = set(names)
    return None if None in result or "" in result else result


def _by_name(name: str | None, around: tuple[ir.Graph, ...], made: set[ir.Value]) -> ir.Value | None:
    for graph in reversed(around):
        outputs = (value for node in graph for value in node.outputs)
        for values in graph.inputs, graph.initializers.values(), outputs:
            for value in values:
                if value.name == name and value in made:
                    return value
    return None


def _identity(graph: ir.Graph, outer: ir.Value, declared: ir.Value) -> ir.Value:
    """A value of ``graph`` that equals ``outer``. The specification and ONNX Runtime both want one there, and onnx_ir
    does not connect an output to what lies outside its graph."""
    taken = {value.name for node in graph for value in node.outputs} | set(graph.initializers)
    taken |= {value.name for value in graph.inputs}
    name = f"{outer.name}_returned"
    while name in taken:
        name += "_"
    value = ir.Value(name=name, type=declared.type, shape=declared.shape, doc_string=declared.doc_string)
    graph.append(ir.Node("", "Identity", [outer], outputs=[value], name=""))
    return value


def _missing(node: ir.Node, value: ir.Value, where: str) -> None:
    if value.producer() is None and value.graph is None:
        raise StructureError(f"{_label(node)} uses '{value.name}', which nothing in {where} or around it produces")
    raise Unsorted(f"{_label(node)} uses '{value.name}' before it is produced")


def _label(node: ir.Node) -> str:
    """A node in a message: its name, else its first output, and its operator."""
    name = node.name or next((output.name for output in node.outputs if output.name), "")
    return f"node '{name}' ({node.op_type})"


def _cycle(graph: ir.Graph) -> str:
    """One cycle of a graph that could not be sorted, as a chain of nodes."""
    state: dict[ir.Node, int] = {}
    for root in graph:
        path, stack = [], [root]
        while stack:
            node = stack[-1]
            if state.get(node) is None:
                state[node] = len(path)
                path.append(node)
                for value in node.inputs:
                    before = value.producer() if value is not None else None
                    if before is None or before.graph is not graph:
                        continue
                    if state.get(before) is None:
                        stack.append(before)
                    elif state[before] >= 0:
                        return " <- ".join(_label(n) for n in [*path[state[before] :], before][:4])
            else:
                stack.pop()
                if path and path[-1] is node:
                    path.pop()
                    state[node] = -1
    return "nodes of its subgraphs depend on each other"

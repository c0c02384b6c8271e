"""How a rewrite states its replacement: staged while the guards run, carried out at once when they all pass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.model import IN_FLOAT
from graphopt.rewriting.base import Refuse
from graphopt.rewriting.context import Context, attribute_graphs
from graphopt.rewriting.pattern import Match
from graphopt.rewriting.shapes import DECLARED, INFERRED
from graphopt.rewriting.uses import is_used, release_inputs, use_count


class Editor:
    """The changes that one application of a rewrite makes at `match`.

    New nodes stand before `match.root`, in the order in which they were made. Names of graph outputs are kept, the
    nodes of the match that end without a consumer are removed, and so is what only they consumed.
    """

    def __init__(self, context: Context, match: Match) -> None:
        self.context = context
        self.match = match
        self.created: list[ir.Node] = []
        self.initializers: list[ir.Value] = []
        self.replacements: list[tuple[ir.Value, ir.Value]] = []
        self.dropped_uses: list[tuple[ir.Node, int, ir.Value | None]] = []
        self.updates: list[tuple[ir.Node, str, ir.Attr | None]] = []

    # --- statements ---------------------------------------------------------------------------------------------

    def constant(self, data: np.ndarray | ir.TensorProtocol | Sequence[int], hint: str) -> ir.Value:
        """A new constant: an initializer of the graph of the match, or a Constant node inside a function.

        `data`: an array or a tensor, kept as it is; a sequence of ints makes an int64 vector. `hint`: what its name
        is made from.
        """
        # Not isinstance(data, TensorProtocol): checks against a runtime protocol cost more than the rest of a match.
        if isinstance(data, np.ndarray | np.generic):
            array = np.asarray(data)
            tensor = ir.Tensor(array if array.flags.c_contiguous else array.copy())
        elif isinstance(data, list | tuple):
            tensor = ir.Tensor(np.asarray(data, np.int64))
        else:
            tensor = data
        if self.context.scope(self.match.root).function is not None:
            return self.node("Constant", [], {"value": tensor}, name=hint)
        name = self.context.index.fresh_name(hint)
        if isinstance(tensor, ir.Tensor):
            tensor.name = name
        value = ir.Value(name=name, shape=ir.Shape(tensor.shape.numpy()), type=ir.TensorType(tensor.dtype), const_value=tensor)
        value.meta[INFERRED] = True
        self.initializers.append(value)
        return value

    def node(
        self,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        attributes: Mapping[str, Any] | None = None,
        *,
        outputs: int = 1,
        domain: str = "",
        name: str | None = None,
        like: ir.Value | None = None,
    ) -> Any:
        """Make a node; returns its output value, or the list of them where `outputs` is not 1.

        A `domain` that the model does not import yet is imported, at version 1.

        `attributes`: name to plain value, tensor or `ir.Attr`; None values are left out. `like`: a value whose type
        and shape the first output takes (else they are inferred).
        """
        given = ir.convenience.convert_attributes({k: v for k, v in (attributes or {}).items() if v is not None})
        label = self.context.index.fresh_name(name or f"{self.match.root.name or op_type}")
        node = ir.Node(domain, op_type, inputs, given, num_outputs=outputs, name=label)
        for i, value in enumerate(node.outputs):
            value.name = self.context.index.fresh_name(label if i == 0 and outputs == 1 else f"{label}_{i}")
            value.meta[INFERRED] = True
        if like is not None:
            node.outputs[0].type, node.outputs[0].shape = like.type, like.shape
            if IN_FLOAT in like.meta:
                node.outputs[0].meta[IN_FLOAT] = like.meta[IN_FLOAT]
        self.created.append(node)
        return node.outputs[0] if outputs == 1 else list(node.outputs)

    def adopt(self, nodes: Sequence[ir.Node], initializers: Sequence[ir.Value] = ()) -> None:
        """Take nodes, in their order, and constants that were made elsewhere and stand in no graph yet; they are renamed."""
        fresh = self.context.index.fresh_name
        for value in initializers:
            value.name = fresh(value.name or "constant")
            value.meta[INFERRED] = True
            self.initializers.append(value)
        for node in nodes:
            node.name = fresh(node.name or f"{self.match.root.name or node.op_type}")
            for i, value in enumerate(node.outputs):
                value.name = fresh(node.name if len(node.outputs) == 1 else f"{node.name}_{i}")
                value.meta[INFERRED] = True
            self.created.append(node)

    def replace(self, old: ir.Value, new: ir.Value) -> None:
        """Let every consumer of `old`, and the graph's outputs, take `new` instead."""
        self.replacements.append((old, new))

    def set_input(self, node: ir.Node, index: int, value: ir.Value | None) -> None:
        """Change or add one input of an existing node. One before the root may take only what stands before it."""
        self.dropped_uses.append((node, index, value))

    def set_attribute(self, node: ir.Node, name: str, value: Any) -> None:
        """Set an attribute of an existing node, or remove it (`value` None)."""
        attribute = None if value is None else ir.convenience.convert_attributes({name: value})[0]
        self.updates.append((node, name, attribute))

    @property
    def empty(self) -> bool:
        """Whether nothing was stated that would change the graph."""
        return not (self.replacements or self.dropped_uses or self.updates)

    # --- carrying out -------------------------------------------------------------------------------------------

    def discard(self) -> None:
        """Undo the staging: new nodes let go of their inputs."""
        for node in self.created:
            release_inputs(node)

    def check(self) -> None:
        """Turn down, before anything changes, what would leave the graph invalid.

        Raises:
            Refuse: a graph output would lose its name, because its replacement cannot bear it.
        """
        if self.match.root.op_type != "Identity":
            return
        new_outputs = {v for n in self.created for v in n.outputs}
        for old, new in self.replacements:
            if old.is_graph_output() and new not in new_outputs and not self._can_rename(old, new):
                raise Refuse("it names a graph output whose source cannot bear that name")

    def commit(self) -> tuple[list[ir.Node], list[ir.Node]]:
        """Carry the changes out.

        Returns:
            The nodes made and the nodes whose inputs or attributes changed (consumers of what was replaced), and the
            nodes that were removed.
        """
        root = self.match.root
        graph = root.graph
        assert graph is not None
        index, shapes = self.context.index, self.context._shapes  # no inference for the sake of upkeep
        for value in self.initializers:
            graph.initializers.add(value)
        if self.created:
            graph.insert_before(root, self.created)
            for node in self.created:
                self.context.import_domain(root, node.domain)
                index.add(node)
                if shapes is not None and (node.outputs[0].shape is None or len(node.outputs) > 1):
                    shapes.infer(node)
            self.context.log.provenance(self.created, self.match.nodes or [root])
            _keep_metadata(root, self.created)
        touched: dict[ir.Node, None] = dict.fromkeys(self.created)
        orphans: list[ir.Node] = list(self.match.nodes)
        for node, name, attribute in self.updates:
            if attribute is None:
                node.attributes.pop(name, None)
            else:
                node.attributes[name] = attribute
            touched[node] = None
        let_go: list[ir.Value] = []
        for node, i, value in self.dropped_uses:
            if i >= len(node.inputs):
                node.resize_inputs(i + 1)
            previous = node.inputs[i]
            node.replace_input_with(i, value)
            touched[node] = None
            if previous is not None:
                touched.update(dict.fromkeys(_few_consumers(previous)))
                if previous.producer() is not None:
                    orphans.append(previous.producer())
                else:
                    let_go.append(previous)
        for old, new in self.replacements:
            touched.update(dict.fromkeys(usage.node for usage in old.uses()))
            self._replace(old, new)
        removed = remove_unused(orphans, self.context, touched)
        for value in (*self.initializers, *let_go):
            if value.is_initializer() and not is_used(value) and not value.is_graph_input():
                value.graph.initializers.pop(value.name)  # type: ignore[union-attr]
        return [n for n in touched if n.graph is not None], removed

    def _can_rename(self, old: ir.Value, new: ir.Value) -> bool:
        """Whether `new` may take the name of the graph output `old`."""
        producer = new.producer()
        return producer is not None and not new.is_graph_output() and producer.graph is old.graph

    def _replace(self, old: ir.Value, new: ir.Value) -> None:
        if old.is_graph_output():
            graph = old.graph
            if not self._can_rename(old, new):
                holder = ir.Node("", "Identity", [new], num_outputs=1, name=self.context.index.fresh_name(f"{old.name}/identity"))
                graph.insert_before(self.match.root, holder)
                self.context.index.add(holder)
                self.context.log.provenance([holder], [self.match.root])
                new = holder.outputs[0]
                new.meta[INFERRED] = True
                new.name = self.context.index.fresh_name(f"{old.name}/kept")
            _take_over(old, new, self.context)
            new.type, new.shape = (old.type or new.type), (old.shape if old.shape is not None else new.shape)
            if DECLARED in old.meta:
                new.meta[DECLARED] = old.meta[DECLARED]
            elif INFERRED not in old.meta and (old.type is not None or old.shape is not None):
                new.meta[DECLARED] = (old.type, old.shape)
        elif new.producer() in self.created and new.producer() is not None:
            _take_over(old, new, self.context)  # tools that look at inner values find them under their old names
        if new.shape is None and old.shape is not None:
            new.shape = old.shape
        if new.type is None:
            new.type = old.type
        old.replace_all_uses_with(new, replace_graph_outputs=True)


def _take_over(old: ir.Value, new: ir.Value, context: Context) -> None:
    name = old.name
    if name is None:
        return
    old.name = context.index.fresh_name(f"{name}/replaced")
    new.name = name


def _keep_metadata(root: ir.Node, created: Sequence[ir.Node]) -> None:
    if not created:
        return
    properties, text = root.metadata_props, root.doc_string
    for node in created:
        if properties and not node.metadata_props:
            node.metadata_props.update(properties)
        if text and not node.doc_string:
            node.doc_string = text


def _few_consumers(value: ir.Value) -> list[ir.Node]:
    """The consumers of a value that has few: a guard on the number of consumers may now pass."""
    return [usage.node for usage in value.uses()] if use_count(value) <= 2 else []


def remove_unused(nodes: Sequence[ir.Node], context: Context, touched: dict[ir.Node, None] | None = None) -> list[ir.Node]:
    """Remove those of `nodes` without a consumer, then what only they consumed; linear in what is removed.

    Nodes whose value is a graph output, and the initializers that become unused, are handled; a node is never removed
    for having no outputs.
    """
    removed: dict[ir.Node, None] = {}
    pending = list(nodes)
    index, shapes = context.index, context._shapes
    while pending:
        node = pending.pop()
        if node in removed or node.graph is None or not node.outputs or any(is_used(v) for v in node.outputs):
            continue
        subgraphs = _subgraphs(node)
        freed = release_inputs(node)
        for graph in subgraphs:
            freed.extend(_captures(graph))
            _release(graph, context)
        index.drop(node)
        if shapes is not None:
            shapes.forget(node)
        removed[node] = None
        for value in freed:
            if use_count(value):
                if touched is not None:
                    touched.update(dict.fromkeys(_few_consumers(value)))
            elif value.producer() is not None:
                pending.append(value.producer())
            elif value.is_initializer() and not value.is_graph_input() and not value.is_graph_output():
                value.graph.initializers.pop(value.name)
    by_graph: dict[ir.Graph, list[ir.Node]] = {}
    for node in removed:
        by_graph.setdefault(node.graph, []).append(node)
    for graph, gone in by_graph.items():
        graph.remove(gone)  # at once: each call walks the outputs of the graph
    return list(removed)


def _subgraphs(node: ir.Node) -> list[ir.Graph]:
    return [g for a in node.attributes.data.values() if a.type in _GRAPHS for g in attribute_graphs(a)]


_GRAPHS = (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)


def _within(graph: ir.Graph) -> list[ir.Graph]:
    """A graph and those nested in it; a graph that is a parameter of a function is not known here."""
    found = [graph]
    for inner in found:  # grows as it is walked
        found.extend(g for node in inner for g in _subgraphs(node))
    return found


def _captures(graph: ir.Graph) -> list[ir.Value]:
    """Values from outside that the nodes of a subgraph consume."""
    graphs = _within(graph)
    inside = set(graphs)
    return [v for g in graphs for n in g for v in n.inputs if v is not None and v.graph not in inside]


def _release(graph: ir.Graph, context: Context) -> None:
    """Let the nodes of a subgraph that goes away let go of what they consume."""
    for inner in _within(graph):
        context.index.scopes.pop(inner, None)
        for node in list(inner):
            context.index.drop(node)
            release_inputs(node)

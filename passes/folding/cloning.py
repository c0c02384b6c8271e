"""Copies of nodes with other inputs, names of their own, and the attributes that a caller gives."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from graphopt.rewriting import Context, Refuse, attribute_graphs


class Cloner:
    """Copies nodes of a function's body for one call.

    Attributes:
        values: what stands for each value of the original; None: an input that the call leaves out.
        made: the copies of nodes, those in subgraphs included.
    """

    def __init__(
        self, context: Context, values: dict[ir.Value, ir.Value | None], parameters: Mapping[str, ir.Attr], *, prefix: str,
        metadata: Mapping[str, str],
    ) -> None:
        self.values = values
        self.made: list[ir.Node] = []
        self._context = context
        self._parameters = parameters
        self._prefix = prefix
        self._metadata = dict(metadata)

    def node(self, node: ir.Node) -> ir.Node:
        """A copy of a node; what its inputs stand for must be known.

        Raises:
            Refuse: an attribute that the operator cannot do without is a parameter that the call leaves out.
        """
        attributes = [a for a in (self._attribute(node, a) for a in node.attributes.values()) if a is not None]
        copy = ir.Node(
            node.domain, node.op_type, [self.values.get(v, v) if v is not None else None for v in node.inputs], attributes,
            overload=node.overload, num_outputs=len(node.outputs), name=self._name(node.name or node.op_type), doc_string=node.doc_string,
            metadata_props={**self._metadata, **node.metadata_props},
        )
        for old, new in zip(node.outputs, copy.outputs):
            new.name = self._name(old.name) if old.name else ""
            new.metadata_props.update(old.metadata_props)
            self.values[old] = new
        self.made.append(copy)
        return copy

    def _attribute(self, node: ir.Node, attribute: ir.Attr) -> ir.Attr | None:
        if attribute.is_ref():
            given = self._parameters.get(attribute.ref_attr_name)
            if given is None:
                if node.op_type == "Constant":
                    raise Refuse(f"parameter {attribute.ref_attr_name} of the function is left out")
                return None
            if given.is_ref():
                return ir.RefAttr(attribute.name, given.ref_attr_name, given.type)
            return ir.Attr(attribute.name, given.type, given.value)
        graphs = attribute_graphs(attribute)
        if not graphs:
            return attribute
        copies = [self._graph(g) for g in graphs]
        return ir.Attr(attribute.name, attribute.type, copies[0] if attribute.type == ir.AttributeType.GRAPH else copies)

    def _graph(self, graph: ir.Graph) -> ir.Graph:
        inputs = [self._value(v) for v in graph.inputs]
        initializers = [self._value(v) for v in graph.initializers.values() if v not in self.values]
        nodes = [self.node(n) for n in graph]
        outputs = []
        for value in graph.outputs:
            output = self.values.get(value, value)
            if output is None:
                raise Refuse(f"a subgraph gives out an input of the function that the call leaves out ({value.name!r})")
            outputs.append(output)
        inside = {*inputs, *initializers, *(v for n in nodes for v in n.outputs)}
        for i, output in enumerate(outputs):
            if output not in inside:  # an outer value cannot be an output of the subgraph itself
                holder = ir.Node("", "Identity", [output], num_outputs=1, name=self._name("Identity"))
                holder.outputs[0].name = self._name("identity")
                self.made.append(holder)
                nodes.append(holder)
                outputs[i] = holder.outputs[0]
        return ir.Graph(inputs, outputs, nodes=nodes, initializers=initializers, name=graph.name, doc_string=graph.doc_string)

    def _value(self, value: ir.Value) -> ir.Value:
        copy = ir.Value(name=self._name(value.name or "value"), type=value.type, shape=value.shape, const_value=value.const_value)
        declared = value.meta.get("graphopt.declared")
        if copy.type is None and declared is not None:
            copy.type = declared[0]
        self.values[value] = copy
        return copy

    def _name(self, name: str) -> str:
        return self._context.index.fresh_name(f"{self._prefix}{name}")

"""Turning a region over: its operators made anew in the other layout, and Transposes where it meets the rest."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.model import DECLARED, INFERRED
from graphopt.rewriting import Context, constant_tensor, node_label, remove_unused

from .permutations import Perm, compose, inverse, is_identity, perm_of
from .regions import Region, is_shape, is_transpose


class Turning:
    """One region in the act of being turned over."""

    def __init__(self, context: Context, region: Region, seed: ir.Node) -> None:
        self._context, self._region, self._seed = context, region, seed
        self._turned: dict[ir.Value, ir.Value] = {}
        self._constants: dict[tuple[ir.Value, Perm, int], ir.Value] = {}
        self.made: list[ir.Node] = []

    def run(self) -> None:
        """Make the new operators, hand their values on, and remove the old ones."""
        region = self._region
        order = _topological(region)
        for node in order:
            self._remake(node)
        for node in order:
            for value in node.outputs:
                if value in self._turned:
                    self._hand_on(value)
        sources = [v.producer() for v in region.values if not region.makes(v)]
        remove_unused([*(n for n in sources if n is not None), *order], self._context)

    # --- within -------------------------------------------------------------------------------------------------

    def _remake(self, node: ir.Node) -> None:
        """The new operator, right before the old one."""
        flip = self._region.flips[node]
        graph = self._region.graph
        inputs: list[ir.Value | None] = list(node.inputs)
        for i, (value, perm) in enumerate(zip(node.inputs, flip.inputs)):
            if value is None or perm is None:
                continue
            if constant_tensor(value) is not None:
                inputs[i] = self._constant(value, perm, len(perm))
            else:
                inputs[i] = self._incoming(value)
        for i, data in sorted(flip.arguments.items()):
            inputs.extend([None] * (i + 1 - len(inputs)))
            tensor = ir.Tensor(np.asarray(data, np.int64) if isinstance(data, list) else np.ascontiguousarray(data))
            inputs[i] = self._initializer(tensor, f"{node_label(node)}/{i}")
        attributes: dict[str, Any] = {a.name: a for a in node.attributes.values()}
        attributes.update(flip.attributes)
        given = ir.convenience.convert_attributes({k: v for k, v in attributes.items() if v is not None})
        new = ir.Node("", flip.op_type or node.op_type, inputs, given, num_outputs=len(node.outputs), name=node.name)
        new.metadata_props.update(node.metadata_props)
        new.doc_string = node.doc_string
        graph.insert_before(node, new)
        self._enter(new, [node])
        for old, value, perm in zip(node.outputs, new.outputs, flip.outputs):
            self._describe(value, old, perm)
            if perm is None:
                self._succeed(old, value)
            else:
                value.name = self._context.index.fresh_name(f"{old.name}/turned")
                self._turned[old] = value

    def _incoming(self, value: ir.Value) -> ir.Value:
        """A value in the layout that the region wants it in."""
        found = self._turned.get(value)
        if found is not None:
            return found
        perm = self._region.values[value]
        producer = value.producer()
        source = value
        if producer is not None and is_transpose(producer) and producer.graph is self._region.graph:
            first = perm_of(self._context, producer)
            if first is not None and len(first) == len(perm):
                source, perm = producer.inputs[0], compose(first, perm)  # type: ignore[assignment]
        if not is_identity(perm):
            source = self._transpose(source, perm, producer, f"{value.name}/turned")
        self._turned[value] = source
        return source

    def _transpose(self, value: ir.Value, perm: Perm, behind: ir.Node | None, name: str) -> ir.Value:
        """A new Transpose, right behind the node `behind` or at the very start of the graph."""
        graph = self._region.graph
        node = ir.Node("", "Transpose", [value], ir.convenience.convert_attributes({"perm": perm}), num_outputs=1)
        node.name = self._context.index.fresh_name(f"{name}/transpose")
        if behind is not None and behind.graph is graph:
            graph.insert_after(behind, node)
        else:
            graph.insert_before(graph[0], node)
        node.outputs[0].name = self._context.index.fresh_name(name)
        self._describe(node.outputs[0], value, perm)
        self._enter(node, [self._seed])
        return node.outputs[0]

    def _constant(self, value: ir.Value, perm: Perm, rank: int) -> ir.Value:
        key = (value, perm, rank)
        if key not in self._constants:
            tensor = constant_tensor(value)
            assert tensor is not None
            array = tensor.numpy()
            array = array.reshape((1,) * (rank - array.ndim) + array.shape).transpose(perm)
            if len(tensor.shape) < rank and array.shape[0] == 1:
                array = array[0]  # as exporters write what is added to channels
            made = ir.Tensor(np.ascontiguousarray(array), dtype=tensor.dtype)
            self._constants[key] = self._initializer(made, f"{value.name}/turned")
        return self._constants[key]

    def _initializer(self, tensor: ir.Tensor, hint: str) -> ir.Value:
        name = tensor.name = self._context.index.fresh_name(hint)
        value = ir.Value(name=name, shape=ir.Shape(tensor.shape.numpy()), type=ir.TensorType(tensor.dtype), const_value=tensor)
        value.meta[INFERRED] = True
        self._region.graph.initializers.add(value)
        return value

    # --- to the outside ---------------------------------------------------------------------------------------------

    def _hand_on(self, old: ir.Value) -> None:
        """Give what lies outside of the region a value in the layout it had."""
        region, new = self._region, self._turned[old]
        perm = region.values[old]
        for usage in old.uses():
            node = usage.node
            if node in region.flips:
                continue  # goes
            if is_transpose(node) and node.graph is region.graph:
                second = perm_of(self._context, node)
                if second is not None and len(second) == len(perm):
                    self._join(node, new, compose(inverse(perm), second))
            elif is_shape(node) and node.graph is region.graph:
                self._reorder(node, new, inverse(perm))
        if any(u.node not in region.flips for u in old.uses()) or old.is_graph_output():
            back = self._transpose(new, inverse(perm), new.producer(), f"{old.name}/back")
            self._succeed(old, back)

    def _join(self, node: ir.Node, value: ir.Value, perm: Perm) -> None:
        """Let a Transpose behind the region do all that is left to do."""
        output = node.outputs[0]
        if not is_identity(perm):
            node.attributes["perm"] = ir.AttrInt64s("perm", perm)
            node.replace_input_with(0, value)
            return
        if output.is_graph_output():
            if value.is_graph_output() or value.is_graph_input() or value.is_initializer():
                value = self._named(value, node)
            self._succeed(output, value)
        else:
            output.replace_all_uses_with(value)
        remove_unused([node], self._context)

    def _named(self, value: ir.Value, before: ir.Node) -> ir.Value:
        """The same value, free to bear the name of a graph output."""
        node = ir.Node("", "Identity", [value], num_outputs=1, name=self._context.index.fresh_name(f"{node_label(before)}/identity"))
        self._region.graph.insert_before(before, node)
        node.outputs[0].name = self._context.index.fresh_name(f"{value.name}/named")
        self._describe(node.outputs[0], value, None)
        self._enter(node, [before])
        return node.outputs[0]

    def _reorder(self, node: ir.Node, value: ir.Value, back: Perm) -> None:
        """Shape of the new value, its elements put in the old order."""
        graph = self._region.graph
        shape = ir.Node("", "Shape", [value], num_outputs=1, name=node.name)
        graph.insert_before(node, shape)
        shape.outputs[0].name = self._context.index.fresh_name(f"{node.outputs[0].name}/turned")
        order = self._initializer(ir.Tensor(np.asarray(back, np.int64)), f"{node_label(node)}/order")
        gather = ir.Node("", "Gather", [shape.outputs[0], order], num_outputs=1)
        gather.name = self._context.index.fresh_name(f"{node_label(node)}/gather")
        graph.insert_before(node, gather)
        for new in (shape, gather):
            self._enter(new, [node])
            new.outputs[0].meta[INFERRED] = True
            new.outputs[0].type = ir.TensorType(ir.DataType.INT64)
            self._context.shapes.infer(new)
        self._succeed(node.outputs[0], gather.outputs[0])
        remove_unused([node], self._context)

    # --- names and notes ------------------------------------------------------------------------------------------------

    def _succeed(self, old: ir.Value, new: ir.Value) -> None:
        """Let `new` take the name, the declaration and the consumers of `old`."""
        name, old.name = old.name, self._context.index.fresh_name(f"{old.name}/replaced")
        new.name = name
        if DECLARED in old.meta:
            new.meta[DECLARED] = old.meta[DECLARED]
        elif INFERRED not in old.meta and (old.type is not None or old.shape is not None):
            new.meta[DECLARED] = (old.type, old.shape)
        if old.is_graph_output():
            new.type, new.shape = (old.type or new.type), (old.shape if old.shape is not None else new.shape)
        old.replace_all_uses_with(new, replace_graph_outputs=True)

    def _describe(self, value: ir.Value, like: ir.Value, perm: Perm | None) -> None:
        value.meta[INFERRED] = True
        value.type = like.type
        if like.shape is not None:
            value.shape = like.shape if perm is None else ir.Shape([like.shape.dims[a] for a in perm])

    def _enter(self, node: ir.Node, old: list[ir.Node]) -> None:
        self._context.index.add(node)
        self._context.log.provenance([node], old)
        self.made.append(node)


def _topological(region: Region) -> list[ir.Node]:
    """The operators of a region, producers first."""
    waiting = {n: len({v.producer() for v in n.inputs if v is not None and v.producer() in region.flips}) for n in region.flips}
    ready = [n for n, count in waiting.items() if count == 0]
    order = []
    while ready:
        node = ready.pop()
        order.append(node)
        for follower in dict.fromkeys(u.node for v in node.outputs for u in v.uses() if u.node in waiting):
            waiting[follower] -= 1
            if waiting[follower] == 0:
                ready.append(follower)
    return order

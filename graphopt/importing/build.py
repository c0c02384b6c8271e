"""One fx graph for each ONNX graph: a call of the table's function for each node.

Graphs nested in If, Loop and Scan become GraphModules of their own, registered in the module; what they use of the graphs
around them they take as further arguments. Constants of all graphs are registered once, in the outermost module.
"""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir
import torch
from onnx_ir.passes.common import InlinePass
from torch import fx

from graphopt.errors import InputError
from graphopt.importing import table, values, weights
from graphopt.model import subgraphs_of
from graphopt.rewriting.constants import constant_tensor

_DEFAULT = ("", "ai.onnx")
_GRAPHS = (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)


def build(model: ir.Model, name: str) -> fx.GraphModule:
    """The module of a model; ``name`` stands for it in messages. Changes the model (functions are inlined).

    Raises:
        InputError: some operators cannot be imported; the message lists them all.
    """
    if model.functions:
        try:
            InlinePass()(model)
        except Exception as error:
            raise InputError(f"{name}: its local functions cannot be inlined: {' '.join(str(error).split())}") from error
    return _Builder(model, name).module()


@dataclass(frozen=True)
class _Fault:
    node: ir.Node
    reason: str


class _Builder:
    def __init__(self, model: ir.Model, name: str) -> None:
        self.model, self.name = model, name
        self.versions = {("" if d in _DEFAULT else d): v for d, v in model.opset_imports.items()}
        self.root = torch.nn.Module()
        self.names = weights.Names()
        self.tensors: dict[str, str] = {}
        #: Constant -> its path in the root module, or the numbers that stand for it.
        self.constants: dict[ir.Value, str | values.Host] = {}
        self.faults: list[_Fault] = []

    def module(self) -> fx.GraphModule:
        graph = self.model.graph
        inputs = [v for v in graph.inputs if v.name not in graph.initializers]
        for value in inputs:
            if isinstance(value.type, ir.TensorType) and value.dtype == ir.DataType.STRING:
                raise InputError(f"{self.name}: input '{value.name}' holds strings, which torch has no tensors of")
        built = _Scope(self, None).build(graph, inputs, ())
        if self.faults:
            raise InputError(f"{self.name}: {self._unsupported()}")
        module = fx.GraphModule(self.root, built, class_name="ImportedModel")
        module.meta["onnx"] = {
            "inputs": [v.name for v in inputs],
            "outputs": [v.name for v in graph.outputs],
            "tensors": self.tensors,
        }
        return module.eval()

    def _unsupported(self) -> str:
        groups: dict[tuple[str, str, str], list[ir.Node]] = {}
        for fault in self.faults:
            groups.setdefault((fault.node.domain, fault.node.op_type, fault.reason), []).append(fault.node)
        lines = []
        for (domain, name, reason), nodes in groups.items():
            domain = domain if domain not in _DEFAULT else ""
            more = f" and {len(nodes) - 1} more" if len(nodes) > 1 else ""
            version = f"{domain or 'ai.onnx'} version {self.versions.get(domain, '?')}"
            lines.append(f"{_label(nodes[0])}{more}: {name} of {version}: {reason}")
        total = len(self.faults)
        return f"{total} node{'s' if total > 1 else ''} cannot be imported into torch: " + "; ".join(lines)

    def constant(self, value: ir.Value, tensor: ir.TensorProtocol) -> str | values.Host:
        """Registers a constant, the first time that it is asked for. Raises NotImportable."""
        found = self.constants.get(value)
        if found is None:
            if tensor.dtype == ir.DataType.STRING:
                raise values.NotImportable("a constant holds strings, which torch has no tensors of")
            found = weights.literal_of(tensor, value.uses())
            if found is None:
                data = weights.tensor_of(tensor)
                found = self.names.take(value.name or "constant")
                weights.put(self.root, found, data, parameter=weights.is_weight(data, value.uses()))
                self.tensors[value.name or found] = found
            self.constants[value] = found
        return found

    def child(self, module: fx.GraphModule) -> str:
        """Registers the module of a subgraph."""
        path = self.names.take("body")
        self.root.add_module(path, module)
        return path


class _Scope:
    """The fx graph of one ONNX graph."""

    def __init__(self, builder: _Builder, outer: _Scope | None) -> None:
        self.builder, self.outer = builder, outer
        self.graph = fx.Graph()
        self.made: dict[ir.Value, Any] = {}
        #: Values that may be Hosts when the module runs: results of functions that deal in them.
        self.loose: set[ir.Value] = set()
        self.attributes: dict[str, fx.Node] = {}

    def build(self, graph: ir.Graph, inputs: Iterable[ir.Value], captures: Iterable[ir.Value]) -> fx.Graph:
        taken: Counter[str] = Counter()
        for value in (*inputs, *captures):
            name = weights.identifier(value.name or "input")
            taken[name] += 1
            self.made[value] = self.graph.placeholder(name if taken[name] == 1 else f"{name}_{taken[name]}")
        for node in graph:
            try:
                self._node(node)
            except values.NotImportable as fault:
                self.builder.faults.append(_Fault(node, str(fault)))
                for output in node.outputs:
                    self.made[output] = None
        results = tuple(self._result(value) for value in graph.outputs)
        nested = self.outer is not None
        self.graph.output(results if nested or len(results) != 1 else results[0])
        return self.graph

    def value(self, value: ir.Value | None) -> Any:
        """The argument that stands for a value: an fx node, a Host, or None for an input that is left out."""
        if value is None or value.name == "":
            return None
        if value in self.made:
            return self.made[value]
        tensor = value.const_value if value.is_initializer() else constant_tensor(value)
        if tensor is None:
            raise values.NotImportable(f"its input '{value.name}' has no value")
        return self._constant(value, tensor)

    def _constant(self, value: ir.Value, tensor: ir.TensorProtocol) -> Any:
        found = self.builder.constant(value, tensor)
        if isinstance(found, values.Host):
            return found
        if self.outer is not None:  # constants live in the outermost module: a nested graph is handed them
            raise AssertionError("a nested graph asks for a constant that was not captured")
        if found not in self.attributes:
            self.attributes[found] = self._attribute(found)
        return self.attributes[found]

    def _attribute(self, path: str) -> fx.Node:
        # Nodes are only ever appended, and the owner of the path is no GraphModule yet: fx would warn of that.
        return self.graph.create_node("get_attr", path, (), {}, name=weights.identifier(path))

    def _result(self, value: ir.Value) -> Any:
        found = self.value(value)
        if isinstance(found, values.Host) or value in self.loose:
            return self.graph.call_function(table.result, (found,)) if self.outer is None else found
        return found

    def _node(self, node: ir.Node) -> None:
        domain = "" if node.domain in _DEFAULT else node.domain
        if domain == "" and node.op_type == "Constant":
            self._constant_node(node)
            return
        entry = table.find(domain, node.op_type, self.builder.versions.get(domain, 1))
        if entry is None:
            for nested in subgraphs_of(node):  # what is not supported there is to be listed as well
                _Scope(self.builder, self)._faults(nested)
            raise values.NotImportable("not supported")
        plain, graphs = _attributes(node, entry)
        arguments = [self.value(v) for v in node.inputs]
        while arguments and arguments[-1] is None:
            arguments.pop()
        if "outputs" in entry.special:
            plain["outputs"] = len(node.outputs)
        if graphs or "captures" in entry.special:
            self._nested(graphs, plain)
        elif entry.hosts and self._fold(node, entry, arguments, plain):
            return
        self._call(node, entry, arguments, plain)

    def _call(self, node: ir.Node, entry: table.Entry, arguments: list[Any], keywords: dict[str, Any]) -> None:
        first = next((v for v in node.outputs if v.name), None)
        name = weights.identifier(first.name if first is not None else node.op_type.lower())
        call = self.graph.create_node("call_function", entry.function, tuple(arguments), keywords, name=name)
        call.meta["onnx"] = (node.name or "", node.op_type)
        if not entry.several:
            if len([v for v in node.outputs if v.name]) > 1:
                raise values.NotImportable(f"{len(node.outputs)} outputs are not supported")
            results = [call]
        else:
            results = [self.graph.call_function(operator.getitem, (call, i)) if v.name else None for i, v in enumerate(node.outputs)]
        for value, result in zip(node.outputs, results, strict=False):
            if value.name:
                self.made[value] = result
                if entry.hosts:
                    self.loose.add(value)

    def _fold(self, node: ir.Node, entry: table.Entry, arguments: list[Any], keywords: dict[str, Any]) -> bool:
        """Does at once what works on numbers alone."""
        if not arguments or not all(a is None or values.is_host(a) for a in arguments):
            return False
        try:
            found = entry.function(*arguments, **keywords)
        except Exception:  # whatever is wrong with it shows where it always has: when the module runs
            return False
        found = found if entry.several else (found,)
        if not all(values.is_host(f) for f in found):
            return False
        self.made.update(zip(node.outputs, found, strict=False))
        return True

    def _constant_node(self, node: ir.Node) -> None:
        output = node.outputs[0]
        tensor = constant_tensor(output)
        if tensor is None and "sparse_value" in node.attributes:
            raise values.NotImportable("a sparse constant is not supported")
        if tensor is None:
            raise values.NotImportable("it has no value")
        if self.outer is None:
            self.made[output] = self._constant(output, tensor)
        elif output not in self.made:
            self.made[output] = self.builder.constant(output, tensor)

    def _nested(self, graphs: dict[str, Any], keywords: dict[str, Any]) -> None:
        bodies = [g for found in graphs.values() for g in (found if isinstance(found, list) else [found])]
        captured = list(dict.fromkeys(v for body in bodies for v in _captures(body)))
        outside = [(v, self._captured(v)) for v in captured]
        numbers = {v: a for v, a in outside if isinstance(a, values.Host)}
        passed = [(v, a) for v, a in outside if v not in numbers]
        for name, found in graphs.items():
            made = [self._body(g, [v for v, _ in passed], numbers) for g in (found if isinstance(found, list) else [found])]
            keywords[name] = made if isinstance(found, list) else made[0]
        keywords["captures"] = tuple(a for _, a in passed)

    def _captured(self, value: ir.Value) -> Any:
        """A value that a nested graph uses; a constant of the nested graph is one as well."""
        if value in self.made:
            return self.made[value]
        tensor = value.const_value if value.is_initializer() else constant_tensor(value)
        if tensor is not None and self.outer is None:
            return self._constant(value, tensor)
        return self.value(value)

    def _body(self, graph: ir.Graph, captures: list[ir.Value], numbers: dict[ir.Value, values.Host]) -> fx.Node:
        scope = _Scope(self.builder, self)
        scope.made.update(numbers)
        built = scope.build(graph, graph.inputs, captures)
        module = fx.GraphModule(self.builder.root, built, class_name="Body")
        path = self.builder.child(module)
        return self._attribute(path)

    def _faults(self, graph: ir.Graph) -> None:
        for node in graph:
            domain = "" if node.domain in _DEFAULT else node.domain
            known = (domain == "" and node.op_type == "Constant") or table.find(domain, node.op_type, self.builder.versions.get(domain, 1))
            if not known:
                self.builder.faults.append(_Fault(node, "not supported"))
            for nested in subgraphs_of(node):
                self._faults(nested)


def _attributes(node: ir.Node, entry: table.Entry) -> tuple[dict[str, Any], dict[str, Any]]:
    """The node's attributes as Python values, and its subgraphs. Raises NotImportable."""
    plain: dict[str, Any] = {}
    graphs: dict[str, Any] = {}
    for attribute in node.attributes.values():
        if attribute.is_ref():
            raise values.NotImportable(f"its attribute '{attribute.name}' refers to one of a function")
        if attribute.name not in entry.attributes:
            raise values.NotImportable(f"its attribute '{attribute.name}' is not supported")
        if attribute.type in _GRAPHS:
            graphs[attribute.name] = list(attribute.value) if attribute.type == ir.AttributeType.GRAPHS else attribute.value
        else:
            plain[attribute.name] = _plain(attribute)
    reason = entry.refuse(plain) if entry.refuse is not None else None
    if reason is not None:
        raise values.NotImportable(reason)
    return plain, graphs


def _plain(attribute: ir.Attr) -> Any:
    if attribute.type == ir.AttributeType.TENSOR:
        tensor = attribute.as_tensor()
        dtype = weights.torch_dtype(tensor.dtype)
        if tensor.size > values.LIMIT:
            raise values.NotImportable(f"its attribute '{attribute.name}' is a large tensor")
        return values.host_of(weights.tensor_of(tensor), dtype)
    if attribute.type in (ir.AttributeType.INTS, ir.AttributeType.FLOATS, ir.AttributeType.STRINGS):
        return list(attribute.value)
    if attribute.type in (ir.AttributeType.INT, ir.AttributeType.FLOAT, ir.AttributeType.STRING):
        return attribute.value
    raise values.NotImportable(f"its attribute '{attribute.name}' is of a kind that is not supported")


def _captures(graph: ir.Graph) -> Iterator[ir.Value]:
    """Values that a graph and those in it use and do not make, and their constants, which live outside as well."""
    made: set[ir.Value] = set(graph.inputs)
    for value in graph.initializers.values():
        if value not in made:
            yield value
    for node in graph:
        for value in node.inputs:
            if value is not None and value not in made:
                yield value
        if node.op_type == "Constant" and node.domain in _DEFAULT and constant_tensor(node.outputs[0]) is not None:
            yield node.outputs[0]
        for nested in subgraphs_of(node):
            yield from (v for v in _captures(nested) if v not in made)
        made.update(node.outputs)
    for value in graph.outputs:
        if value not in made:
            yield value


def _label(node: ir.Node) -> str:
    name = node.name or next((v.name for v in node.outputs if v.name), "")
    return f"node '{name}'"

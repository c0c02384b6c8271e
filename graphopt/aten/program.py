"""A torch program being rewritten: its graph, and what the placeholders of the graph stand for."""

from __future__ import annotations

import copy
import operator
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import fx
from torch.export import ExportedProgram
from torch.export.graph_signature import (
    ConstantArgument,
    ExportGraphSignature,
    InputKind,
    InputSpec,
    OutputKind,
    OutputSpec,
    SymIntArgument,
    TensorArgument,
)

# The order in which torch.export lists what a graph is given.
_ORDER = [InputKind.TOKEN, InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR, InputKind.CUSTOM_OBJ, InputKind.USER_INPUT]
_HELD = frozenset({InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR})
_MUTATIONS = frozenset({OutputKind.BUFFER_MUTATION, OutputKind.PARAMETER_MUTATION} if hasattr(OutputKind, "PARAMETER_MUTATION") else {
    OutputKind.BUFFER_MUTATION})  # fmt: skip


class Program:
    """The graph of an exported program, free to be changed; the program that it was made from stays as it is.

    Tensors are shared with that program and never written to.

    Attributes:
        graph: the main graph; graphs of control flow are opaque to rewrites.
        specs: what each placeholder stands for.
        mutated: names of buffers (and parameters) that a call changes.
        origins: for each tensor that was made, the names of those it was made of, in the original program.
        meta: what passes note for their next run.
    """

    def __init__(self, exported: ExportedProgram) -> None:
        self.exported = exported
        signature = exported.graph_signature
        self.graph = fx.Graph(owning_module=exported.graph_module)
        nodes: dict[fx.Node, fx.Node] = {}
        result = self.graph.graph_copy(exported.graph, val_map=nodes)
        old_output = exported.graph.output_node()
        self.output = self.graph.output(result)
        self.output.meta = copy.copy(old_output.meta)
        by_name = {node.name: new for node, new in nodes.items() if node.op == "placeholder"}
        _keep_names(nodes)
        self.specs: dict[fx.Node, InputSpec] = {by_name[s.arg.name]: s for s in signature.input_specs}
        self.output_specs: list[OutputSpec] = list(signature.output_specs)
        self.mutated = {s.target for s in self.output_specs if s.kind in _MUTATIONS}
        self.tensors: dict[str, torch.Tensor] = {**exported.constants, **exported.state_dict}
        self.origins: dict[str, tuple[str, ...]] = {}
        self.meta: dict[str, Any] = {}
        self.fake_mode = _fake_mode(self.graph)

    # --- tensors ------------------------------------------------------------------------------------------------

    def constant(self, node: Any) -> torch.Tensor | None:
        """The tensor that a placeholder stands for, where no call changes it; None for everything else."""
        spec = self.specs.get(node) if isinstance(node, fx.Node) else None
        if spec is None or spec.kind not in _HELD or spec.target in self.mutated:
            return None
        found = self.tensors.get(spec.target)
        return found if isinstance(found, torch.Tensor) else None

    def is_parameter(self, node: fx.Node) -> bool:
        """Whether a placeholder stands for a parameter (else a buffer, a constant or an input)."""
        spec = self.specs.get(node)
        return spec is not None and spec.kind is InputKind.PARAMETER

    def name_of(self, node: fx.Node) -> str | None:
        """The name, in the state dict, of the tensor that a placeholder stands for."""
        spec = self.specs.get(node)
        return None if spec is None or spec.kind not in _HELD else spec.target

    def add_constant(self, tensor: torch.Tensor, name: str, *, parameter: bool, made_of: Iterable[fx.Node] = ()) -> fx.Node:
        """A placeholder for a new tensor, under `name` or, where that is taken, one made from it.

        Args:
            tensor: of any shape and type; kept, not copied.
            name: dotted, as in a state dict.
            parameter: whether it is a parameter or a buffer.
            made_of: placeholders of the tensors that it was computed from.
        """
        name = self._fresh(name)
        kind = InputKind.PARAMETER if parameter else InputKind.BUFFER
        if parameter and not isinstance(tensor, torch.nn.Parameter):
            tensor = torch.nn.Parameter(tensor, requires_grad=False)
        first = next(iter(self.graph.nodes))
        with self.graph.inserting_before(first):
            node = self.graph.placeholder(f"{'p' if parameter else 'b'}_{name.replace('.', '_')}")
        node.target = node.name
        node.meta["val"] = self.fake_mode.from_tensor(tensor, static_shapes=True)
        persistent = None if parameter else True
        self.specs[node] = InputSpec(kind, TensorArgument(name=node.name), name, persistent)
        self.tensors[name] = tensor
        old: dict[str, None] = {}
        for source in made_of:
            source_name = self.name_of(source)
            if source_name is not None:
                old.update(dict.fromkeys(self.origins.get(source_name, (source_name,))))
        self.origins[name] = tuple(old)
        return node

    def drop_constant(self, node: fx.Node, *, equal: fx.Node | None = None) -> None:
        """Remove a placeholder that has no users, and its tensor. Buffers that a call changes, and inputs, stay.

        `equal` is a placeholder of an equal tensor that stands for both from now on.
        """
        spec = self.specs.get(node)
        if spec is None or spec.kind not in _HELD or node.users or spec.target in self.mutated:
            return
        kept = self.name_of(equal) if equal is not None else None
        if kept is not None and spec.target is not None:
            names = (*self.origins.get(kept, (kept,)), *self.origins.get(spec.target, (spec.target,)))
            self.origins[kept] = tuple(dict.fromkeys(names))
        del self.specs[node]
        self.graph.erase_node(node)
        self.tensors.pop(spec.target or "", None)
        self.origins.pop(spec.target or "", None)

    def tied(self) -> dict[fx.Node, fx.Node]:
        """For each placeholder whose tensor is that of another one with users, too: the other one."""
        first: dict[Any, fx.Node] = {}
        found = {}
        held = [(node, self.constant(node)) for node in self.specs]
        for node, tensor in sorted(((n, t) for n, t in held if t is not None), key=lambda pair: not pair[0].users):
            if not tensor.numel() or tensor.layout is not torch.strided:
                continue
            other = first.setdefault((tensor.data_ptr(), tensor.dtype, tensor.device, tensor.shape, tensor.stride()), node)
            if other is not node:
                found[node] = other
        return found

    def _fresh(self, name: str) -> str:
        if name not in self.tensors and not self._is_prefix(name):
            return name
        count = 1
        while f"{name}_{count}" in self.tensors:
            count += 1
        return f"{name}_{count}"

    def _is_prefix(self, name: str) -> bool:
        module = self.exported.graph_module
        return "." not in name and hasattr(module, name) and not isinstance(getattr(module, name), torch.Tensor)

    # --- the result ---------------------------------------------------------------------------------------------

    @property
    def parameters(self) -> dict[str, tuple[str, ...]]:
        """New name to the old names it was made of, for each parameter and buffer of the result; kept ones by their own."""
        held = (s.target for s in self.specs.values() if s.kind in _HELD)
        return {name: self.origins.get(name, (name,)) for name in held if name is not None}

    def export(self) -> ExportedProgram:
        """The program as it is now; it shares tensors with the original.

        The graph is taken over as a copy, so that rewriting may go on.
        """
        self._order_placeholders()
        graph = fx.Graph(owning_module=self.exported.graph_module)
        nodes: dict[fx.Node, fx.Node] = {}
        graph.output(graph.graph_copy(self.graph, val_map=nodes)).meta = copy.copy(self.output.meta)
        _keep_names(nodes)
        specs = [
            InputSpec(spec.kind, _argument(node, spec.arg), spec.target, spec.persistent)
            for node, spec in self.specs.items()
        ]
        results = self.output.args[0]
        outputs = [
            OutputSpec(spec.kind, _argument(value, spec.arg), spec.target) for value, spec in zip(results, self.output_specs, strict=True)
        ]
        module = fx.GraphModule(self.exported.graph_module, graph)
        module.meta.update(self.exported.graph_module.meta)
        names = {s.target for s in specs if s.kind in _HELD}
        # What the graph does not use (a counter of batches) stays in the state dict unless a pass removed it.
        untouched = {n for n in self.exported.state_dict if n in self.tensors}
        persistent = {s.target for s in specs if s.kind is InputKind.PARAMETER or (s.kind is InputKind.BUFFER and s.persistent)}
        state = {n: self.tensors[n] for n in self.tensors if n in persistent or (n in untouched and n not in self.exported.constants)}
        constants = {n: t for n, t in self.exported.constants.items() if n in names or not isinstance(t, torch.Tensor)}
        return ExportedProgram(
            root=module,
            graph=module.graph,
            graph_signature=ExportGraphSignature(specs, outputs),
            state_dict=state,
            range_constraints=copy.copy(self.exported.range_constraints),
            module_call_graph=copy.deepcopy(self.exported.module_call_graph),
            example_inputs=self.exported.example_inputs,
            constants=constants,
            verifiers=self.exported.verifiers,
        )

    def _order_placeholders(self) -> None:
        """Parameters, buffers, constants, inputs: the order that torch.export keeps."""
        rank = {kind: i for i, kind in enumerate(_ORDER)}
        position = {node: i for i, node in enumerate(self.graph.nodes) if node.op == "placeholder"}
        # New placeholders were put in front; the original ones keep their order, and new ones follow in that of their making.
        original = {s.arg.name: i for i, s in enumerate(self.exported.graph_signature.input_specs)}
        count = len(original)
        ordered = sorted(
            self.specs, key=lambda n: (rank.get(self.specs[n].kind, len(rank)), original.get(n.name, count), -position[n])
        )
        last = None
        for node in ordered:
            if last is None:
                first = next(iter(self.graph.nodes))
                if first is not node:
                    first.prepend(node)
            else:
                last.append(node)
            last = node
        self.specs = {node: self.specs[node] for node in ordered}


def operator_of(node: fx.Node) -> str:
    """How passes name the operator of a node: "aten.conv2d.default", "getitem", or the kind of node ("placeholder")."""
    if node.op != "call_function":
        return node.op
    if node.target is operator.getitem:
        return "getitem"
    if isinstance(node.target, torch._ops.OpOverload):
        return str(node.target)
    return getattr(node.target, "__name__", str(node.target))


def count_nodes(program: Program) -> int:
    """Operators of the main graph and of the graphs of control flow; reading one of several results is none."""
    total, todo = 0, [program.graph]
    module = program.exported.graph_module
    while todo:
        graph = todo.pop()
        for node in graph.nodes:
            if node.op == "call_function" and node.target is not operator.getitem:
                total += 1
            elif node.op == "get_attr":
                inner = getattr(module, str(node.target), None) if graph is program.graph else None
                if isinstance(inner, fx.GraphModule):
                    todo.append(inner.graph)
    return total


def _keep_names(copies: Mapping[fx.Node, fx.Node]) -> None:
    """Give the copies of nodes the names of the originals, of which the signature speaks.

    A copy is named anew, and so is what is renamed: an argument called `input` or `max`, as Python's own functions are,
    would not be found again. torch.export names arguments in this way as well.
    """
    for old, new in copies.items():
        if new.name != old.name:
            new.name = old.name


def _argument(value: Any, like: Any) -> Any:
    """The argument of a signature for a value of the graph."""
    if not isinstance(value, fx.Node):
        return ConstantArgument(name=getattr(like, "name", ""), value=value)
    if isinstance(like, ConstantArgument):
        held = value.meta.get("val")
        return TensorArgument(name=value.name) if isinstance(held, torch.Tensor) else SymIntArgument(name=value.name)
    changed = copy.copy(like)
    changed.name = value.name
    return changed


def _fake_mode(graph: fx.Graph) -> Any:
    from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

    for node in graph.nodes:
        if isinstance(value := node.meta.get("val"), FakeTensor):
            return value.fake_mode
    return FakeTensorMode()

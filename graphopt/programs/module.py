"""An exported program as a module that is quick to call.

`ExportedProgram.module()` takes arguments apart and puts results together through trees, looks every parameter up by its
name and checks its guards in Python: some 0.2 ms a call, more than a small model takes. Here the graph is called as it
stands, with the parameters at hand, and what is checked of the inputs is what they must be: types, fixed sizes, and
sizes that are the same. Activations write in place where they may.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import fx, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, OutputKind
from torch.utils import _pytree as pytree

from graphopt.programs.in_place import written_in_place
from graphopt.programs.torch_side import quiet

_HELD = (InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR)
_CHANGES = (OutputKind.BUFFER_MUTATION, OutputKind.USER_INPUT_MUTATION)


def as_module(program: ExportedProgram) -> nn.Module:
    """The program as a module: parameters and buffers under their names, called as the module that was exported.

    A program that holds what this does not know of (tokens of effects, custom objects) comes as torch makes it.
    """
    signature = program.graph_signature
    known = all(spec.kind in (*_HELD, InputKind.USER_INPUT) for spec in signature.input_specs)
    known = known and all(spec.kind in (*_CHANGES, OutputKind.USER_OUTPUT) for spec in signature.output_specs)
    if known:
        try:
            return ProgramModule(program)
        except KeyError:  # a name that a module has a use of its own for
            pass
    with quiet():
        return written_in_place(program.module())


class ProgramModule(nn.Module):
    """An exported program. It has one mode, that in which it was exported.

    A call raises TypeError where the arguments are not nested as they were at export, and ValueError where a tensor has
    another type or size than the program takes.
    """

    def __init__(self, program: ExportedProgram) -> None:
        super().__init__()
        self.training = False
        signature = program.graph_signature
        graph = fx.GraphModule(program.graph_module, copy.deepcopy(program.graph_module.graph))
        # In a tuple it is no submodule, and adds nothing to the state dict.
        self._graphs = (written_in_place(graph),)
        self._places: list[str] = []
        changed = set(signature.buffers_to_mutate.values())
        for spec in signature.input_specs:
            if spec.kind in _HELD:
                assert spec.target is not None
                tensor = program.state_dict[spec.target] if spec.target in program.state_dict else program.constants[spec.target]
                if spec.target in changed:
                    tensor = tensor.detach().clone()  # the program's own stays as it was
                self._keep(spec.target, tensor, spec.kind is InputKind.PARAMETER, bool(spec.persistent))
                self._places.append(spec.target)
        for name, tensor in program.state_dict.items():  # what the graph does not use, such as counters of batches
            if name not in self._places:
                self._keep(name, tensor, isinstance(tensor, nn.Parameter), True)
        self._held: list[torch.Tensor] = []
        self._refresh()
        self.register_load_state_dict_post_hook(lambda module, _: module._refresh())
        places = {name: i for i, name in enumerate(self._places)}
        inputs = {name: i for i, name in enumerate(signature.user_inputs) if isinstance(name, str)}
        #: What is written back after a call: whether into an input, and which one.
        self._changes = [
            (False, places[spec.target]) if spec.kind is OutputKind.BUFFER_MUTATION else (True, inputs[spec.target])
            for spec in signature.output_specs
            if spec.kind in _CHANGES
        ]
        self._in_spec, self._out_spec = program.call_spec.in_spec, program.call_spec.out_spec
        self._flat = _leaves_alone(self._in_spec)
        self._result = _result_of(self._out_spec)
        self._names = [spec.arg.name for spec in signature.input_specs if spec.kind is InputKind.USER_INPUT]
        self._checks = _checks(program, self._names)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        inputs = args if self._flat == len(args) and not kwargs else self._flattened(args, kwargs)
        sizes: dict[str, int] = {}
        for place, dtype, dims, constant in self._checks:
            value = inputs[place]
            if dtype is None:
                if value != constant:
                    raise ValueError(f"input '{self._names[place]}' was {constant!r} when the program was exported, and is {value!r}")
                continue
            if value.dtype is not dtype:
                raise ValueError(f"input '{self._names[place]}' is {value.dtype}, not {dtype}")
            shape = value.shape
            if len(shape) != len(dims):
                raise ValueError(f"input '{self._names[place]}' has {len(shape)} dimensions, not {len(dims)}")
            for axis, dim in enumerate(dims):
                if dim is None:
                    continue
                expected = dim if isinstance(dim, int) else sizes.setdefault(dim, shape[axis])
                if shape[axis] != expected:
                    raise ValueError(f"input '{self._names[place]}' has size {shape[axis]} in dimension {axis}, not {expected}")
        found = self._graphs[0].forward(*self._held, *inputs)
        if self._changes:
            with torch.no_grad():
                for (given, place), value in zip(self._changes, found, strict=False):
                    (inputs if given else self._held)[place].copy_(value)
            found = found[len(self._changes) :]
        return self._result(found)

    def _flattened(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
        known = list(_children(self._in_spec)[1].context or [])
        ordered = {name: kwargs[name] for name in known if name in kwargs} | kwargs
        leaves, spec = pytree.tree_flatten((args, ordered))
        if spec != self._in_spec:
            raise TypeError(f"the program was exported with {_shown(self._in_spec)}, and is called with {_shown(spec)}")
        return leaves

    def _keep(self, name: str, tensor: torch.Tensor, parameter: bool, persistent: bool) -> None:
        owner, *_, attribute = self._owner(name), *name.split(".")
        if parameter:
            owner.register_parameter(attribute, tensor if isinstance(tensor, nn.Parameter) else nn.Parameter(tensor, False))
        else:
            owner.register_buffer(attribute, tensor, persistent=persistent)

    def _owner(self, name: str) -> nn.Module:
        owner: nn.Module = self
        for part in name.split(".")[:-1]:
            if part not in owner._modules:
                owner.add_module(part, nn.Module())
            owner = owner._modules[part]  # type: ignore[assignment]
        return owner

    def _refresh(self) -> None:
        held = {**dict(self.named_parameters(remove_duplicate=False)), **dict(self.named_buffers(remove_duplicate=False))}
        self._held = [held[name] for name in self._places]

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> nn.Module:
        """Moving a module, or changing its type, gives it other buffers."""
        made = super()._apply(fn, recurse)
        self._refresh()
        return made


def _children(spec: Any) -> list[Any]:
    children = getattr(spec, "children", None)  # older torch has a list
    return list(children()) if callable(children) else list(spec.children_specs)


def _leaves_alone(spec: Any) -> int | None:
    """How many tensors are taken, where they are taken by position and nothing is nested."""
    args, kwargs = _children(spec)
    return len(_children(args)) if not kwargs.num_leaves and all(one.is_leaf() for one in _children(args)) else None


def _result_of(spec: Any) -> Callable[[Any], Any]:
    """What makes the result of a flat list of outputs."""
    if spec.is_leaf():
        return lambda found: found[0]
    if spec.type in (tuple, list) and all(one.is_leaf() for one in _children(spec)):
        kind = spec.type
        return lambda found: found if kind is tuple and isinstance(found, tuple) else kind(found)
    return lambda found: pytree.tree_unflatten(list(found), spec)


def _checks(program: ExportedProgram, names: list[str]) -> list[tuple[int, Any, tuple[int | str | None, ...], Any]]:
    """Of each input: its place, type, and for each dimension the size, the symbol of it, or None for what follows from others.

    Of an input that is no tensor, its place and what it was at export.
    """
    values = {node.name: node.meta.get("val") for node in program.graph.nodes if node.op == "placeholder"}
    found: list[tuple[int, Any, tuple[int | str | None, ...], Any]] = []
    for place, name in enumerate(names):
        value = values.get(name)
        if isinstance(value, torch.Tensor):
            found.append((place, value.dtype, tuple(_dim(size) for size in value.shape), None))
        elif value is None or isinstance(value, int | float | bool | str):
            found.append((place, None, (), value))
    return found


def _dim(size: Any) -> int | str | None:
    if isinstance(size, int):
        return size
    expression = size.node.expr
    return str(expression) if expression.is_Symbol else int(expression) if expression.is_Integer else None


def _shown(spec: Any) -> str:
    args, kwargs = _children(spec)
    named = f" and {', '.join(map(str, kwargs.context))}" if kwargs.num_leaves else ""
    return f"{len(_children(args))} positional arguments{named}, {spec.num_leaves} values in all"

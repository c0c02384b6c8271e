"""One call of `torch.export`, and what its result says of the inputs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from graphopt.programs.torch_side import forget_dispatch, preserved, quiet

if TYPE_CHECKING:
    import sympy
    import torch
    from torch.export import ExportedProgram


#: torch's own way to say that a size has no upper bound.
_UNBOUNDED = 2**62


class ExportError(Exception):
    """`torch.export` failed; the cause is what it, or the module, raised."""


@dataclass(frozen=True)
class Axis:
    """An axis of an input of a program that is not of one size: its size in torch's symbols."""

    input: str
    axis: int
    size: sympy.Expr


def export(
    module: torch.nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], shapes: Any, *, strict: bool = False
) -> ExportedProgram:
    """`torch.export.export`, without gradients and quietly. The module stays as it is.

    Raises:
        ExportError: it failed; the cause is why.
    """
    import torch

    forget_dispatch()
    try:
        with preserved(module), quiet():
            return torch.export.export(module, args, dict(kwargs), dynamic_shapes=shapes, strict=strict)
    except Exception as error:  # torch raises many kinds, and whatever the module's own code raises
        raise ExportError from error


def export_either_way(module: torch.nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], shapes: Any) -> ExportedProgram:
    """Export; by strict tracing, which reads Python's bytecode and so gets through numpy and the like, where that alone helps.

    Raises:
        ExportError: neither helps; the cause is why the first failed.
    """
    try:
        return export(module, args, kwargs, shapes)
    except ExportError as failure:
        try:
            return export(module, args, kwargs, shapes, strict=True)
        except ExportError:
            raise failure from failure.__cause__


def functional(program: ExportedProgram) -> ExportedProgram:
    """The program without in-place operators: what they wrote to buffers is an output of the graph. Composites stay.

    Raises:
        ExportError: torch cannot do without one of them.
    """
    import torch

    forget_dispatch()
    try:
        with torch.no_grad(), quiet():
            return program.run_decompositions({})
    except Exception as error:
        raise ExportError from error


def tensor_inputs(program: ExportedProgram) -> list[torch.fx.Node]:
    """The placeholders of the tensors that a caller gives, in their order."""
    import torch

    given = set(program.graph_signature.user_inputs)
    return [
        node for node in program.graph.nodes
        if node.op == "placeholder" and node.name in given and isinstance(node.meta.get("val"), torch.Tensor)
    ]  # fmt: skip


def dynamic_axes(program: ExportedProgram) -> list[Axis]:
    """The axes of tensor inputs that the program takes at more than one size."""
    found = []
    for node in tensor_inputs(program):
        for axis, size in enumerate(node.meta["val"].shape):
            expression = expression_of(size)
            if expression is not None:
                found.append(Axis(node.name, axis, expression))
    return found


def expression_of(size: Any) -> sympy.Expr | None:
    """The expression of a symbolic size; None for one that is a number, or that torch found to be one."""
    if isinstance(size, int):
        return None
    expression = size.node.expr
    return expression if expression.free_symbols else None


def range_of(program: ExportedProgram, symbol: sympy.Symbol) -> tuple[int, int | None]:
    """The sizes that a symbol may have, as torch knows them. None: no upper bound."""
    known = program.range_constraints.get(symbol)
    if known is None:
        return 0, None
    low, high = (int(end) if isinstance(end, int) or end.is_Integer else None for end in (known.lower, known.upper))
    return max(low or 0, 0), None if high is None or high >= _UNBOUNDED else high


def inputs_of(program: ExportedProgram) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The example inputs of a program; where it has none, seeded ones of its sizes: normal numbers, zeros for integers."""
    import torch
    from torch.utils import _pytree as pytree

    if program.example_inputs is not None:
        args, kwargs = program.example_inputs
        return tuple(args), dict(kwargs)
    generator = torch.Generator().manual_seed(0)
    leaves: list[Any] = []
    placeholders = {node.name: node for node in program.graph.nodes if node.op == "placeholder"}
    for name in program.graph_signature.user_inputs:
        value = placeholders[name].meta.get("val") if isinstance(name, str) and name in placeholders else name
        if isinstance(value, torch.Tensor):
            shape = [_some_size(program, size) for size in value.shape]
            drawn = torch.randn(shape, generator=generator) if value.is_floating_point() else torch.zeros(shape)
            value = drawn.to(value.dtype).to(value.device)
        leaves.append(value)
    return pytree.tree_unflatten(leaves, program.call_spec.in_spec)


def _some_size(program: ExportedProgram, size: Any) -> int:
    """A size in the range of a symbolic one: 4, or the end of the range that is nearest to it."""
    expression = expression_of(size)
    if expression is None:
        return int(size)
    known = {str(symbol): symbol for symbol in program.range_constraints}
    chosen = {}
    for symbol in expression.free_symbols:
        low, high = range_of(program, known[str(symbol)]) if str(symbol) in known else (0, None)
        chosen[symbol] = min(max(4, low), high if high is not None else max(4, low))
    return int(expression.subs(chosen))

"""What a user may settle about a model's inputs right after loading: sizes, and weights that are no inputs."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence

import onnx_ir as ir

from graphopt.errors import OptionError
from graphopt.formats._carried import KEY, Carried, carried, dims_of
from graphopt.model import DECLARED, Model, iter_graphs


def fix_shapes(model: Model, shapes: Mapping[str, Sequence[int]]) -> None:
    """Gives inputs fixed sizes. Where a symbolic dimension gets one, it gets it everywhere in the model.

    A name that stands on several axes of one input (PaddleOCR's exporter names all of them alike) relates nothing.

    To have :meth:`Model.fresh` do it again, go through :meth:`Model.prepare`.

    Raises:
        OptionError: an unknown input, another rank, another size than the model declares or than the same symbol has
            elsewhere, or a size below 1.
    """
    sizes: dict[str, int] = {}
    values = {value.name: value for value in model.graph.graph.inputs}
    fixed: dict[str, list[int]] = {}
    loose = _loose_names(values.values())
    for name, dims in shapes.items():
        fixed[name] = [int(dim) for dim in dims]
        if name not in values:
            known = ", ".join(values) or "none"
            raise OptionError(f"shape of '{name}': the model has no such input (inputs: {known})")
        bad = [dim for dim in fixed[name] if dim < 1]
        if bad:
            raise OptionError(f"shape of '{name}': {bad[0]} is not a size; every dimension must be 1 or more")
        declared = values[name].shape
        if declared is None:
            continue
        if len(declared) != len(fixed[name]):
            raise OptionError(f"shape of '{name}': {len(fixed[name])} dimensions given, the model has {len(declared)}")
        for axis, (old, new) in enumerate(zip(declared, fixed[name], strict=True)):
            if isinstance(old, int):
                if old != new and old > 0:  # some exporters write -1 or 0 for a size that is not known
                    raise OptionError(f"shape of '{name}': dimension {axis} is {old} in the model, not {new}")
            elif old.value is not None and old.value not in loose and sizes.setdefault(old.value, new) != new:
                raise OptionError(f"shape of '{name}': '{old.value}' cannot be both {sizes[old.value]} and {new}")
    # In two steps, so that an error leaves the model as it was.
    for name, dims in fixed.items():
        values[name].shape = ir.Shape(dims)
    cache: dict[str | None, int | ir.SymbolicDim] = {}
    graphs = list(iter_graphs(model.graph))
    functions = {id(function.graph) for function in model.graph.functions.values()}
    for graph in graphs if sizes else ():
        if id(graph) in functions:
            break  # a function's symbols are its own
        for value in (*graph.inputs, *graph.initializers.values(), *(out for node in graph for out in node.outputs)):
            value.shape = _sized(value.shape, sizes, cache)
            if DECLARED in value.meta:
                kind, shape = value.meta[DECLARED]
                value.meta[DECLARED] = (kind, _sized(shape, sizes, cache))
    _fix_contract(model, fixed, sizes)


def _loose_names(inputs: Iterable[ir.Value]) -> set[str]:
    """Names that do not say that dimensions are equal: placeholders, and what exporters write on all axes of one input."""
    loose = {"", "?", "None"}
    for value in inputs:
        names = [dim.value for dim in value.shape or () if not isinstance(dim, int) and dim.value is not None]
        loose.update(name for name in names if names.count(name) > 1)
    return loose


def fix_initializers(model: Model) -> None:
    """Turns initializers that a caller may override (graph inputs, from IR version 4 on) into constants.

    To have :meth:`Model.fresh` do it again, go through :meth:`Model.prepare`.
    """
    inputs = model.graph.graph.inputs
    inputs[:] = [value for value in inputs if not value.is_initializer()]


def _sized(shape: ir.Shape | None, sizes: dict[str, int], cache: dict) -> ir.Shape | None:
    """The shape with what is known put in, the shape itself where that changes nothing."""
    if shape is None or all(isinstance(dim, int) for dim in shape):
        return shape
    dims = []
    for dim in shape:
        if not isinstance(dim, int):
            if dim.value not in cache:
                cache[dim.value] = _evaluated(dim, sizes)
            dim = cache[dim.value]
        dims.append(dim)
    denotations = [shape.get_denotation(axis) for axis in range(len(dims))]
    return ir.Shape(dims, denotations=denotations)


def _evaluated(dim: ir.SymbolicDim, sizes: dict[str, int]) -> int | ir.SymbolicDim:
    if dim.value is None or dim.value in sizes:
        return sizes.get(dim.value, dim)
    if not any(symbol in dim.value for symbol in sizes):
        return dim
    try:  # torch's exporter writes expressions, "2*batch"
        size = dim.evaluate(sizes)
    except Exception:  # whatever the parser says: a name is any text, and one that is no expression is just a name
        return dim
    return size if isinstance(size, int) and size > 0 else dim


def _fix_contract(model: Model, fixed: dict[str, list[int]], sizes: dict[str, int]) -> None:
    """Brings what will be written of inputs and outputs up to date, in copies: other models share what was read."""
    kept: Carried = copy.copy(carried(model.graph))
    for attribute in "inputs", "outputs":
        infos = {name: type(info).FromString(info.SerializeToString()) for name, info in getattr(kept, attribute).items()}
        for name, info in infos.items():
            for axis, dim in enumerate(dims_of(info)):
                if attribute == "inputs" and name in fixed:
                    dim.dim_value = fixed[name][axis]
                elif dim.HasField("dim_param"):
                    size = _evaluated(ir.SymbolicDim(dim.dim_param), sizes)
                    if isinstance(size, int):
                        dim.dim_value = size
            tensor = info.type.tensor_type if info.type.HasField("tensor_type") else None
            if attribute == "inputs" and name in fixed and tensor is not None and not tensor.HasField("shape"):
                tensor.shape.SetInParent()
                for size in fixed[name]:
                    tensor.shape.dim.add(dim_value=size)
        setattr(kept, attribute, infos)
    model.graph.graph.meta[KEY] = kept

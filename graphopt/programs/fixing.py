"""Inputs that choose what a model does (a sample rate, a flag), fixed at one value: the model is then what it does at it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from graphopt.errors import InputError, OptionError
from graphopt.model import Model, iter_graphs
from graphopt.verification import Sample
from graphopt.verification.samples import fed_inputs

#: What they give depends on sizes, and on no element of what they are given.
_SIZES = frozenset({"Shape", "Size"})


def fix_inputs(model: Model, values: Mapping[str, np.ndarray]) -> Model:
    """The model without these inputs, each a constant now. The one given stays as it is.

    values: as `read_values` gives them.
    """
    fixed = model.fresh()

    def fix(model: Model) -> None:
        graph = model.graph.graph
        for value in [v for v in graph.inputs if v.name in values]:
            graph.inputs.remove(value)
            value.const_value = ir.tensor(values[value.name], name=value.name)
            value.shape = ir.Shape(values[value.name].shape)
            graph.initializers.add(value)

    fixed.prepare(fix)
    return fixed


def read_values(model: Model, texts: Mapping[str, str]) -> dict[str, np.ndarray]:
    """The arrays that "16000", "true" or "1,2,3" stand for as values of inputs.

    Raises:
        OptionError: there is no such input, or it is no tensor of numbers; or the text does not fit its type or size.
    """
    inputs = {v.name: v for v in fed_inputs(model.graph)}
    found = {}
    for name, text in texts.items():
        value = inputs.get(name)
        if value is None:
            raise OptionError(f"--fix {name}: no input of the model; it has {', '.join(map(repr, inputs)) or 'none'}")
        if len(inputs) == len(texts):
            raise OptionError("--fix: an input must be left for the program to take")
        found[name] = _array(value, text)
    return found


def _array(value: ir.Value, text: str) -> np.ndarray:
    what, dtype = f"--fix {value.name}={text}", value.dtype
    known = isinstance(value.type, ir.TensorType) and dtype is not None
    if not known or not (dtype.is_floating_point() or dtype.is_integer() or dtype == ir.DataType.BOOL):
        raise OptionError(f"{what}: the input is no tensor of numbers")
    dims = list(value.shape) if value.shape is not None else []
    if any(not isinstance(d, int) for d in dims):
        raise OptionError(f"{what}: a size of the input is free: give it with --shape")
    kind = dtype.numpy()
    parts = [p.strip() for p in text.split(",")]
    try:
        numbers = [_number(p, kind) for p in parts]
    except (ValueError, OverflowError):
        raise OptionError(f"{what}: expected a number of type {dtype.name.lower()}, or several separated by commas") from None
    count = int(np.prod(dims, dtype=np.int64))
    if len(numbers) not in (1, count):
        raise OptionError(f"{what}: the input has {count} elements, not {len(numbers)}")
    return np.asarray(numbers * count if len(numbers) == 1 else numbers, kind).reshape(dims)


def _number(text: str, kind: np.dtype) -> bool | int | float:
    if kind == np.bool_:
        known = {"true": True, "1": True, "false": False, "0": False}
        if text.lower() not in known:
            raise ValueError(text)
        return known[text.lower()]
    if np.issubdtype(kind, np.integer):
        limits = np.iinfo(kind)
        if not limits.min <= (number := int(text)) <= limits.max:
            raise OverflowError(text)
        return number
    return float(text)


def deciding_inputs(model: Model) -> list[str]:
    """The inputs of one element on which alone, beside sizes and constants, the condition of an If or a Loop depends."""
    single = {v for v in fed_inputs(model.graph) if v.shape is not None and all(d == 1 for d in v.shape)}
    found: dict[str, None] = {}
    for graph in iter_graphs(model.graph):
        for node in graph:
            place = {"If": 0, "Loop": 1}.get(node.op_type)
            if place is None or node.domain not in ("", "ai.onnx") or place >= len(node.inputs) or node.inputs[place] is None:
                continue
            reached = _reached(node.inputs[place], single)
            found.update(dict.fromkeys(reached or ()))
    return [v.name for v in model.graph.graph.inputs if v.name in found]


def _reached(value: ir.Value, single: set[ir.Value]) -> set[str] | None:
    """The names of the inputs that a value is computed of; None where one of them is not among `single`."""
    names: set[str] = set()
    seen, todo = {value}, [value]
    while todo:
        at = todo.pop()
        node = at.producer()
        if node is None:
            if at in single:
                names.add(at.name)
            elif not at.is_initializer() or at.is_graph_input():
                return None
        elif node.op_type not in _SIZES:
            if node.op_type in ("If", "Loop", "Scan"):
                return None
            todo += [v for v in node.inputs if v is not None and v not in seen]
            seen.update(todo)
    return names


def with_values(samples: Iterable[Sample], values: Mapping[str, np.ndarray]) -> list[Sample]:
    """The samples with these values added, as the model takes them that these inputs were not fixed in."""
    return [replace(s, feeds={**s.feeds, **values}) for s in samples]


def having(samples: Sequence[Sample], values: Mapping[str, np.ndarray]) -> list[Sample]:
    """The samples in which the inputs have these values.

    Raises:
        InputError: none has.
    """
    found = [s for s in samples if all(np.array_equal(s.feeds[name], value) for name, value in values.items())]
    if not found:
        said = " and ".join(f"{name}={told(value)}" for name, value in values.items())
        raise InputError(f"no sample has {said}, at which the program is to be fixed")
    return found


def told(value: np.ndarray) -> str:
    """A value as it is written on the command line."""
    return ",".join(str(v).lower() if isinstance(v, bool) else str(v) for v in np.asarray(value).reshape(-1).tolist())

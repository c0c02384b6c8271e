"""Operators evaluated on arrays, with the results that the ONNX standard and ONNX Runtime give, bit by bit.

What could differ in a bit (NaN among the operands of a maximum, a float cast out of the range of an integer type, an
integer division by zero) raises `Unsure` instead.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

Arrays = Sequence[np.ndarray | None]


class Unsure(Exception):
    """The value cannot be foretold bit by bit, or would be too large; the message says why."""


class Elsewhere(Unsure):
    """A kind of arithmetic that is not done here at all."""


class Call:
    """One operator with the values of its inputs.

    Attributes:
        limit: bytes that the result may take.
    """

    def __init__(self, node: ir.Node, inputs: Arrays, opset: int, limit: int) -> None:
        self.node = node
        self.inputs = inputs
        self.opset = opset
        self.limit = limit

    def attribute(self, name: str, default: Any = None) -> Any:
        """The value of an attribute, or `default`."""
        found = self.node.attributes.get(name)
        return default if found is None else found.value

    def given(self, index: int) -> np.ndarray | None:
        """Input number `index`, or None where it is left out."""
        return self.inputs[index] if index < len(self.inputs) else None

    def ints(self, name: str, index: int) -> list[int] | None:
        """Integers that are an attribute in some opsets and an input in others."""
        found = self.attribute(name)
        if found is not None:
            return [found] if isinstance(found, int) else list(found)
        array = self.given(index)
        return None if array is None else [int(x) for x in array.reshape(-1)]

    def room(self, shape: Sequence[int], dtype: np.dtype) -> None:
        """Stop before an array is made that is larger than the limit."""
        if any(size < 0 for size in shape):
            raise Unsure("a size would be negative")
        size = math.prod(shape) * dtype.itemsize
        if size > self.limit:
            raise Unsure(f"an intermediate value would take {size:,} bytes")


def evaluate(call: Call) -> list[np.ndarray]:
    """The outputs of an operator of `EXACT`.

    Raises:
        Unsure: the result cannot be foretold bit by bit.
    """
    with np.errstate(all="ignore"):
        found = EXACT[call.node.op_type](call)
    return list(found) if isinstance(found, tuple) else [np.asarray(found)]


# --- movement -------------------------------------------------------------------------------------------------------


def _shape(call: Call) -> np.ndarray:
    return np.asarray(call.inputs[0].shape, np.int64)[call.attribute("start", 0) : call.attribute("end")]


def _reshape(call: Call) -> np.ndarray:
    data = call.inputs[0]
    target = call.ints("shape", 1)
    if not call.attribute("allowzero", 0):
        target = [data.shape[i] if size == 0 else size for i, size in enumerate(target)]
    if -1 in target and 0 in target:
        raise Unsure("its target has a size of 0 and one to work out")
    return data.reshape(target)


def _flatten(call: Call) -> np.ndarray:
    data, axis = call.inputs[0], call.attribute("axis", 1)
    axis += data.ndim if axis < 0 else 0
    return data.reshape(math.prod(data.shape[:axis]), -1 if data.size else math.prod(data.shape[axis:]))


def _transpose(call: Call) -> np.ndarray:
    return call.inputs[0].transpose(call.attribute("perm"))


def _squeeze(call: Call) -> np.ndarray:
    axes = call.ints("axes", 1)
    return np.squeeze(call.inputs[0], None if axes is None else tuple(axes))


def _unsqueeze(call: Call) -> np.ndarray:
    return np.expand_dims(call.inputs[0], tuple(call.ints("axes", 1)))


def _concat(call: Call) -> np.ndarray:
    return np.concatenate(call.inputs, call.attribute("axis", 1))


def _gather(call: Call) -> np.ndarray:
    data, indices, axis = call.inputs[0], call.inputs[1], call.attribute("axis", 0)
    size = data.shape[axis]
    if indices.size and (indices.min() < -size or indices.max() >= size):
        raise Unsure("an index lies outside the axis")
    call.room((*data.shape[:axis], *indices.shape, *data.shape[axis:][1:]), data.dtype)
    return np.take(data, indices, axis)


def _slice(call: Call) -> np.ndarray:
    data = call.inputs[0]
    starts, ends = call.ints("starts", 1), call.ints("ends", 2)
    axes = call.ints("axes", 3) or list(range(len(starts)))
    steps = call.ints("steps", 4) or [1] * len(starts)
    index = [slice(None)] * data.ndim
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        index[axis] = slice(*_bounds(start, end, step, data.shape[axis]))
    return data[tuple(index)]


def _bounds(start: int, end: int, step: int, size: int) -> tuple[int | None, int | None, int]:
    if step < 0:
        start = max(start, -size)  # a start before the first element is the first, where Python takes none
    first, last, step = slice(start, end, step).indices(size)
    return first, None if last < 0 else last, step


def _split(call: Call) -> tuple[np.ndarray, ...]:
    data, axis, count = call.inputs[0], call.attribute("axis", 0), len(call.node.outputs)
    sizes = call.ints("split", 1)
    if sizes is None:
        chunk = -(-data.shape[axis] // count)
        sizes = [max(0, min(chunk, data.shape[axis] - i * chunk)) for i in range(count)]
    if sum(sizes) != data.shape[axis] or len(sizes) != count:
        raise Unsure("its parts do not make up the axis")
    return tuple(np.split(data, np.cumsum(sizes)[:-1].tolist(), axis))


def _expand(call: Call) -> np.ndarray:
    data = call.inputs[0]
    shape = np.broadcast_shapes(data.shape, tuple(call.ints("shape", 1)))
    call.room(shape, data.dtype)
    return np.broadcast_to(data, shape)


def _tile(call: Call) -> np.ndarray:
    data, repeats = call.inputs[0], call.ints("repeats", 1)
    if len(repeats) != data.ndim:
        raise Unsure("it repeats other axes than its input has")
    call.room([size * count for size, count in zip(data.shape, repeats)], data.dtype)
    return np.tile(data, repeats)


def _constant_of_shape(call: Call) -> np.ndarray:
    fill = call.attribute("value")
    value = np.zeros(1, np.float32) if fill is None else fill.numpy()
    shape = tuple(int(size) for size in call.inputs[0].reshape(-1))
    call.room(shape, value.dtype)
    return np.broadcast_to(value.reshape(()), shape)


def _range(call: Call) -> np.ndarray:
    start, limit, step = (v.reshape(()).item() for v in call.inputs)
    dtype = call.inputs[0].dtype
    if dtype.kind != "i" or step == 0:
        raise Elsewhere("its steps are not whole numbers")
    call.room((len(range(start, limit, step)),), dtype)
    return np.arange(start, limit, step, dtype)


def _where(call: Call) -> np.ndarray:
    condition, x, y = call.inputs
    call.room(np.broadcast_shapes(condition.shape, x.shape, y.shape), x.dtype)
    return np.where(condition, x, y)


def _cast(call: Call) -> np.ndarray:
    data = call.inputs[0]
    to = ir.DataType(call.attribute("to")).numpy() if call.node.op_type == "Cast" else call.inputs[1].dtype
    call.room(data.shape, to)
    if data.dtype == to:
        return data
    if not (_plain(data.dtype) and _plain(to)):
        raise Elsewhere(f"casts from {data.dtype} to {to} are left to the runtime")
    if data.dtype.kind == "f" and to.kind in "iu":
        low, high = np.iinfo(to).min, np.iinfo(to).max
        if data.size and not (np.isfinite(data).all() and (np.trunc(data) >= low).all() and (data < float(high) + (to.itemsize < 8)).all()):
            raise Unsure("a value does not fit the type that it is cast to")
    if data.dtype.kind == "f" and to.kind == "f" and np.isnan(data).any():
        raise Unsure("it is not a number")
    result = data.astype(to)
    if to == np.float16 and not np.array_equal(result, data.astype(np.float32).astype(to)):
        raise Unsure("it would be rounded once or twice")
    return result


def _plain(dtype: np.dtype) -> bool:
    return dtype.kind in "iub" or dtype in (np.float16, np.float32, np.float64)


# --- arithmetic -----------------------------------------------------------------------------------------------------


def _binary(function: Callable[[np.ndarray, np.ndarray], np.ndarray], kinds: str = "iuf"):
    def run(call: Call) -> np.ndarray:
        result = call.inputs[0]
        for other in call.inputs[1:]:
            if result.dtype.kind not in kinds or result.dtype == np.float16 or other.dtype != result.dtype:
                raise Elsewhere(f"arithmetic on {result.dtype} is left to the runtime")
            call.room(np.broadcast_shapes(result.shape, other.shape), result.dtype)
            result = function(result, other)
        return result

    return run


def _compare(function: Callable[[np.ndarray, np.ndarray], np.ndarray], kinds: str = "iufb"):
    def run(call: Call) -> np.ndarray:
        a, b = call.inputs
        if a.dtype.kind not in kinds or a.dtype != b.dtype:
            raise Elsewhere(f"comparison of {a.dtype} is left to the runtime")
        call.room(np.broadcast_shapes(a.shape, b.shape), np.dtype(bool))
        return function(a, b)

    return run


def _divide(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    if a.dtype.kind == "f":
        return np.true_divide(a, b)
    if (b == 0).any() or (a.dtype.kind == "i" and ((b == -1) & (a == np.iinfo(a.dtype).min)).any()):
        raise Unsure("a divisor is 0")
    quotient = a // b
    return quotient + ((quotient < 0) & (quotient * b != a)).astype(a.dtype)  # towards zero


def _modulo(call: Call) -> np.ndarray:
    a, b = call.inputs
    if a.dtype.kind not in "iu" or a.dtype != b.dtype or (b == 0).any():
        raise Elsewhere("a remainder of this kind is left to the runtime")
    return np.fmod(a, b) if call.attribute("fmod", 0) else np.mod(a, b)


def _ordered(function: Callable[[np.ndarray, np.ndarray], np.ndarray]):
    def run(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        for array in (a, b):
            if array.dtype.kind == "f" and (np.isnan(array).any() or ((array == 0) & np.signbit(array)).any()):
                raise Elsewhere("the order of its values is left to the runtime")
        return function(a, b)

    return run


def _unary(function: Callable[[np.ndarray], np.ndarray], kinds: str = "if"):
    def run(call: Call) -> np.ndarray:
        data = call.inputs[0]
        if data.dtype.kind not in kinds or data.dtype == np.float16 or (data.dtype.kind == "f" and np.isnan(data).any()):
            raise Elsewhere(f"{call.node.op_type} of {data.dtype} is left to the runtime")
        return function(data)

    return run


def _reduce(function: Callable[..., np.ndarray]):
    def run(call: Call) -> np.ndarray:
        data = call.inputs[0]
        if data.dtype not in (np.int32, np.int64) or not data.size:
            raise Elsewhere(f"reduction of {data.dtype} is left to the runtime")
        axes = call.ints("axes", 1)
        if not axes and call.attribute("noop_with_empty_axes", 0):
            return data
        return function(data, axis=tuple(axes) if axes else None, keepdims=bool(call.attribute("keepdims", 1))).astype(data.dtype)

    return run


EXACT: dict[str, Callable[[Call], Any]] = {
    "Abs": _unary(np.abs),
    "Add": _binary(np.add),
    "And": _compare(np.logical_and, "b"),
    "Cast": _cast,
    "CastLike": _cast,
    "Ceil": _unary(np.ceil, "f"),
    "Concat": _concat,
    "ConstantOfShape": _constant_of_shape,
    "Div": _binary(_divide),
    "Equal": _compare(np.equal),
    "Expand": _expand,
    "Flatten": _flatten,
    "Floor": _unary(np.floor, "f"),
    "Gather": _gather,
    "Greater": _compare(np.greater),
    "GreaterOrEqual": _compare(np.greater_equal),
    "Identity": lambda call: call.inputs[0],
    "Less": _compare(np.less),
    "LessOrEqual": _compare(np.less_equal),
    "Max": _binary(_ordered(np.maximum)),
    "Min": _binary(_ordered(np.minimum)),
    "Mod": _modulo,
    "Mul": _binary(np.multiply),
    "Neg": _unary(np.negative),
    "Not": lambda call: np.logical_not(call.inputs[0]),
    "Or": _compare(np.logical_or, "b"),
    "Range": _range,
    "ReduceMax": _reduce(np.max),
    "ReduceMin": _reduce(np.min),
    "ReduceProd": _reduce(np.prod),
    "ReduceSum": _reduce(np.sum),
    "Reshape": _reshape,
    "Shape": _shape,
    "Size": lambda call: np.asarray(call.inputs[0].size, np.int64),
    "Slice": _slice,
    "Split": _split,
    "Sqrt": _unary(np.sqrt, "f"),
    "Squeeze": _squeeze,
    "Sub": _binary(np.subtract),
    "Sum": _binary(np.add),
    "Tile": _tile,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
    "Where": _where,
    "Xor": _compare(np.logical_xor, "b"),
}
"""Operators that are evaluated here. Opsets 7 and later; earlier ones broadcast in their own way."""

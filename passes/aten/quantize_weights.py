"""`quantize-weights` on ATen graphs: int8 buffers, multiplied by their scales when the program runs.

Or read as they are by torch's kernel, where that is the faster of the two. It was measured on a CPU with AVX-512, against the
product of float weights, made of integers before it or not, of 768 x 768 and larger: on up to 16 rows of bfloat16 it takes 0.3 to
1.8 times what the float product takes and a tenth to two thirds of making the weights first; on one row of float32 three quarters
of the latter. On more rows, and of float16, it is slower than both, up to a hundred times.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from graphopt.rewriting import Refuse

from ..quantization.arithmetic import pack_array
from ..quantization.quantize_weights import summary
from .linear import CONVOLUTION, CONVS, LINEAR, PRODUCTS, TRANSPOSED
from .rows import called_on_rows, known_rows

if TYPE_CHECKING:
    import numpy as np
    from torch.fx import Node

    from graphopt.aten import AtenContext, AtenEditor

_EMBEDDING = "aten.embedding.default"
_TYPES = ("float32", "float64", "float16", "bfloat16")
_KERNEL = "aten._weight_int8pack_mm.default"
_MOST_ROWS = {"bfloat16": 16, "float32": 1}  # up to which it is faster than making the weights numbers


def run(context: AtenContext, *, min_elements: int, by_channel: bool, min_snr: float) -> None:
    """Quantize every weight that operators use as one and nothing else, once for all of them."""
    from graphopt.aten.driver import apply

    done: list[tuple[float, str, int, int]] = []
    for weight in [n for n in context.program.specs if context.is_constant(n)]:
        places = [(user, _place(user, weight, context)) for user in weight.users]
        shape = context.static_shape(weight)
        if shape is None or len(shape) < 2 or context.dtype(weight) not in _TYPES or _count(shape) < min_elements:
            continue
        if all(place is None for _, place in places):
            continue
        users = sorted(weight.users)
        result: list[tuple[float, str, int, int]] = []

        def quantize(first: Node, editor: AtenEditor, weight: Node = weight, result: list[Any] = result) -> None:
            result.append(_quantize(weight, first, editor, by_channel, min_snr))

        before = context.log.applied
        apply(context, users[0], quantize)
        if context.log.applied > before:
            done += result
    if done:
        context.log.note(summary(done))


def _quantize(weight: Node, first: Node, editor: AtenEditor, by_channel: bool, min_snr: float) -> tuple[float, str, int, int]:
    """State the weight anew in front of its first user: its signal-to-noise ratio, name, and bytes before and after."""
    context = editor.context
    name = context.program.name_of(weight) or weight.name
    if context.is_output(weight):
        raise Refuse(f"the weight {name!r} is also an output of the program")
    users = list(weight.users)
    gathered = context.op(first) == _EMBEDDING
    for user in users:
        if _place(user, weight, context) is None or (context.op(user) == _EMBEDDING) != gathered:
            raise Refuse(f"the weight {name!r} is also taken by {user.name!r}")
    array = context.required_float(weight, "the weight")
    axis = _place(first, weight, context) if by_channel else None
    packed, scale, snr = pack_array(array, axis)
    size, before = packed.nbytes + scale.nbytes, context.weight_bytes(weight)
    context.require(size < before, "the scales would take more than the weight saves")
    context.require(snr >= min_snr, f"the signal-to-noise ratio would be {snr:.1f} dB")
    stored = editor.constant(packed, f"{name}_int8", made_of=[weight], parameter=False)
    if axis == 0 and all(_kernel_pays(user, context) for user in users):
        factor = editor.constant(scale, f"{name}_scale", made_of=[weight], parameter=False)
        for user in users:
            editor.root = user
            editor.replace(user, called_on_rows(editor, user, lambda x: editor.call(_KERNEL, [x, stored, factor])))
        editor.root = first
        return snr, name, before, size
    factor = editor.constant(_along(scale, axis, array.ndim), f"{name}_scale", made_of=[weight], parameter=False)
    if not gathered:
        editor.replace(weight, editor.call("aten.mul.Tensor", [stored, factor]))
        return snr, name, before, size
    for user in users:  # of a table, only the rows that are read are made numbers again
        given = list(context.arguments(user).values())
        editor.root = user
        rows = editor.call(_EMBEDDING, [stored, *given[1:]])
        editor.replace(user, editor.call("aten.mul.Tensor", [rows, factor]))
    editor.root = first
    return snr, name, before, size


def _kernel_pays(user: Node, context: AtenContext) -> bool:
    """Whether an operator is a linear layer on so few rows that torch's kernel for int8 weights is the faster way."""
    if context.op(user) != LINEAR:
        return False
    x = context.arguments(user)["input"]
    rows = known_rows(x, context)
    return rows is not None and rows <= _MOST_ROWS.get(context.dtype(x) or "", 0)


def _along(scale: np.ndarray, axis: int | None, rank: int) -> np.ndarray:
    """Scales of shape [channels] as they are broadcast with a weight."""
    if axis is None:
        return scale.reshape(1)
    return scale.reshape([-1, *[1] * (rank - 1 - axis)])


def _place(user: Node, weight: Node, context: AtenContext) -> int | None:
    """The axis of a weight along which the channels of an operator lie; None: it is no weight of that operator."""
    operator = context.op(user)
    given = context.arguments(user) if operator.startswith("aten.") else {}
    rank = context.rank(weight) or 0
    if operator in (*CONVS, *TRANSPOSED, CONVOLUTION, LINEAR, _EMBEDDING):
        if given["weight"] is not weight or sum(n is weight for n in given.values()) > 1:
            return None
        if operator == _EMBEDDING:
            return rank - 1
        if operator in TRANSPOSED or given.get("transposed", False):
            return 1 if given["groups"] == 1 else 0
        return 0
    if operator in PRODUCTS:
        x, y = (given["mat1"], given["mat2"]) if "mat1" in given else list(given.values())[:2]
        if given.get("self") is weight and "mat1" in given:
            return None
        if (x is weight) == (y is weight):
            return None
        return rank - 2 if x is weight else rank - 1
    return None


def _count(shape: tuple[int, ...]) -> int:
    total = 1
    for size in shape:
        total *= size
    return total

"""`merge-affine-chains` on ATen graphs: several constant scales and shifts in a row are one of each."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from graphopt.rewriting import Refuse

from ..algebra.arithmetic import composed_affine
from .affine import STEPS, Step, guard_runtime_fusion, read_step
from .linear import folded_name

if TYPE_CHECKING:
    from torch.fx import Node

    from graphopt.aten import AtenContext, AtenEditor

_LONGEST = 32
_LARGE = 1 << 16  # elements of a constant that is larger than those it is made from
_TYPES = {"float16": np.dtype(np.float16), "float32": np.dtype(np.float32), "float64": np.dtype(np.float64)}


def run(context: AtenContext) -> None:
    """Merge every chain."""
    from graphopt.aten import drive

    drive(context, STEPS, _merge)


def chain_to(value: Node, context: AtenContext) -> list[Step]:
    """The steps that end at `value`, the first first, each used by the next alone; of numbers of one type."""
    found: list[Step] = []
    while len(found) < _LONGEST and (step := read_step(value, context)) is not None:
        if found and list(value.users) != [found[-1].node]:
            break
        found.append(step)
        value = step.x
    return found[::-1]


def _merge(root: Node, editor: AtenEditor) -> None:
    context = editor.context
    users = list(root.users)
    if len(users) == 1 and (behind := read_step(users[0], context)) is not None and behind.x is root:
        return  # the chain goes on
    steps = chain_to(root, context)
    if len(steps) < 2 or _least(steps) >= len(steps) or context.dtype(root) not in _TYPES:
        return
    x = steps[0].x
    guard_runtime_fusion(x, context)
    context.require(context.shape(x) == context.shape(root), "a constant widens the value")
    rank = context.rank(x) or 0
    given = [int(np.prod(step.dims(context), dtype=np.int64)) for step in steps]
    context.require(all(len(step.dims(context)) <= rank for step in steps), "a constant widens the value")
    mul, shift = (_scalar(a) for a in composed_affine([step.affine(context) for step in steps], _TYPES[context.dtype(root)]))
    context.require(max(mul.size, shift.size) <= max([_LARGE, *given]), "the merged constants would be large")
    _state(steps, mul, shift, editor)


def _least(steps: list[Step]) -> int:
    """How many operators a chain needs at the least; a sign goes into a subtraction."""
    kinds = {step.kind for step in steps}
    return max(bool(kinds & {"Mul", "Div"}) + bool(kinds & {"Add", "Sub"}), 1)


def _scalar(array: np.ndarray) -> np.ndarray:
    """A scalar where all elements are equal."""
    return array.flat[0].reshape(()) if array.size and (array == array.flat[0]).all() else array


def _state(steps: list[Step], mul: np.ndarray, shift: np.ndarray, editor: AtenEditor) -> None:
    root, y = steps[-1].node, steps[0].x
    sign = -1 if (mul == -1).all() else 1
    scales, shifts = bool((mul != sign).any()), bool(shift.any())
    if max(scales + shifts, 1) >= len(steps):
        return
    if not scales and not shifts and sign == 1:
        raise Refuse("the constants cancel, which may be meant to round")

    def constant(array: np.ndarray, kinds: tuple[str, ...]) -> Node | float:
        if not array.ndim:
            return float(array)
        tensors = [t for step in steps for t in step.tensors()]
        named = next((t for step in steps if step.kind in kinds for t in step.tensors()), tensors[0])
        name = folded_name(editor.context.program.name_of(named) or "constant")
        return editor.constant(np.ascontiguousarray(array), name, made_of=tensors)

    if scales:
        y = editor.call("aten.mul.Tensor", [y, constant(mul, ("Mul", "Div"))], like=root)
        sign = 1
    if shifts and sign == -1:
        total = constant(shift, ("Add", "Sub"))
        operator, operands = ("aten.sub.Tensor", [total, y]) if shift.ndim else ("aten.rsub.Scalar", [y, total])
        y = editor.call(operator, operands, like=root)
    elif shifts:
        y = editor.call("aten.add.Tensor", [y, constant(shift, ("Add", "Sub"))], like=root)
    elif not scales:
        y = editor.call("aten.neg.default", [y], like=root)
    editor.replace(root, y)

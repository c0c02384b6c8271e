"""Several constant scales and shifts in a row are one scale and one shift."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from graphopt.rewriting import Context, Editor, Effect, Match, Pattern, Refuse, Rewrite, constant_tensor, guards, op, same_domain, use_count

from ..arguments import element_type
from .arithmetic import composed_affine, rounded
from .batchnorm import guard_inference, read_bn
from .fold_affine import affine_of, guard_runtime_fusion

if TYPE_CHECKING:
    from graphopt.aten import AtenContext

_STEPS = ("Add", "Sub", "Mul", "Div", "Neg", "BatchNormalization")
_LONGEST = 32
_LARGE = 1 << 16  # elements of a constant that is larger than those it is made from
_INTEGERS = (ir.DataType.INT32, ir.DataType.INT64)


@dataclass(frozen=True)
class _Chain:
    """Steps from `x` on, the first first; `dims` is the shape of `x`, None where it does not matter."""

    x: ir.Value
    steps: tuple[ir.Node, ...]


@dataclass(frozen=True)
class MergeAffineChains(Rewrite):
    """Merge Mul, Add, Sub, Div, Neg with constants, one behind the other, into one Mul and one Add, or into a BatchNormalization.

    ((x a) + b) c + d = x (a c) + (b c + d), where that leaves fewer nodes. 32 and 64 bit integers are merged too: their
    sums and products wrap around alike in any order. Constants that cancel stay, for x + 2^23 - 2^23 rounds.
    """

    name = "merge-affine-chains"
    effect = Effect.ROUNDING
    kinds = frozenset({"onnx", "torch"})

    def patterns(self) -> Sequence[Pattern]:
        return (op(_STEPS, where=_is_step),)

    def run_aten(self, context: AtenContext) -> None:
        from ..aten import merge_affine_chains

        merge_affine_chains.run(context)

    def rewrite(self, match: Match, editor: Editor) -> None:
        context, root = editor.context, match.root
        follower = _only_follower(root)
        if follower is not None and _is_step(follower):
            return  # the chain goes on
        chain = _chain(root)
        if len(chain.steps) < 2:
            return
        norms = [n for n in chain.steps if n.op_type == "BatchNormalization"]
        if not norms and _least_nodes(chain) >= len(chain.steps):
            return
        match.nodes = list(chain.steps)[::-1]
        guard_runtime_fusion(chain.x)
        if norms:
            _state_norm(chain, norms[0], editor)
        elif (dtype := element_type(context, chain.x)) in _INTEGERS:
            _state(chain, _composed_integers(chain, dtype.numpy(), context), editor)  # type: ignore[union-attr]
        elif dtype in guards.FLOATS:
            _state(chain, _composed(chain, dtype.numpy(), context), editor)  # type: ignore[union-attr]


def _is_step(node: ir.Node) -> bool:
    if node.op_type not in _STEPS or not same_domain(node.domain, ""):
        return False
    if node.op_type in ("Neg", "BatchNormalization"):
        return True
    return node.op_type in _STEPS and len(node.inputs) == 2 and _operands(node) is not None


def _operands(node: ir.Node) -> tuple[ir.Value, ir.Value | None] | None:
    """What a step is applied to, and its constant; None where it has no constant, or two."""
    if node.op_type in ("Neg", "BatchNormalization"):
        return (node.inputs[0], None) if node.inputs[0] is not None else None
    left, right = node.inputs
    constants = constant_tensor(left) is not None, constant_tensor(right) is not None
    if left is None or right is None or constants not in ((True, False), (False, True)):
        return None
    if constants[1]:
        return left, right
    return None if node.op_type == "Div" else (right, left)


def _only_follower(node: ir.Node) -> ir.Node | None:
    value = node.outputs[0]
    if value.is_graph_output() or use_count(value) != 1:
        return None
    usage = value.uses()[0]
    return usage.node if usage.node.graph is node.graph and (usage.idx == 0 or usage.node.op_type != "BatchNormalization") else None


def _chain(root: ir.Node) -> _Chain:
    """The steps that end at `root`, each consumed by the next alone."""
    steps = [root]
    while len(steps) < _LONGEST:
        x, _ = _operands(steps[-1])  # type: ignore[misc]
        before = x.producer()
        if before is None or not _is_step(before) or _only_follower(before) is not steps[-1] or any(v.name for v in before.outputs[1:]):
            break
        steps.append(before)
    return _Chain(_operands(steps[-1])[0], tuple(reversed(steps)))  # type: ignore[index]


def _least_nodes(chain: _Chain) -> int:
    """How many nodes a chain without norms needs at the least."""
    kinds = {n.op_type for n in chain.steps}
    return max(bool(kinds & {"Mul", "Div"}) + bool(kinds & {"Add", "Sub"}), 1)  # a sign goes into a Sub


def _constants(chain: _Chain, context: Context) -> list[np.ndarray | None]:
    """The constants of the steps, none of which widens what the chain is applied to."""
    dims = context.dims(chain.x)
    found: list[np.ndarray | None] = []
    for node in chain.steps:
        guards.require(context.opset(node) >= 7, "operators broadcast otherwise before opset 7")
        _, constant = _operands(node)  # type: ignore[misc]
        shape = None if constant is None else tuple(constant_tensor(constant).shape.numpy())  # type: ignore[union-attr]
        if shape:
            fits = dims is not None and len(shape) <= len(dims) and all(c in (1, d) for c, d in zip(shape[::-1], dims[::-1]))
            guards.require(fits, "a constant may widen the value")
            guards.require(int(np.prod(shape)) <= 1 << 20, "a constant is large")
        found.append(None if constant is None else guards.constant(constant, "the constant"))
    return found


def _composed(chain: _Chain, dtype: np.dtype, context: Context) -> tuple[np.ndarray, np.ndarray]:
    """`mul` and `add` of a chain of floating-point numbers."""
    steps = []
    for node, value in zip(chain.steps, _constants(chain, context)):
        if value is None:
            steps.append((np.asarray(-1.0), np.zeros(())))
        else:
            steps.append(affine_of(node, _operands(node)[1], value))  # type: ignore[index, arg-type]
    product, total = composed_affine(steps, dtype)
    return _least_shape(product), _least_shape(total)


def _composed_integers(chain: _Chain, dtype: np.dtype, context: Context) -> tuple[np.ndarray, np.ndarray]:
    """`mul` and `add` of a chain of integers, which wrap around."""
    mul, shift = np.ones((1,), dtype), np.zeros((1,), dtype)
    ranks = 0
    for node, constant in zip(chain.steps, _constants(chain, context)):
        guards.require(node.op_type != "Div", "a division of integers is not exact")
        value = np.atleast_1d(np.asarray(-1, dtype) if constant is None else constant)
        ranks = max(ranks, 0 if constant is None else constant.ndim)
        if node.op_type in ("Mul", "Neg"):
            mul, shift = mul * value, shift * value
        elif node.op_type == "Add":
            shift = shift + value
        elif constant_tensor(node.inputs[0]) is not None:
            mul, shift = -mul, value - shift
        else:
            shift = shift - value
    if not ranks:
        return mul.reshape(()), shift.reshape(())
    return mul, shift


def _least_shape(array: np.ndarray) -> np.ndarray:
    """A scalar where all elements are equal."""
    return array.flat[0].reshape(()) if array.size and (array == array.flat[0]).all() else array


def _state(chain: _Chain, affine: tuple[np.ndarray, np.ndarray], editor: Editor) -> None:
    """State a Mul, an Add, or both, where that is less than the chain."""
    mul, shift = affine
    root = chain.steps[-1]
    output, y = root.outputs[0], chain.x
    sign = -1 if (mul == -1).all() else 1
    scales, shifts = bool((mul != sign).any()), bool(shift.any())
    nodes = max(scales + shifts, 1)
    if nodes >= len(chain.steps):
        return
    named = [(n, c) for n in chain.steps if (c := _operands(n)[1]) is not None]  # type: ignore[index]
    given = [constant_tensor(c).size for _, c in named]  # type: ignore[union-attr]
    guards.require(max(mul.size, shift.size) <= max([_LARGE, *given]), "the merged constants would be large")

    def constant(array: np.ndarray, types: tuple[str, ...]) -> ir.Value:
        source = next((c.name for n, c in named if n.op_type in types), "constant")
        return editor.constant(np.ascontiguousarray(array), f"{source}_merged")

    def name(types: tuple[str, ...]) -> str | None:
        return next((n.name for n in chain.steps if n.op_type in types), root.name) or None

    product, addition = ("Mul", "Div", "Neg"), ("Add", "Sub")
    if scales:
        y = editor.node("Mul", [y, constant(mul, product)], name=name(product), like=None if shifts else output)
        sign = 1
    if shifts and sign == -1:
        y = editor.node("Sub", [constant(shift, addition), y], name=name(addition), like=output)
    elif shifts:
        y = editor.node("Add", [y, constant(shift, addition)], name=name(addition), like=output)
    elif not scales and sign == -1:
        y = editor.node("Neg", [y], name=root.name or None, like=output)
    elif not scales:
        raise Refuse("the constants cancel, which may be meant to round")
    editor.replace(output, y)


def _state_norm(chain: _Chain, norm: ir.Node, editor: Editor) -> None:
    """State one BatchNormalization with the statistics of `norm` for the whole chain."""
    context = editor.context
    dims, root = context.dims(chain.x), chain.steps[-1]
    if dims is None or len(dims) < 2 or not isinstance(dims[1], int):
        raise Refuse("the number of channels is not known")
    channels, rank = dims[1], len(dims)
    mul, shift = np.ones(channels), np.zeros(channels)
    for node, value in zip(chain.steps, _constants(chain, context)):
        if node.op_type == "BatchNormalization":
            factor, term = read_bn(node, context, channels)
        elif value is None:
            factor, term = np.full(channels, -1.0), np.zeros(channels)
        else:
            value = value.reshape((*[1] * (rank - value.ndim), *value.shape))
            guards.require(all(d == 1 for i, d in enumerate(value.shape) if i != 1), "a constant is not one value a channel")
            factor, term = affine_of(node, _operands(node)[1], np.broadcast_to(value.reshape(-1), (channels,)))  # type: ignore[index, arg-type]
        mul, shift = mul * factor, shift * factor + term
    guard_inference(norm, context)
    mean, variance = (guards.float_constant(v, "a statistic") for v in norm.inputs[3:5])
    spread = np.sqrt(variance.astype(np.float64) + float(guards.attribute(norm, "epsilon", np.float32(1e-5))))
    dtype = constant_tensor(norm.inputs[1]).dtype.numpy()  # type: ignore[union-attr]
    scale, bias = rounded(mul * spread, dtype, "the scale"), rounded(shift + mean * mul, dtype, "the bias")
    inputs = [chain.x, *(editor.constant(a, f"{v.name}_merged") for a, v in zip((scale, bias), norm.inputs[1:3])), *norm.inputs[3:5]]  # type: ignore[union-attr]
    new = editor.node("BatchNormalization", inputs, dict(norm.attributes), name=norm.name or None, like=root.outputs[0])
    editor.replace(root.outputs[0], new)

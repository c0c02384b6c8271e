"""The bias of the keys of attention, which does nothing, and that of its values, which passes to the projection behind it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from graphopt.rewriting import (
    Context,
    Editor,
    Effect,
    Match,
    Pattern,
    Refuse,
    Rewrite,
    const,
    constant_array,
    constant_tensor,
    guards,
    is_used,
    op,
    same_domain,
    scalar_of,
    use_count,
    var,
)

from ..arguments import integer
from .linear import read
from .movement import Affine, passed

_MOVES = ("Reshape", "Transpose", "Squeeze", "Unsqueeze", "Identity")
_LONGEST = 8  # operators between a bias and the product of attention
_LARGEST = 1 << 20  # bytes of a bias


@dataclass(frozen=True)
class FoldAttentionBiases(Rewrite):
    """Drop the bias of the keys of attention, and move that of its values into the bias of the projection behind it.

    A bias b of all keys adds q b to a whole row of scores, and softmax(s + c) = softmax(s). A bias of all values is added
    to every weighted mean of them, since the weights of a row add up to 1: softmax(s) (v + b) W + c = softmax(s) v W +
    (b W + c). Each saves an Add over all tokens: under ONNX Runtime 1.32 on x86-64 with AVX-512, one thread, MiniLM-L6 and
    BERT-base ran 1.00 to 1.02 times as fast at sequences of 32 to 128, mostly within the noise.
    """

    name = "fold-attention-biases"
    effect = Effect.ROUNDING

    def patterns(self) -> Sequence[Pattern]:
        projection = op("MatMul", var("mixed"), const(), bind="projection")
        return op("Softmax", var("scores"), bind="softmax"), op("Add", projection, const("bias"), commutative=True, bind="add")

    def rewrite(self, match: Match, editor: Editor) -> None:
        if "softmax" in match:
            _drop_of_keys(match, editor)
        else:
            _move_of_values(match, editor)


def _drop_of_keys(match: Match, editor: Editor) -> None:
    context, softmax = editor.context, match["softmax"]
    product = _product(match["scores"], softmax)
    if product is None or not _over_last_axis(softmax, context):
        return
    found = _added(product, context)
    if found is None:
        return
    add, consumer, shift = found
    if shift.ndim and shift.shape[-1] != 1:
        raise Refuse("what is added to the keys is not the same for all of them")
    _skip(editor, add, consumer)


def _move_of_values(match: Match, editor: Editor) -> None:
    context, projection, add = editor.context, match["projection"], match["add"]
    path, value = [], match["mixed"]
    while (node := _sole_producer(value, add)) is not None and node.op_type in _MOVES and len(path) < _LONGEST:
        path.append(node)
        value = node.inputs[0]
    if node is None or node.op_type != "MatMul" or not path:
        return
    softmax = node.inputs[0].producer()
    if softmax is None or softmax.op_type != "Softmax" or not _over_last_axis(softmax, context):
        return
    found = _added(node, context)
    if found is None:
        return
    bias_add, consumer, shift = found
    if shift.ndim > 1 and shift.shape[-2] != 1:
        raise Refuse("what is added to the values is not the same for all of them")
    guards.only_consumer(projection.outputs[0], "the projection", add)
    linear = read(projection, context, add)
    affine = Affine.of(np.ones(()), shift)
    for move in reversed(path):
        affine = passed(move, affine, back=False, context=context)
    _, per_channel = affine.per_channel(context.rank(match["mixed"]), -1, linear.inputs, "the projection's input")
    bias = linear.bias_array() + linear.answer_to_constant(per_channel)
    match.nodes.append(bias_add)
    _skip(editor, bias_add, consumer)
    linear.state(editor, old=linear.output, x=projection.inputs[0], weight=None, bias=bias)


def _over_last_axis(softmax: ir.Node, context: Context) -> bool:
    rank, axis = context.rank(softmax.inputs[0]), integer(softmax, "axis", -1)
    return context.opset(softmax) >= 13 and rank is not None and axis in (-1, rank - 1)


def _product(value: ir.Value, softmax: ir.Node, *, masked: bool = True) -> ir.Node | None:
    """The product of queries and keys that becomes the scores: scaled by one number, `masked` by what is added."""
    for _ in range(_LONGEST):
        node = _sole_producer(value, softmax)
        if node is None or node.op_type == "MatMul":
            return node
        if node.op_type in ("Mul", "Div"):
            left, right = node.inputs
            if scalar_of(right) is not None:
                value = left
            elif node.op_type == "Mul" and scalar_of(left) is not None:
                value = right
            else:
                return None
        elif node.op_type == "Add" and masked:
            products = [p for v in node.inputs if (p := _product(v, softmax, masked=False)) is not None]  # type: ignore[arg-type]
            return products[0] if len(products) == 1 else None
        else:
            return None
    return None


def _added(product: ir.Node, context: Context) -> tuple[ir.Node, ir.Node, np.ndarray] | None:
    """The constant that is added to the right operand of a product, seen there: the Add, what consumes it, and the constant."""
    path, value, consumer = [], product.inputs[1], product
    if min(context.rank(v) or 0 for v in product.inputs) < 2:
        return None
    for _ in range(_LONGEST):
        node = _sole_producer(value, consumer)
        if node is None:
            return None
        if node.op_type in _MOVES:
            path.append((node, 1.0))
            value = node.inputs[0]
        elif node.op_type in ("Mul", "Div") and scalar_of(node.inputs[1]):
            factor = float(scalar_of(node.inputs[1]))  # type: ignore[arg-type]
            path.append((node, factor if node.op_type == "Mul" else 1 / factor))
            value = node.inputs[0]
        elif node.op_type == "Add":
            bias = next((v for v in node.inputs if constant_tensor(v) is not None), None)
            return None if bias is None or not path else _carried(node, bias, path, context)
        else:
            return None
        consumer = node
    return None


def _carried(
    add: ir.Node, bias: ir.Value, path: list[tuple[ir.Node, float]], context: Context
) -> tuple[ir.Node, ir.Node, np.ndarray] | None:
    """The bias as it stands at the end of the path, which is given backwards, each operator with the factor that it applies."""
    array, rank = constant_array(bias, max_bytes=_LARGEST), context.rank(add.outputs[0])
    dims, other = context.dims(add.outputs[0]), next(v for v in add.inputs if v is not bias)
    if array is None or rank is None or array.ndim > rank or context.dims(other) != dims:
        return None
    guards.require(constant_tensor(bias).dtype in guards.FLOATS, "the bias is of no floating-point type")  # type: ignore[union-attr]
    affine = Affine.of(np.ones(()), array.astype(np.float64).reshape((1,) * (rank - array.ndim) + array.shape))
    for node, factor in reversed(path):
        affine = Affine(affine.mul, affine.shift * factor) if factor != 1.0 else affine
        if node.op_type in _MOVES:
            affine = passed(node, affine, back=False, context=context)
    guards.finite(affine.shift, "the bias")
    return add, path[-1][0], affine.shift


def _sole_producer(value: ir.Value | None, consumer: ir.Node) -> ir.Node | None:
    """What makes a value that one node alone consumes, in the graph of `consumer`."""
    node = value.producer() if value is not None else None
    if node is None or value.is_graph_output() or use_count(value) != 1 or node.graph is not consumer.graph:  # type: ignore[union-attr]
        return None
    return node if same_domain(node.domain, "") and not any(is_used(v) for v in node.outputs[1:]) else None


def _skip(editor: Editor, add: ir.Node, consumer: ir.Node) -> None:
    """Let the one consumer of an Add take what the constant is added to."""
    other = next(v for v in add.inputs if constant_tensor(v) is None)
    editor.set_input(consumer, 0, other)

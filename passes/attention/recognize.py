"""Attention that is spelled out, found from its second product backwards: softmax(scale * Q K^T + mask) V.

Vaswani et al., "Attention is all you need", 2017. One reading for all passes that fuse it: the older exporter of torch, its
new one with and without its optimizer, models of Hugging Face and of paddle2onnx. Where a softmax feeds a product and the
rest does not fit, it refuses and says why.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import onnx_ir as ir

from graphopt.rewriting import Context, Dim, Match, Refuse, guards, use_count

from ..arguments import integer
from ..fusion.reading import made_by, number
from . import masks
from .heads import SWAP_HEADS, Heads, permutation, scalar_factor, transposed_heads, value_heads

_STEPS = 10  # operators between the softmax and the first product


@dataclass(frozen=True)
class Choice:
    """A mask that takes `fill` instead of some scores: those where `condition` is `keeps` stay."""

    condition: ir.Value
    keeps: bool
    fill: ir.Value


@dataclass(frozen=True)
class Attention:
    """One attention.

    Attributes:
        product: the second product.
        query, key, value: what it attends with and to, by heads.
        scale: what the scores are multiplied by.
        causal: whether a query sees the keys up to its own position only; no other mask then.
        biases: additive masks, each broadcast to [B, N, S, T].
        choices: masks that put a number in the place of scores.
        guarded: whether rows that are masked throughout by -inf are made 0 instead of NaN.
        nodes: the nodes between the two products, both included, and those that merge the heads behind.
        by_heads: the result by heads, [B, N, S, H]; None where only [B*N, S, H] is there.
        merged: the result with its heads side by side, [B, S, N*H], or its elements in that order; None where it is not made.
    """

    product: ir.Node
    query: Heads
    key: Heads
    value: Heads
    scale: float
    causal: bool
    biases: tuple[ir.Value, ...]
    choices: tuple[Choice, ...]
    guarded: bool
    nodes: tuple[ir.Node, ...]
    by_heads: ir.Value | None
    merged: ir.Value | None

    @property
    def heads(self) -> int:
        """The number of heads of the query."""
        return int(self.query.dims[1])

    @property
    def groups(self) -> int:
        """The number of heads of key and value, fewer than those of the query where they are shared."""
        return self.key.groups

    @property
    def masked(self) -> bool:
        """Whether there is a mask beside a causal one."""
        return bool(self.biases or self.choices)

    @property
    def lengths(self) -> tuple[Dim, Dim]:
        """The lengths of the query, and of key and value."""
        return self.query.dims[2], self.key.dims[2]


def recognize(context: Context, match: Match) -> Attention | None:
    """The attention whose second product is the root of a match, or None where no softmax feeds it.

    Raises:
        Refuse: a softmax feeds the product, but it is no attention that an operator computes.
    """
    product = match.root
    if context.scope(product).function is not None:
        return None  # nothing is sure of shapes in a function
    walk = _Walk(context)
    softmax = walk.to_softmax(product.inputs[0])
    if softmax is None:
        return None
    rank = context.rank(softmax.inputs[0])
    axis = integer(softmax, "axis", -1 if context.opset(softmax) >= 13 else 1)
    guards.require(rank is not None, "the rank of the scores is not known")
    guards.require(axis in (-1, rank - 1), "the softmax does not run along the keys")  # type: ignore[operator]
    scale, first = walk.to_product(softmax.inputs[0])
    return _read(context, walk, product, first, scale)


def _read(context: Context, walk: _Walk, product: ir.Node, first: ir.Node, scale: float) -> Attention:
    query = value_heads(context, first.inputs[0])  # type: ignore[arg-type]
    key = transposed_heads(context, first.inputs[1])  # type: ignore[arg-type]
    if key is None:
        raise Refuse("the second operand of the first product is not the transpose of a key")
    value = value_heads(context, product.inputs[1])  # type: ignore[arg-type]
    guards.require(query.repeated == 1, "the heads of the query are repeated")
    guards.require(value.factor == 1.0, "the value is scaled")
    guards.require(query.dims[:2] == key.dims[:2] == value.dims[:2], "batch and heads of query, key and value are not known to be equal")
    guards.require(query.dims[3] == key.dims[3], "heads of query and key differ in size")
    guards.require(key.dims[2] == value.dims[2], "the lengths of key and value are not known to be equal")
    if key.repeated != value.repeated:
        raise Refuse("key and value are shared by different numbers of heads")
    scale *= query.factor * key.factor
    guards.require(math.isfinite(scale) and scale > 0.0, "its scale is not a positive number")
    lengths = (query.dims[2], key.dims[2])
    causal, biases, choices = False, [], []
    for bias in walk.biases:
        if masks.is_causal(context, bias, lengths, keeps=None):
            causal = True
        else:
            biases.append(bias)
    for choice in walk.choices:
        if masks.removes(choice.fill) and masks.is_causal(context, choice.condition, lengths, keeps=choice.keeps):
            causal = True
        else:
            choices.append(choice)
    if causal and (biases or choices):  # a row that both together mask throughout would not be the same
        causal, biases, choices = False, walk.biases, walk.choices
    finite = all(map(masks.known_finite, biases)) and all(math.isfinite(number(c.fill) or 0.0) for c in choices)
    by_heads, merged, behind = _results(context, product, query, value)
    nodes = (product, *walk.nodes, *behind)
    return Attention(
        product, query, key, value, scale, causal, tuple(biases), tuple(choices), walk.guarded and not finite, nodes, by_heads, merged
    )


class _Walk:
    """The way back from the second product to the first, and what lies on it."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self.nodes: list[ir.Node] = []
        self.biases: list[ir.Value] = []
        self.choices: list[Choice] = []
        self.guarded = False

    def _take(self, node: ir.Node, consumers: int = 1) -> None:
        """Go over a node; refuses where what it computes is needed elsewhere."""
        value = node.outputs[0]
        if value.is_graph_output() or use_count(value) != consumers:
            raise Refuse(f"{value.name!r}, inside it, is also needed elsewhere")
        self.nodes.append(node)

    def to_softmax(self, value: ir.Value | None) -> ir.Node | None:
        """The softmax behind the probabilities, over guards against NaN and changes of rank."""
        for _ in range(_STEPS):
            node = made_by(value, "Softmax", "Reshape", "Where")
            if node is None:
                return None
            if node.op_type == "Softmax":
                self._take(node, 2 if self.guarded else 1)
                return node
            if node.op_type == "Where":
                check = made_by(node.inputs[0], "IsNaN")
                if check is None or check.inputs[0] is not node.inputs[2] or number(node.inputs[1]) != 0.0 or self.guarded:
                    return None
                self.guarded = True
                self._take(check)
                value = node.inputs[2]
            elif self.guarded or not self._keeps_matrices(node):
                return None
            else:
                value = node.inputs[0]
            self._take(node)
        return None

    def to_product(self, value: ir.Value | None) -> tuple[float, ir.Node]:
        """The scale and the first product behind the scores; masks are collected."""
        scale = 1.0
        for _ in range(_STEPS):
            node = value.producer() if value is not None else None
            if node is None:
                break
            if made_by(value, "MatMul") is not None:
                self._take(node)
                return scale, node
            if made_by(value, "Mul", "Div") is not None:
                found = scalar_factor(self.context, node)
                if found is None:
                    break
                value, scale = found[0], scale * found[1]
            elif made_by(value, "Add", "Where") is not None:
                if scale != 1.0:
                    raise Refuse("the scale is applied after the mask")
                value = self._masked(node)
            elif made_by(value, "Reshape") is not None and self._keeps_matrices(node):
                value = node.inputs[0]
            else:
                break
            self._take(node)
        what = "an input" if node is None else f"a {node.op_type}"
        raise Refuse(f"the scores of the softmax do not come from a product alone: {what} is in the way")

    def _masked(self, node: ir.Node) -> ir.Value:
        """Collect one mask; the scores before it."""
        if node.op_type == "Where":
            condition, chosen, other = node.inputs[:3]
            if number(chosen) is not None:
                self.choices.append(Choice(condition, False, chosen))  # type: ignore[arg-type]
                return other  # type: ignore[return-value]
            if number(other) is not None:
                self.choices.append(Choice(condition, True, other))  # type: ignore[arg-type]
                return chosen  # type: ignore[return-value]
            raise Refuse("a Where between two values stands in the scores")
        a, b = node.inputs[:2]
        scores, bias = (a, b) if self._leads_to_product(a) else (b, a)
        self.biases.append(bias)  # type: ignore[arg-type]
        return scores  # type: ignore[return-value]

    def _leads_to_product(self, value: ir.Value | None) -> bool:
        for _ in range(_STEPS):
            node = made_by(value, "MatMul", "Mul", "Div", "Add", "Where", "Reshape")
            if node is None:
                return False
            if node.op_type == "MatMul":
                return True
            if node.op_type in ("Mul", "Div"):
                found = scalar_factor(self.context, node)
                if found is None:
                    return False
                value = found[0]
            elif node.op_type == "Where":
                value = node.inputs[2] if number(node.inputs[1]) is not None else node.inputs[1]
            elif node.op_type == "Add" and made_by(node.inputs[0], "MatMul", "Mul", "Div", "Add", "Where", "Reshape") is None:
                value = node.inputs[1]
            else:
                value = node.inputs[0]
        return False

    def _keeps_matrices(self, node: ir.Node) -> bool:
        """Whether a Reshape only takes batch and heads together, or apart."""
        before, after = self.context.dims(node.inputs[0]), self.context.dims(node.outputs[0])
        return before is not None and after is not None and len(before) >= 3 <= len(after) and before[-2:] == after[-2:]


def _results(
    context: Context, product: ir.Node, query: Heads, value: Heads
) -> tuple[ir.Value | None, ir.Value | None, list[ir.Node]]:
    """The result by heads, the one in which they are side by side again, and the nodes behind the product to it."""
    found, nodes = product.outputs[0], []
    if context.rank(found) == 3:
        reshape = _sole_consumer(found, "Reshape")
        if reshape is None:
            return None, None, []
        nodes.append(reshape)
        found = reshape.outputs[0]
        if context.dims(found) != (*query.dims[:3], value.dims[3]):
            return None, None, []
    transpose = _sole_consumer(found, "Transpose")
    if transpose is None or permutation(transpose) != SWAP_HEADS:
        return found, None, nodes
    nodes.append(transpose)
    reshape = _sole_consumer(transpose.outputs[0], "Reshape")
    dims = context.dims(reshape.outputs[0]) if reshape is not None else None
    if reshape is not None and dims and dims[-1] == int(query.dims[1]) * value.size:
        return found, reshape.outputs[0], [*nodes, reshape]
    return found, transpose.outputs[0], nodes


def _sole_consumer(value: ir.Value, op_type: str) -> ir.Node | None:
    if use_count(value) != 1 or value.is_graph_output():
        return None
    node = value.uses()[0].node
    return node if node.op_type == op_type and node.domain == "" and node.graph is value.graph else None

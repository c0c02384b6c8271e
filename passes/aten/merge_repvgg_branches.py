"""`merge-repvgg-branches` on ATen graphs: convolutions of one input that are added up are one convolution."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from ..algebra.branches import Part, Place, combine, covering, guard_cost
from .batchnorm import norm_behind, output_of, read_bn, tensors_of
from .linear import CONVOLUTION, CONVS, Linear, call_conv, folded_name, read
from .window import Window, per_axis, window_of

if TYPE_CHECKING:
    from torch.fx import Node

    from graphopt.aten import AtenContext, AtenEditor

ADD = "aten.add.Tensor"
_POOLS = ("aten.avg_pool1d.default", "aten.avg_pool2d.default", "aten.avg_pool3d.default")
_MOST = 64  # terms of one sum


@dataclass(frozen=True)
class _Term:
    """What is added up: a convolution of x, or x itself, perhaps averaged, perhaps normalized.

    Attributes:
        value: the term.
        conv, pool, norm: its operators, from x on; None where there is no such operator.
    """

    value: Node
    conv: Node | None = None
    pool: Node | None = None
    norm: Node | None = None


def run(context: AtenContext, max_growth_bytes: int) -> None:
    """Merge every sum that has such terms."""
    from graphopt.aten import drive

    drive(context, (ADD,), partial(_merge, limit=max_growth_bytes))


def _merge(root: Node, editor: AtenEditor, limit: int) -> None:
    context = editor.context
    if not _plain(root, context) or _goes_on(root, context):
        return
    values = _summands(root, context)
    x, terms = _common_input(values, context)
    if x is None or len(terms) < 2:
        return
    linears = {t.conv: read(t.conv, context) for t in terms if t.conv is not None}
    for term in terms:
        _guard_users(term, context)
    convs = list(linears.values())
    first = convs[0]
    for linear in convs:
        linear.guard_growth(context, limit)
    context.require(all(c.group == first.group for c in convs), "the branches differ in their groups")
    context.require(all(c.shape[:2] == first.shape[:2] for c in convs), "the branches differ in their channels")
    windows = [_window(t, linears, len(first.shape) - 2, context) for t in terms]
    if any(t.conv is None for t in terms):
        plain = any(t.conv is None and t.pool is None for t in terms)
        context.require(not plain or all(n == 1 for w in windows for n in w.stride), "the branch beside the convolution is not strided")
        context.require(first.channels == first.inputs, "the convolution changes the number of channels")
    context.require(all(w.stride == windows[0].stride for w in windows), "the branches differ in their strides")
    places = [Place.of(w.begins, w.ends, w.dilation, w.kernel) for w in windows]
    merged = covering(places)
    guard_cost(places, [t.conv is not None for t in terms], merged, first.shape[1] == 1)
    context.require(merged.begins == merged.ends, "one convolution would have to pad one side more than the other")

    parts = [_part(t, p, linears, first, context) for t, p in zip(terms, places)]
    dtype = np.asarray(context.required(first.weight, "the weight")).dtype
    weight, bias = combine(parts, first.shape, merged, dtype)
    tensors = _tensors(terms, linears, context)
    name = folded_name(context.program.name_of(first.weight) or "weight")
    new_weight = editor.constant(weight, name, made_of=tensors)
    new_bias = None
    if bias.any() or any(c.bias is not None for c in convs):
        source = next((c.bias for c in convs if c.bias is not None), None)
        name = name.replace("weight", "bias") if source is None else folded_name(context.program.name_of(source) or "bias")
        new_bias = editor.constant(bias, name, made_of=tensors)
    window = Window(merged.taps, windows[0].stride, merged.begins, merged.ends, merged.step)
    general = any(context.op(c.node) == CONVOLUTION for c in convs)
    new = call_conv(editor, x, new_weight, new_bias, window, first.group, general=general, like=root)
    merged_values = {t.value for t in terms}
    for value in values:
        if value not in merged_values:
            new = editor.call(ADD, [new, value], like=root)
    editor.replace(root, new)


def _plain(node: Any, context: AtenContext) -> bool:
    """Whether a node adds two values of one shape and type."""
    if context.op(node) != ADD:
        return False
    given = context.arguments(node)
    operands = given["self"], given["other"]
    shape, dtype = context.shape(node), context.dtype(node)
    return given["alpha"] == 1 and all(context.shape(v) == shape and context.dtype(v) == dtype for v in operands)


def _goes_on(node: Node, context: AtenContext) -> bool:
    """Whether a sum is a summand of another, and nothing else."""
    users = context.users(node)
    return len(users) == 1 and _plain(users[0], context)


def _summands(root: Node, context: AtenContext) -> list[Node]:
    """The terms of a sum of sums, in order; a value that is added twice is there twice."""
    found: list[Node] = []
    todo = [root]
    while todo:
        node = todo.pop()
        if node is root or (_plain(node, context) and _goes_on(node, context) and len(found) + len(todo) < _MOST):
            given = context.arguments(node)
            todo += [given["other"], given["self"]]
        else:
            found.append(node)
    return found


def _common_input(values: list[Node], context: AtenContext) -> tuple[Node | None, list[_Term]]:
    """The first input of a convolution that two or more terms are computed from, and these terms."""
    for x in dict.fromkeys(context.arguments(v)["input"] for v in values if _is_conv(v, context)):
        terms = [t for v in values if (t := _term(v, x, context)) is not None]
        if len(terms) > 1:
            return x, terms
    return None, []


def _is_conv(value: Node, context: AtenContext) -> bool:
    operator = context.op(value)
    return operator in CONVS or (operator == CONVOLUTION and not context.arguments(value)["transposed"])


def _term(value: Node, x: Node, context: AtenContext) -> _Term | None:
    """A term as what is done to x, or None."""
    if value is x:
        return _Term(value)
    if _is_conv(value, context) and context.arguments(value)["input"] is x:
        return _Term(value, conv=value)
    norm = norm_behind(value, context)
    pool = value if norm is None else context.arguments(norm)["input"]
    if norm is not None and pool is x:
        return _Term(value, norm=norm)
    if context.op(pool) in _POOLS and context.arguments(pool)["self"] is x:
        return _Term(value, pool=pool, norm=norm)
    return None


def _guard_users(term: _Term, context: AtenContext) -> None:
    """Refuse a branch whose results are used elsewhere too."""
    if term.conv is None and term.pool is None and term.norm is None:
        return
    if term.norm is not None:
        context.require(output_of(term.norm, context) is term.value, "its results are passed on together")
        if term.pool is not None:
            context.only_user(term.pool, "the branch", term.norm)
    several = len(term.value.users) > 1 or context.is_output(term.value)
    context.require(not several, f"the branch {term.value.name!r} has other users")


def _window(term: _Term, linears: dict[Node, Linear], rank: int, context: AtenContext) -> Window:
    """Where a term has its taps."""
    if term.conv is not None:
        return linears[term.conv].window(context)
    if term.pool is None:
        one, zero = (1,) * rank, (0,) * rank
        return Window(one, one, zero, zero, one)
    given = context.arguments(term.pool)
    window = window_of(given, per_axis(given["kernel_size"], rank))
    context.require(not window.padded or given["count_include_pad"], "the average leaves out what it pads")
    context.require(not given["ceil_mode"], "the average rounds the size of its output up")
    context.require(given.get("divisor_override") is None, "the average divides by a number of its own")
    return window


def _part(term: _Term, place: Place, linears: dict[Node, Linear], first: Linear, context: AtenContext) -> Part:
    if term.conv is not None:
        linear = linears[term.conv]
        return Part(place, linear.weight_array(context), linear.bias_array(context))
    if term.norm is None:
        return Part(place, None, np.zeros(first.channels))
    mul, shift = read_bn(term.norm, context, first.channels)
    return Part(place, None, shift, mul)


def _tensors(terms: list[_Term], linears: dict[Node, Linear], context: AtenContext) -> list[Node]:
    """The placeholders of all that the branches hold, weights first."""
    convs = [linears[t.conv] for t in terms if t.conv is not None]
    found = [c.weight for c in convs] + [c.bias for c in convs if c.bias is not None]
    for term in terms:
        if term.norm is not None:
            found += tensors_of(term.norm, context)
    return found

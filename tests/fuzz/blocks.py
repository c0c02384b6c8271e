"""Attention, control flow, and the choice among all blocks."""

from __future__ import annotations

import math

import numpy as np
from onnx import helper

from tests.fuzz import compute, movement, patterns
from tests.fuzz.build import WIDTH, Builder, V, graph_of

HEADS = 2


def attention(b: Builder) -> None:
    """Self-attention as exporters write it: projections, heads, scale, mask, softmax, and back."""
    x = b.sequence()
    q, k, v = (compute.linear_of(b, x) for _ in range(3))
    size = WIDTH // HEADS
    q, v = (b.transpose(_heads(b, t), 0, 2, 1, 3) for t in (q, v))
    if b.r.random() < 0.3:
        q = _rotated(b, q)
    k = _heads(b, k)
    k = b.transpose(k, 0, 2, 3, 1) if b.r.random() < 0.5 else b.transpose(b.transpose(k, 0, 2, 1, 3), 0, 1, 3, 2)
    place = b.r.randrange(4)
    if place == 0:
        q = b.binary("Mul", q, b.constant(1 / math.sqrt(size), b.float))
    scores = b.node("MatMul", [q, k], (x.dims[0], HEADS, x.dims[1], x.dims[1]))
    if place == 1:
        scores = b.binary("Div", scores, b.constant(math.sqrt(size), b.float))
    elif place == 2:
        scores = b.binary("Mul", scores, b.constant(1 / math.sqrt(size), b.float))
    if b.r.random() < 0.5:
        scores = _masked(b, scores, x)
    weights = b.unary("Softmax", scores, axis=b.r.choice((-1, 3)))
    weights = b.node("Dropout", [weights], weights.dims) if b.r.random() < 0.2 and b.opset > 11 else weights
    y = b.transpose(b.node("MatMul", [weights, v], q.dims), 0, 2, 1, 3)
    if b.r.random() < 0.6:
        y = b.node("Reshape", [y, b.ints(0, 0, WIDTH)], x.dims)
    else:
        target = b.node("Concat", [movement._size(b, x, 0), movement._size(b, x, 1), b.ints(WIDTH)], (3,), axis=0)
        y = b.node("Reshape", [y, target], x.dims)
    y = compute.linear_of(b, y)
    b.keep(b.binary("Add", x, y) if b.r.random() < 0.7 else y)


def _heads(b: Builder, x: V) -> V:
    dims = (*x.dims[:2], HEADS, WIDTH // HEADS)
    if b.r.random() < 0.6:
        return b.node("Reshape", [x, b.ints(0, 0, HEADS, WIDTH // HEADS)], dims)
    target = b.node("Concat", [movement._size(b, x, 0), movement._size(b, x, 1), b.ints(HEADS, WIDTH // HEADS)], (4,), axis=0)
    return b.node("Reshape", [x, target], dims)


def _rotated(b: Builder, x: V) -> V:
    """Rotary position: x * cos + rotate_half(x) * sin, with one angle for all places."""
    half = x.dims[3] // 2
    first, second = movement._slice(b, x, 3, 0, half, half), movement._slice(b, x, 3, half, 2**63 - 1, half)
    turned = b.node("Concat", [b.unary("Neg", second), first], x.dims, axis=-1)
    return b.binary("Add", b.binary("Mul", x, b.weight(2 * half)), b.binary("Mul", turned, b.weight(2 * half)))


def _masked(b: Builder, scores: V, x: V) -> V:
    ids = b.ids()
    kept = b.node("Greater", [ids, b.constant(1, "int64")], ids.dims, "bool")
    row = b.axes("Unsqueeze", kept, [1, 2], (ids.dims[0], 1, 1, ids.dims[1]))
    if b.r.random() < 0.5:
        return b.node("Where", [row, scores, b.constant(-100.0, b.float)], scores.dims, b.float)
    given = b.node("Cast", [row], row.dims, b.float, to=helper.np_dtype_to_tensor_dtype(np.dtype(b.float)))
    penalty = b.binary("Mul", b.node("Sub", [b.constant(1.0, b.float), given], row.dims), b.constant(-100.0, b.float))
    return b.binary("Add", scores, penalty)


# --- control flow -----------------------------------------------------------------------------------------------------


def _condition(b: Builder) -> V:
    way = b.r.randrange(4)
    if way == 0:
        return b.constant(b.r.random() < 0.5, "bool")
    if way == 1:
        return b.input("flag", "bool", ())
    x = b.sequence()
    size = movement._size(b, x, b.r.choice((1, 2)), vector=b.r.random() < 0.3)
    if size.dims:
        size = b.axes("Squeeze", size, [0], ())
    return b.node("Equal", [size, b.constant(b.r.choice((1, 5, WIDTH)), "int64")], (), "bool")


def _branch(b: Builder, x: V, name: str, bare: bool):
    with b.inside() as nodes:
        b.keep(x)
        for _ in range(b.r.choice((0, 1, 2))):
            step(b)
        found = [v for v in b.values if v.dims == x.dims and v.dtype == x.dtype]
        y = b.unary(b.r.choice(("Identity", "Neg", "Relu")), b.r.choice(found[-3:]))
    return graph_of(nodes, name, [], [y], bare=bare)


def branch(b: Builder) -> None:
    """If, of which the branches capture values from outside."""
    condition, x = _condition(b), b.any()
    bare = b.r.random() < 0.3
    parts = {f"{name}_branch": _branch(b, x, name, bare) for name in ("then", "else")}
    b.keep(b.node("If", [condition], x.dims, x.dtype, **parts))


def loop(b: Builder) -> None:
    """Loop with a constant number of rounds, a carried value, and at times a value given out in each round."""
    x = b.sequence()
    rounds = b.r.choice((0, 1, 1, 2, 3))
    dims = x.dims
    with b.inside() as nodes:
        number, goes_on, carried = (V(b.fresh(), t, d) for t, d in (("int64", ()), ("bool", ()), (x.dtype, dims)))
        b.keep(carried)
        if b.r.random() < 0.7:
            step(b)
        found = [v for v in b.values if v.dims == dims and v.dtype == x.dtype]
        y = b.binary("Add", carried, b.r.choice(found[-2:]))
        still = b.unary("Identity", goes_on)
        scanned = [b.unary("Tanh", y)] if b.r.random() < 0.4 else []
    body = graph_of(nodes, "body", [number, goes_on, carried], [still, y, *scanned])
    given = [b.constant(rounds, "int64"), b.constant(b.r.random() < 0.9, "bool") if b.r.random() < 0.7 else None, x]
    outputs = b.split("Loop", given, [dims, *((rounds, *dims) for _ in scanned)], x.dtype, body=body)
    b.keep(*outputs[:1])
    if scanned and b.r.random() < 0.5 and rounds:
        total = b.axes("ReduceSum", outputs[1], [0], dims, keepdims=0)
        b.keep(b.binary("Add", x, total))


_NO_DOUBLE = (compute.conv, compute.conv_transpose, compute.parallel, *patterns.NO_DOUBLE)  # the runtime has no kernels for them
BLOCKS = {**compute.BLOCKS, **movement.BLOCKS, **patterns.BLOCKS, attention: 4, branch: 2, loop: 1}


def step(b: Builder) -> None:
    """One block, smaller ones inside subgraphs."""
    while True:
        block = b.r.choices(list(BLOCKS), list(BLOCKS.values()))[0]
        if block in (branch, loop, attention) and b.depth > 1:
            continue
        if b.float == "float64" and block in _NO_DOUBLE:
            continue
        block(b)
        return


def build(seed: int, steps: int | None = None) -> Builder:
    """The random model of a seed; with `steps`, only that many of its blocks."""
    b = Builder(seed)
    count = b.r.choice((1, 2, 3, 4, 6, 8))
    for _ in range(count if steps is None else min(steps, count)):
        step(b)
    return b

"""`merge-equal-initializers` on ATen graphs: parameters, buffers and constants of equal content become one."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np

from ..cleanup.merge_equal_initializers import digest_of, sample_of

if TYPE_CHECKING:
    from torch.fx import Node

    from graphopt.aten import AtenContext, AtenEditor


def run(context: AtenContext) -> None:
    """Keep one placeholder of those that are equal in kind, type, shape, strides, device and every byte."""
    from graphopt.aten.driver import apply

    program = context.program
    groups: dict[Hashable, list[Node]] = {}
    for node, spec in program.specs.items():
        if context.is_constant(node) and node.users:
            key = (spec.kind, spec.persistent, context.dtype(node), context.shape(node), context.strides(node), context.device(node))
            groups.setdefault(key, []).append(node)
    for group in groups.values():
        if len(group) < 2:
            continue
        tied = program.tied()
        for equal in _equal(group, tied, context):
            kept = equal[0]

            def merge(node: Node, editor: AtenEditor, kept: Node = kept) -> None:
                editor.replace(node, kept)

            for node in equal[1:]:
                name = program.name_of(node)
                origins = program.origins.get(name, (name,))
                apply(context, node, merge)
                if node not in program.specs:
                    first = program.name_of(kept)
                    program.origins[first] = tuple(dict.fromkeys((*program.origins.get(first, (first,)), *origins)))


def _equal(group: list[Node], tied: dict[Node, Node], context: AtenContext) -> list[list[Node]]:
    """Those of equal bytes; what is one tensor under two names need not be read, the others as little as tells them apart."""
    first: dict[Node, list[Node]] = {}
    for node in group:
        first.setdefault(tied.get(node, node), []).append(node)
    groups = [list(first.values())]
    for look in (sample_of, digest_of):
        refined: list[list[list[Node]]] = []
        for tensors in groups:
            found: dict[Hashable, list[list[Node]]] = {}
            for nodes in tensors:
                found.setdefault(_looked_at(nodes[0], look, context) if len(tensors) > 1 else 0, []).append(nodes)
            refined += found.values()
        groups = refined
    return [[*chain.from_iterable(tensors)] for tensors in groups if sum(map(len, tensors)) > 1]


def _looked_at(node: Node, look: Callable[[np.ndarray], bytes], context: AtenContext) -> Hashable:
    array = context.constant(node)
    return node if array is None else look(np.ascontiguousarray(array))

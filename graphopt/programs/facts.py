"""What a program does with its inputs, and what bounds its outputs, as the ATen graph tells.

An integer input is followed forwards through operators that only move, widen or shift it. Where it ends as an index,
the size of what it indexes bounds it. That is the walk of `graphopt.verification.bounds` over another kind of graph.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import fx
    from torch.export import ExportedProgram

_MOVING = frozenset(
    ["view", "_unsafe_view", "reshape", "expand", "slice", "select", "unsqueeze", "squeeze", "transpose", "permute", "t", "clone", "alias",
     "contiguous", "_to_copy", "to", "repeat", "flatten", "cat", "stack", "split", "split_with_sizes", "chunk", "unbind", "detach",
     "lift_fresh_copy", "where", "constant_pad_nd", "pad", "flip", "roll", "index", "gather", "narrow", "copy", "tril", "triu",
     "repeat_interleave", "masked_fill", "expand_as", "view_as"]
)  # fmt: skip
#: Operators with a fixed range of their own, and those that pass a range on.
_RANGES = {
    "sigmoid": (0.0, 1.0), "hardsigmoid": (0.0, 1.0), "softmax": (0.0, 1.0), "_softmax": (0.0, 1.0), "tanh": (-1.0, 1.0),
    "hardtanh": None, "clamp": None,
}  # fmt: skip
_SHAPING = frozenset(
    ["view", "_unsafe_view", "reshape", "expand", "slice", "select", "unsqueeze", "squeeze", "transpose", "permute", "t", "clone", "alias",
     "_to_copy", "to", "flatten", "split", "split_with_sizes", "chunk", "unbind", "detach", "contiguous"]
)  # fmt: skip
#: Which argument of an operator is an index, and which is indexed along which dim.
_INDEXING = {"embedding": (1, 0, None), "index_select": (2, 0, 1), "gather": (2, 0, 1), "take_along_dim": (1, 0, 2)}


@dataclass
class Facts:
    """What is known of the values of an input.

    high: the largest index that all of its uses allow, None where nothing bounds it; low: the smallest; indexed: whether
    it is one at all; compared: numbers that it is compared with.
    """

    high: int | None = None
    low: int = 0
    indexed: bool = False
    compared: set[float] = field(default_factory=set)


def facts_of(program: ExportedProgram) -> dict[str, Facts]:
    """What is known of each integer input, by name."""
    import torch

    given = set(program.graph_signature.user_inputs)
    found = {}
    for node in program.graph.nodes:
        value = node.meta.get("val")
        if node.op == "placeholder" and node.name in given and isinstance(value, torch.Tensor) and not value.is_floating_point():
            found[node.name] = facts = Facts()
            _walk(node, facts)
    return found


def _walk(start: fx.Node, facts: Facts) -> None:
    todo, seen = [(start, 0)], set()
    while todo:
        node, shift = todo.pop()
        for user in node.users:
            name = base_name(user)
            size = _indexed(user, node, name)
            if size is not None:
                facts.indexed = True
                facts.high = min(size - 1 - shift, size - 1 - shift if facts.high is None else facts.high)
                facts.low = max(facts.low, -shift)
                continue
            if name in ("eq", "ne", "gt", "ge", "lt", "le") and len(user.args) > 1 and isinstance(user.args[1], int | float):
                facts.compared.add(float(user.args[1]) - shift)
                continue
            moved = shift
            if name in ("add", "sub") and isinstance(user.args[1], int) and user.args[0] is node and not user.kwargs:
                moved = shift + (user.args[1] if name == "add" else -user.args[1])
            elif name != "getitem" and name not in _MOVING:
                continue
            if (user, moved) not in seen:
                seen.add((user, moved))
                todo.append((user, moved))


def _indexed(user: fx.Node, node: fx.Node, name: str) -> int | None:
    """The size of what `node` indexes in `user`; None where it indexes nothing of a known size."""
    if name == "one_hot":
        classes = user.args[1] if len(user.args) > 1 else -1
        return classes if isinstance(classes, int) and classes > 0 else None
    if name == "index" and isinstance(user.args[1], list | tuple) and node in user.args[1]:
        return None if _kind(node) == "bool" else _size(user.args[0], list(user.args[1]).index(node))
    if name not in _INDEXING:
        return None
    place, table, axis = _INDEXING[name]
    if len(user.args) <= place or user.args[place] is not node:
        return None
    dim = 0 if axis is None else user.args[axis] if len(user.args) > axis else None
    return _size(user.args[table], dim) if isinstance(dim, int) else None


def _size(node: Any, dim: int) -> int | None:
    value = getattr(node, "meta", {}).get("val")
    size = value.shape[dim] if value is not None and -len(value.shape) <= dim < len(value.shape) else None
    return size if isinstance(size, int) else None


def _kind(node: fx.Node) -> str:
    return str(getattr(node.meta.get("val"), "dtype", "")).removeprefix("torch.")


def base_name(node: fx.Node) -> str:
    """The operator of a node without namespace and overload: "conv2d" for aten.conv2d.default."""
    from graphopt.aten import operator_of

    name = operator_of(node)
    return name.split(".")[1] if name.startswith("aten.") else name


def live_nodes(program: ExportedProgram) -> Iterator[tuple[fx.Node, bool]]:
    """The operators in order, each with whether its value depends on the values of the inputs, or is drawn at random.

    Sizes are no values: what is made of them alone is the same for all inputs of one size.
    """
    given = set(program.graph_signature.user_inputs)
    live: set[fx.Node] = {n for n in program.graph.nodes if n.op == "placeholder" and n.name in given}
    for node in program.graph.nodes:
        if node.op != "call_function":
            continue
        name = base_name(node)
        reads = [] if name in ("sym_size", "sym_numel", "ones_like", "zeros_like", "full_like", "new_zeros", "new_ones", "new_full") else [
            n for n in node.all_input_nodes if n in live]  # fmt: skip
        depends = bool(reads) or "rand" in name or "bernoulli" in name or "dropout" in name
        if depends:
            live.add(node)
        yield node, depends


def independent(program: ExportedProgram) -> list[bool]:
    """For each output of the graph, mutated buffers first, whether it is the same for all inputs of one size."""
    import torch

    given = set(program.graph_signature.user_inputs)
    live = {node for node, depends in live_nodes(program) if depends}
    results = program.graph.output_node().args[0]

    def depends(value: Any) -> bool:
        return isinstance(value, torch.fx.Node) and (value in live or (value.op == "placeholder" and value.name in given))

    return [not depends(value) for value in results]


def ranges(program: ExportedProgram) -> list[tuple[float, float] | None]:
    """For each output of the graph, the fixed range that it is bound to by the operator that it ends in."""
    return [_range(value) for value in program.graph.output_node().args[0]]


def _range(value: Any) -> tuple[float, float] | None:
    for _ in range(32):
        if getattr(value, "op", "") != "call_function":
            return None
        name = base_name(value)
        if name in _RANGES:
            if _RANGES[name] is not None:
                return _RANGES[name]
            low, high = (*value.args[1:], -1.0, 1.0)[:2] if name == "hardtanh" else (*value.args[1:], None, None)[:2]
            number = isinstance(low, int | float) and isinstance(high, int | float)
            return (float(low), float(high)) if number and low < high else None
        if name not in _SHAPING and name != "getitem":
            return None
        value = value.args[0]
    return None

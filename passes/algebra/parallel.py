"""Linear operators side by side over one input: which belong together, and where their outputs meet again."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from graphopt.rewriting import (
    Context,
    Editor,
    Match,
    Refuse,
    Rewrite,
    apply,
    constant_array,
    constant_tensor,
    guards,
    same_domain,
    scalar_of,
)

from .linear import Linear

_ACTIVATIONS = frozenset((
    "Relu", "LeakyRelu", "Elu", "Celu", "Selu", "ThresholdedRelu", "Sigmoid", "HardSigmoid", "HardSwish", "Tanh", "Softplus", "Softsign",
    "Mish", "Gelu", "Swish", "Clip",
))  # fmt: skip


@dataclass(frozen=True)
class Branch:
    """One operator over the common input.

    Attributes:
        linear: the operator, with its weight and bias.
        tail: the activation that alone follows it, or None.
        tail_key: equal for branches whose activations are equal.
    """

    linear: Linear
    tail: ir.Node | None = None
    tail_key: Hashable = None

    @property
    def output(self) -> ir.Value:
        """What the rest of the graph sees of the branch."""
        return self.linear.output if self.tail is None else self.tail.outputs[0]

    def without_tail(self) -> Branch:
        """The branch with its activation left to the rest of the graph."""
        return replace(self, tail=None, tail_key=None)


@dataclass(frozen=True)
class Meeting:
    """A Concat in which outputs of branches stand side by side: runs of (first input, branches in order)."""

    concat: ir.Node
    runs: tuple[tuple[int, tuple[Branch, ...]], ...]

    @property
    def branches(self) -> list[Branch]:
        """All branches that meet here."""
        return [b for _, run in self.runs for b in run]


def groups(context: Context, types: tuple[str, ...], key: Callable[[ir.Node], Hashable | None]) -> list[list[ir.Node]]:
    """Nodes of `types` in one graph with one first input and one key, two or more, in the order of the graph.

    A key of None leaves a node out. Linear in the nodes.
    """
    found: dict[Hashable, list[ir.Node]] = {}
    for node in context.index.of_types(types):
        if same_domain(node.domain, "") and len(node.inputs) > 1 and node.inputs[0] is not None and node.inputs[1] is not None:
            shared = key(node)
            if shared is not None:
                found.setdefault((node.graph, node.inputs[0], shared), []).append(node)
    chosen = [nodes for nodes in found.values() if len(nodes) > 1]
    wanted = {node for nodes in chosen for node in nodes}
    # The index is in the order of creation, which a rewrite before this one may have made another than the graph's.
    graphs = dict.fromkeys(nodes[0].graph for nodes in chosen)
    place = {node: i for graph in graphs for i, node in enumerate(graph or ()) if node in wanted}
    return [sorted(nodes, key=place.__getitem__) for nodes in chosen]


def weight_type(value: ir.Value) -> tuple[tuple[int, ...], ir.DataType] | None:
    """Shape and element type of a weight, constant or one that a caller may override; None where there is no default."""
    tensor = constant_tensor(value)
    if tensor is None and value.is_initializer():
        tensor = value.const_value
    return None if tensor is None else (tuple(tensor.shape.numpy()), tensor.dtype)


def attribute_key(node: ir.Node, drop: Iterable[str] = ()) -> Hashable:
    """The attributes of a node as something to compare; a parameter of a function is equal to itself."""
    skipped = frozenset(drop)
    return tuple(
        (a.name, ("parameter", a.ref_attr_name) if a.is_ref() else _hashable(a.value))
        for a in sorted(node.attributes.values(), key=lambda a: a.name)
        if a.name not in skipped
    )


def _hashable(value: object) -> Hashable:
    return tuple(value) if isinstance(value, list | tuple) else value  # type: ignore[return-value]


def readable(nodes: Sequence[ir.Node], read: Callable[[ir.Node], Linear], context: Context) -> list[Linear]:
    """Those of the nodes that can be merged; the others are refused, each with its reason."""
    found = []
    for node in nodes:
        try:
            found.append(read(node))
            context.log.settled(node)
        except Refuse as refusal:
            context.log.refuse(node, refusal.reason)
    return found


def sole_consumer(value: ir.Value) -> ir.Node | None:
    """The one node that consumes a value, once and in its own graph; None where there is more to it."""
    if value.is_graph_output():
        return None
    uses = value.uses()
    if len(uses) != 1 or uses[0].node.graph is not value.producer().graph:  # type: ignore[union-attr]
        return None
    return uses[0].node


def with_tail(linear: Linear) -> Branch:
    """The branch of an operator, with the activation behind it where that is its only consumer."""
    tail = sole_consumer(linear.output)
    if tail is None or tail.op_type not in _ACTIVATIONS or not same_domain(tail.domain, "") or tail.inputs[0] is not linear.output:
        return Branch(linear)
    limits = tuple(None if v is None else scalar_of(v) for v in tail.inputs[1:])
    if any(v is not None and limit is None for v, limit in zip(tail.inputs[1:], limits)):
        return Branch(linear)
    return Branch(linear, tail, (tail.op_type, limits, attribute_key(tail)))


def nodes_of(branches: Sequence[Branch], root: ir.Node | None = None) -> list[ir.Node]:
    """The nodes that branches consist of, with `root` before them."""
    nodes = [n for b in branches for n in (b.linear.node, b.linear.add, b.tail) if n is not None]
    return nodes if root is None else [root, *nodes]


def meetings(branches: Sequence[Branch], axis: Callable[[ir.Node, Branch], bool]) -> list[Meeting]:
    """The Concats, along the axis that `axis` accepts, in which outputs of branches stand side by side and nowhere else."""
    found: dict[ir.Node, dict[ir.Value, Branch]] = {}
    for branch in branches:
        # The activation may be common to the branches, or each may reach the Concat without one.
        concat = sole_consumer(branch.output)
        if concat is not None and concat.op_type == "Concat" and same_domain(concat.domain, "") and axis(concat, branch):
            found.setdefault(concat, {})[branch.output] = branch
    result = []
    for concat, met in found.items():
        runs: list[tuple[int, tuple[Branch, ...]]] = []
        run: list[Branch] = []
        for i, value in enumerate((*concat.inputs, None)):
            branch = None if value is None else met.get(value)
            if run and (branch is None or branch.tail_key != run[0].tail_key):
                runs.append((i - len(run), tuple(run)))
                run = []
            if branch is not None:
                run.append(branch)
        runs = [(start, run) for start, run in runs if len(run) > 1]
        if runs:
            result.append(Meeting(concat, tuple(runs)))
    return result


#: States one operator for branches and returns its output; the value is what that stands for, where known.
Merge = Callable[[Sequence[Branch], ir.Value | None], ir.Value]


def apply_to(rewrite: Rewrite, branches: Sequence[Branch], axis: Callable[[ir.Node, Branch], bool], context: Context) -> None:
    """Apply a rewrite to each meeting of the branches (along the axis that `axis` accepts), and to those that are left."""
    met: set[ir.Node] = set()
    for meeting in meetings(branches, axis):
        met.update(b.linear.node for b in meeting.branches)
        apply(rewrite, Match(meeting.concat, nodes_of(meeting.branches, meeting.concat), {"meeting": meeting}), context)
    rest = [b for b in branches if b.linear.node not in met]
    if len(rest) > 1:
        apply(rewrite, Match(rest[0].linear.node, nodes_of(rest), {"branches": rest}), context)


def met(match: Match, editor: Editor, merge: Merge, growth: int) -> bool:
    """Whether the branches of a match meet in a Concat; they are merged then, where weights grow by `growth` bytes at most."""
    if "meeting" not in match:
        return False
    meeting: Meeting = match["meeting"]
    for branch in meeting.branches:
        branch.linear.guard_growth(growth)
    state_meeting(meeting, editor, merge)
    return True


def split(branches: Sequence[Branch], axis: int, editor: Editor, merge: Merge, growth: int) -> None:
    """Merge branches that do not meet, with a Split behind them; their activations only where they are equal."""
    for branch in branches:
        branch.linear.guard_growth(growth)
    if len({b.tail_key for b in branches}) > 1:
        branches = [b.without_tail() for b in branches]
    state_split(merge(branches, None), branches, axis, editor, editor.match.root)


def state_meeting(meeting: Meeting, editor: Editor, merge: Merge) -> None:
    """State one operator for each run, and a Concat of what is left where that is more than one value."""
    concat = meeting.concat
    output = concat.outputs[0]
    inputs: list[ir.Value | None] = list(concat.inputs)
    whole = len(meeting.runs) == 1 and len(meeting.runs[0][1]) == len(inputs)
    for start, run in reversed(meeting.runs):
        inputs[start : start + len(run)] = [merge(run, output if whole else None)]
    if whole:
        editor.replace(output, inputs[0])  # type: ignore[arg-type]
    else:
        editor.replace(output, editor.node("Concat", inputs, dict(concat.attributes), name=concat.name or None, like=output))


def state_tail(branch: Branch, x: ir.Value, editor: Editor, like: ir.Value | None) -> ir.Value:
    """State the activation of a branch over `x`."""
    tail = branch.tail
    if tail is None:
        return x
    limits = [None if v is None else editor.constant(constant_array(v), v.name or "limit") for v in tail.inputs[1:]]  # type: ignore[arg-type]
    return editor.node(tail.op_type, [x, *limits], dict(tail.attributes), name=tail.name or None, like=like)


def state_split(x: ir.Value, branches: Sequence[Branch], axis: int, editor: Editor, node: ir.Node) -> None:
    """State the Split of `x` into the outputs of the branches."""
    sizes = [b.linear.channels for b in branches]
    opset = editor.context.opset(node, "")
    label = f"{node.name or branches[0].output.name}/split"
    if opset >= 13:
        parts = editor.node("Split", [x, editor.constant(sizes, f"{label}/sizes")], {"axis": axis}, outputs=len(sizes), name=label)
    else:
        parts = editor.node("Split", [x], {"axis": axis, "split": sizes}, outputs=len(sizes), name=label)
    for branch, part in zip(branches, parts):
        part.type, part.shape = branch.output.type, branch.output.shape
        editor.replace(branch.output, part)


def joined(arrays: Sequence[np.ndarray], axis: int) -> np.ndarray:
    """Weights side by side, in their own type."""
    return np.ascontiguousarray(np.concatenate(arrays, axis=axis))


def joined_bias(linears: Sequence[Linear]) -> np.ndarray | None:
    """The biases side by side, zero where there is none; None where no operator has one."""
    if all(linear.bias is None for linear in linears):
        return None
    dtype = constant_tensor(linears[0].weight).dtype.numpy()  # type: ignore[union-attr]
    parts = []
    for linear in linears:
        if linear.bias is None:
            parts.append(np.zeros(linear.channels, dtype))
        else:
            bias = guards.float_constant(linear.bias, "the bias").reshape(-1)
            parts.append(np.broadcast_to(bias, (linear.channels,)))
    return joined(parts, 0)

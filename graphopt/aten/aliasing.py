"""Which values of a functional graph share memory, so that what a caller holds of it stays the caller's own.

Inside of the graph nothing is written to, so sharing cannot be seen there. Outside it can: who writes into an output must
change neither an input, nor a parameter, nor another output, unless the original did that too.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import fx
from torch.export.graph_signature import OutputKind

from graphopt.aten.program import operator_of
from graphopt.rewriting.base import Refuse

if TYPE_CHECKING:
    from graphopt.aten.context import AtenContext

_MOST = 256  # values that are looked at for one question
_UNANNOTATED = frozenset({"aten._unsafe_view.default"})  # a view, though its schema does not say so
# Operators made of others whose schema cannot be trusted to tell, and whose result is known to be new memory.
_NEW = frozenset({
    "linear", "matmul", "bilinear", "conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d", "layer_norm",
    "group_norm", "instance_norm", "batch_norm", "rms_norm", "scaled_dot_product_attention", "softmax", "log_softmax", "lstm", "gru",
    "rnn_tanh", "rnn_relu", "lstm_cell", "gru_cell", "max_pool1d", "max_pool2d", "max_pool3d", "avg_pool1d", "adaptive_avg_pool1d",
    "adaptive_avg_pool2d", "adaptive_avg_pool3d", "upsample_nearest2d", "upsample_bilinear2d", "embedding_bag", "where", "std", "var",
    "one_hot", "pad", "square", "hardswish", "selu", "relu6", "mish", "log_sigmoid", "prelu", "silu", "softplus", "isfinite", "cdist",
    "cosine_similarity", "multiply", "divide", "subtract", "greater", "less",
})  # fmt: skip
Root = fx.Node | tuple[fx.Node, int]


def guard(context: AtenContext, old: fx.Node, new: fx.Node) -> None:
    """Refuse where `new` in the place of `old` would let a caller see memory shared that was not, or no longer shared."""
    if not _escapes(context, old, None):
        return
    if new.op == "placeholder" and _is_returned(context, old):
        raise Refuse(f"it is an output, and {new.name!r} is not the program's to hand out")
    before, after = roots(old), roots(new)
    if before is None or after is None:
        raise Refuse("it is not known what memory its result shares, which is returned")
    for root in after:
        if root in before:
            continue
        if isinstance(root, fx.Node) and root.op == "placeholder":
            raise Refuse(f"its result is returned, and what replaces it shares the memory of {root.name!r}")
        if _escapes(context, root, old):
            raise Refuse("it and what replaces it are both returned, and who writes into one would change the other")
    for root in before:
        if root not in after and isinstance(root, fx.Node) and root.op == "placeholder":
            raise Refuse(f"its result is returned and shares the memory of {root.name!r}, which what replaces it would not")


def roots(node: fx.Node) -> frozenset[Root] | None:
    """The values whose memory a value may share; itself where it has its own. None: too far off to tell."""
    found: dict[Root, None] = {}
    seen = {node: None}
    todo = [node]
    while todo:
        at = todo.pop()
        sources = shared_with(at)
        if not sources:
            found[_named(at)] = None
        for source in sources:
            if source not in seen:
                seen[source] = None
                todo.append(source)
        if len(seen) > _MOST:
            return None
    return frozenset(found)


def shared_with(node: fx.Node) -> list[fx.Node]:
    """The inputs whose memory the result of a node may share; none where it has memory of its own."""
    if node.op != "call_function" or not _holds_tensors(node):
        return []
    if operator_of(node) == "getitem":
        source = node.args[0]
        return [source] if isinstance(source, fx.Node) and shared_with(source) else []
    if not _may_share(node.target):
        return []
    return [n for n in node.all_input_nodes if _holds_tensors(n)]


@cache
def _may_share(target: Any) -> bool:
    if not isinstance(target, torch._ops.OpOverload):
        return True
    if any(r.alias_info is not None for r in target._schema.returns) or str(target) in _UNANNOTATED:
        return True
    composite = target.has_kernel_for_dispatch_key(torch._C.DispatchKey.CompositeImplicitAutograd)
    return composite and target._opname not in _NEW


def _named(node: fx.Node) -> Root:
    """One name for the same part of one result, however often it is read."""
    if operator_of(node) == "getitem":
        return node.args[0], node.args[1]  # type: ignore[return-value]
    return node


def _escapes(context: AtenContext, root: Root, without: fx.Node | None) -> bool:
    """Whether a caller gets hold of the memory of a value, other than by way of the node `without`."""
    if isinstance(root, fx.Node):
        todo = [root]
    else:
        todo = [u for u in root[0].users if operator_of(u) == "getitem" and u.args[1] == root[1]]
    seen = set(todo)
    while todo:
        at = todo.pop()
        if at is without:
            continue
        if len(seen) > _MOST or _is_returned(context, at):
            return True
        for user in at.users:
            if user not in seen and at in shared_with(user):
                seen.add(user)
                todo.append(user)
    return False


def _is_returned(context: AtenContext, node: fx.Node) -> bool:
    """Whether a value is an output for the caller; what is stored in a buffer is copied there."""
    output = context.program.output
    if output not in node.users:
        return False
    pairs = zip(output.args[0], context.program.output_specs, strict=True)  # type: ignore[arg-type]
    return any(value is node and spec.kind is OutputKind.USER_OUTPUT for value, spec in pairs)


def _holds_tensors(node: fx.Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, torch.Tensor | list | tuple) or value is None

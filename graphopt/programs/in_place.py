"""Activations and sums of a module made from a program write over values that nothing else reads.

An exported program is functional: `relu_` became `relu`, which takes new memory for its result. A module that is called,
not exported, may write in place again; `python -m benchmarks.torch_eager`
measures what modules gain, this included.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

_aten = torch.ops.aten
_IN_PLACE = {
    _aten.relu.default: _aten.relu_.default,
    _aten.hardtanh.default: _aten.hardtanh_.default,
    _aten.leaky_relu.default: _aten.leaky_relu_.default,
    _aten.silu.default: _aten.silu_.default,
    _aten.hardswish.default: _aten.hardswish_.default,
    _aten.add.Tensor: _aten.add_.Tensor,
}
_ADD = _aten.add.Tensor
# Their results are new memory, which their own gradients do not read.
_FRESH = frozenset({
    _aten.conv1d.default, _aten.conv2d.default, _aten.conv3d.default, _aten.conv2d.padding, _aten.conv_transpose2d.input,
    _aten.linear.default, _aten.addmm.default, _aten.mm.default, _aten.add.Tensor, _aten.add_.Tensor,
})  # fmt: skip


def written_in_place(module: fx.GraphModule) -> fx.GraphModule:
    """The module, changed, with operators that write over their first operand where that is new memory with no other reader.

    Answers are the same to the bit, and gradients are as before. Values that are returned, inputs, parameters and
    buffers are never written to.
    """
    count = 0
    for node in module.graph.nodes:
        if node.op != "call_function" or node.target not in _IN_PLACE or node.kwargs.get("alpha", 1) != 1:
            continue
        operands = [n for n in node.args[:2] if isinstance(n, fx.Node)] if node.target is _ADD else [node.args[0]]
        if node.target is _ADD and (len(operands) != 2 or operands[0] is operands[1]):
            continue
        target = next((n for n in operands if _spare(n, node)), None)
        if target is None:
            continue
        node.args = (target, *(n for n in operands if n is not target), *node.args[len(operands) :])
        node.target = _IN_PLACE[node.target]
        count += 1
    if count:
        module.recompile()
    return module


def _spare(value: Any, user: fx.Node) -> bool:
    """Whether `user` may write its result over `value`."""
    if not isinstance(value, fx.Node) or value.target not in _FRESH or list(value.users) != [user]:
        return False
    old, new = value.meta.get("val"), user.meta.get("val")
    if not isinstance(old, torch.Tensor) or not isinstance(new, torch.Tensor) or old.dtype != new.dtype:
        return False
    return _layout(old) == _layout(new)


def _layout(tensor: torch.Tensor) -> list[str]:
    """Shape and strides, symbols by name."""
    return [str(n) for n in (*tensor.shape, *tensor.stride())]

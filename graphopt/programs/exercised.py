"""How much of a program a set of samples exercises: values that are the same everywhere hide whatever feeds them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from graphopt.programs.calling import as_array
from graphopt.programs.captured import Captured
from graphopt.programs.facts import base_name, live_nodes
from graphopt.programs.torch_side import preserved, quiet
from graphopt.verification.coverage import Coverage, Seen, spread
from graphopt.verification.samples import Sample

if TYPE_CHECKING:
    from torch import fx

_UNIT = (0.0, 1.0)
_ENDS = {"sigmoid": _UNIT, "hardsigmoid": _UNIT, "softmax": _UNIT, "_softmax": _UNIT, "tanh": (-1.0, 1.0), "relu": (0.0,)}


def measure(captured: Captured, samples: Sequence[Sample], *, limit: int = 200, seconds: float = 8.0) -> Coverage:
    """Watches up to `limit` float values of the program on up to four samples, fewer where that takes too long.

    Never raises for what the program does not run: that is a note.
    """
    import torch
    from torch.utils import _pytree as pytree

    from graphopt.aten.arrays import to_tensor

    chosen = spread(list(samples), 4)
    if not chosen:
        return Coverage(note="no samples")
    floats = [n for n, depends in live_nodes(captured.program) if depends and _is_float(n)]
    watched = {n.name: n for n in spread(floats, limit)}
    seen = {name: Seen(_ENDS.get(base_name(node), ())) for name, node in watched.items()}
    with quiet():
        module = captured.program.module()

    class Watch(torch.fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            value = super().run_node(n)
            if n.name in seen and isinstance(value, torch.Tensor):
                seen[n.name].add(as_array(value))
            return value

    end = time.monotonic() + seconds
    examples = captured.tensors()
    for number, sample in enumerate(chosen):
        if number and time.monotonic() > end:
            break
        try:
            tensors = {name: to_tensor(sample.feeds[name].copy()).to(example.device) for name, example in examples.items()}
            leaves = pytree.tree_leaves(captured.call_with(tensors))
            with torch.no_grad(), preserved(module), quiet():
                Watch(module).run(*leaves, enable_io_processing=False)
        except Exception as error:  # a figure less
            return Coverage(note=f"not measured: {(str(error).splitlines() or [type(error).__name__])[0][:200]}")
    return Coverage.of(seen)


def _is_float(node: fx.Node) -> bool:
    import torch

    value = node.meta.get("val")
    return isinstance(value, torch.Tensor) and value.is_floating_point()

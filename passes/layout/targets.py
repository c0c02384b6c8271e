"""The shape to ask a Reshape for."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from graphopt.rewriting import Context


def reshape_target(context: Context, before: Sequence[int | str], after: Sequence[int | str]) -> list[int] | None:
    """A constant that turns any value of shape `before` into shape `after`; None where none is known to.

    Sizes that are not known are copied from where they stand at the same place (0), and one may be worked out (-1), if
    what is copied is not 0 then.
    """
    if 0 in before or 0 in after:
        return None
    copied = [not isinstance(d, int) and i < len(before) and before[i] == d for i, d in enumerate(after)]
    target = [d if isinstance(d, int) else 0 if copy else -1 for d, copy in zip(after, copied)]
    if target.count(-1) > 1:
        return None
    if -1 in target and not all(context.shapes.positive(ir.SymbolicDim(d)) for d, copy in zip(after, copied) if copy):
        return None
    return target

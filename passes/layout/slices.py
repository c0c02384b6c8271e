"""What a Slice takes along each axis."""

from __future__ import annotations

from typing import Final, TypeAlias

import onnx_ir as ir

from graphopt.rewriting import Context

from ..arguments import ints, normal_axes

Cut: TypeAlias = tuple[int, int, int]
"""Start, end and step, as given."""

TO_THE_END: Final = 2**31 - 1  # what the operator's specification recommends for "to the end of a dimension of unknown size"
_FARTHEST: Final = 2**63 - 1


def cuts_of(context: Context, node: ir.Node) -> dict[int, Cut] | None:
    """The cuts of a Slice by axis, counted from the front; None where they are not all known before the model runs."""
    starts, ends, axes, steps = (ints(context, node, name, i) for i, name in enumerate(("starts", "ends", "axes", "steps"), start=1))
    if not isinstance(starts, tuple) or not isinstance(ends, tuple) or len(starts) != len(ends):
        return None
    steps = (1,) * len(starts) if steps is None else steps
    axes = tuple(range(len(starts))) if axes is None else axes
    if not isinstance(axes, tuple) or not isinstance(steps, tuple) or not len(starts) == len(axes) == len(steps):
        return None
    normal = normal_axes(axes, context.rank(node.inputs[0]))
    if normal is None or len(set(normal)) != len(normal) or 0 in steps:
        return None
    return dict(zip(normal, zip(starts, ends, steps)))


def taken(cut: Cut, size: int) -> range:
    """The places that a cut takes of an axis of `size`, as the specification of Slice clamps them."""
    start, end, step = cut
    start, end = (v + size if v < 0 else v for v in (start, end))
    if step > 0:
        return range(min(max(start, 0), size), min(max(end, 0), size), step)
    return range(min(max(start, 0), size - 1), min(max(end, -1), size - 1), step)  # a start before the first is the first


def cut_of(places: range, size: int) -> Cut:
    """The cut that takes exactly `places`."""
    if not places:
        return 0, 0, 1
    if len(places) == 1:
        return places[0], places[0] + 1, 1
    return places.start, places.stop if places.stop >= 0 else -size - 1, places.step


def joined(first: Cut, second: Cut, size: int | None) -> Cut | None:
    """What two cuts in a row take at once; None where that hangs on a size that is not known."""
    if size is not None and size > 0:
        places = taken(first, size)
        inner = taken(second, len(places)) if places else places
        return cut_of(places[inner.start : inner.stop : inner.step] if inner.step > 0 else _backwards(places, inner), size)
    if min(*first, *second) < 0:
        return None
    (start, end, step), (begin, stop, stride) = first, second
    far = _FARTHEST if stop >= TO_THE_END else start + stop * step
    end = _FARTHEST if end >= TO_THE_END else end
    joint = start + begin * step, min(end, far), step * stride
    return joint if max(joint) <= _FARTHEST else None


def _backwards(places: range, inner: range) -> range:
    return places[inner.start : inner.stop if inner.stop >= 0 else None : inner.step]


def only_cut(context: Context, node: ir.Node) -> tuple[int, Cut] | None:
    """The one axis along which a Slice takes less than all, and its cut; None where there are more, or none."""
    cuts, dims = cuts_of(context, node), context.dims(node.inputs[0])
    if cuts is None:
        return None
    found = [(a, cut) for a, cut in cuts.items() if not is_whole(cut, dims[a] if dims is not None and a < len(dims) else None)]
    return found[0] if len(found) == 1 else None


def is_whole(cut: Cut, size: int | str | None) -> bool:
    """Whether a cut takes all of an axis."""
    start, end, step = cut
    return start == 0 and step == 1 and (end >= TO_THE_END or (isinstance(size, int) and end >= size))

"""DepthToSpace and SpaceToDepth spelled out with Reshape and Transpose."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

from graphopt.rewriting import Dim, Editor, Match, Pattern, Refuse, Rewrite, guards, op, var

from ..arguments import element_type
from .reading import claim, needs_opset

_TYPES = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.DOUBLE)
_DCR, _CRD, _INTO_DEPTH = (0, 3, 4, 1, 5, 2), (0, 1, 4, 2, 5, 3), (0, 3, 5, 1, 2, 4)


@dataclass(frozen=True)
class FuseDepthToSpace(Rewrite):
    """Write Reshape, Transpose, Reshape that move blocks between channels and space as DepthToSpace or SpaceToDepth.

    Shi et al. 2016, "Real-Time Single Image and Video Super-Resolution Using an Efficient Sub-Pixel Convolutional Neural
    Network". Channels may be split as [block, block, channel] (mode DCR) or [channel, block, block] (CRD).
    """

    name = "fuse-depth-to-space"

    def patterns(self) -> Sequence[Pattern]:
        split = op("Reshape", var("x"), ..., bind="split")
        return (op("Reshape", op("Transpose", split, bind="transpose"), ..., bind="join"),)

    def rewrite(self, match: Match, editor: Editor) -> None:
        context, join = editor.context, match["join"]
        perm = tuple(guards.attribute(match["transpose"], "perm", ()))
        if perm not in (_DCR, _CRD, _INTO_DEPTH):
            return
        before, split, after = (context.dims(v) for v in (match["x"], match["split"].outputs[0], join.outputs[0]))
        if None in (before, split, after) or (len(before), len(split), len(after)) != (4, 6, 4):
            return
        block = _space(before, split, after) if perm == _INTO_DEPTH else _depth(before, split, after, perm)
        if block is None:
            return
        claim(match, [], join)
        mode = "CRD" if perm == _CRD else None
        needs_opset(context, join, "DepthToSpace", 1)
        if mode:
            needs_opset(context, join, "DepthToSpace of this order", 11)
        guards.require(element_type(context, match["x"]) in _TYPES, "it is not known to be of a type that runtimes move so")
        op_type = "SpaceToDepth" if perm == _INTO_DEPTH else "DepthToSpace"
        attributes = {"blocksize": block, "mode": mode}
        editor.replace(join.outputs[0], editor.node(op_type, [match["x"]], attributes, name=join.name, like=join.outputs[0]))


Dims = tuple[Dim, ...]


def _depth(before: Dims, split: Dims, after: Dims, perm: tuple[int, ...]) -> int | None:
    """The block size of a DepthToSpace; None: blocks and channels are not split so."""
    block, channels = (split[1], split[3]) if perm == _DCR else (split[2], split[1])
    other = split[2] if perm == _DCR else split[3]
    if block != other or not isinstance(block, int) or not isinstance(channels, int) or block < 2:
        return None
    _known(before[0] == split[0] == after[0] and before[2:] == split[4:])
    if before[1] != channels * block * block or after[1] != channels:
        return None
    return block if _scaled(after[2:], before[2:], block) else None


def _space(before: Dims, split: Dims, after: Dims) -> int | None:
    """The block size of a SpaceToDepth; None: blocks are not split so."""
    block, channels = split[3], split[1]
    if block != split[5] or not isinstance(block, int) or not isinstance(channels, int) or block < 2:
        return None
    _known(before[0] == split[0] == after[0] and split[2::2] == after[2:])
    if before[1] != channels or after[1] != channels * block * block:
        return None
    return block if _scaled(before[2:], after[2:], block) else None


def _scaled(large: Dims, small: Dims, block: int) -> bool:
    """Whether both sizes are `block` times as large; one that is not known follows from the other, elements being kept."""
    equal = [isinstance(a, int) and isinstance(b, int) and a == b * block for a, b in zip(large, small)]
    symbols = [isinstance(a, str) and isinstance(b, str) for a, b in zip(large, small)]
    _known(sum(symbols) < 2)
    return all(e or s for e, s in zip(equal, symbols))


def _known(condition: bool) -> None:
    if not condition:
        raise Refuse("sizes that must be kept are not known to be")

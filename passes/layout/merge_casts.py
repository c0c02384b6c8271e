"""A Cast behind a Cast that loses nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from onnx_ir import DataType

from graphopt.rewriting import Editor, Match, Pattern, Refuse, Rewrite, op, var

from ..arguments import element_type, integer

if TYPE_CHECKING:
    from graphopt.aten import AtenContext

# Of an integer type, the bits that its values need; of a float type, significant bits and exponents of the largest
# value and of the smallest one, subnormal, as powers of two.
_INTEGERS = {
    DataType.INT8: (True, 7), DataType.UINT8: (False, 8), DataType.INT16: (True, 15), DataType.UINT16: (False, 16),
    DataType.INT32: (True, 31), DataType.UINT32: (False, 32), DataType.INT64: (True, 63), DataType.UINT64: (False, 64),
}
_FLOATS = {
    DataType.FLOAT16: (11, 15, -24), DataType.BFLOAT16: (8, 127, -133), DataType.FLOAT: (24, 127, -149), DataType.DOUBLE: (53, 1023, -1074),
}


@dataclass(frozen=True)
class MergeCasts(Rewrite):
    """Cast at once where the type in between holds every value exactly."""

    name = "merge-casts"
    kinds = frozenset({"onnx", "torch"})

    def run_aten(self, context: AtenContext) -> None:
        from ..aten import merge_casts

        merge_casts.run(context)

    def patterns(self) -> Sequence[Pattern]:
        return (op("Cast", op("Cast", var("x"), bind="inner")),)

    def rewrite(self, match: Match, editor: Editor) -> None:
        outer, x = match.root, match["x"]
        source = element_type(editor.context, x)
        targets = integer(match["inner"], "to", 0), integer(outer, "to", 0)
        if source is None or not all(targets):
            return
        between, target = (DataType(t) for t in targets)  # type: ignore[arg-type]
        if source == between or between == target:
            return  # one of them is no cast at all
        if not holds(between, source):
            raise Refuse(f"{between.name} in between does not hold every {source.name} exactly")
        if not same_result(source, target):
            raise Refuse(f"casts to {target.name} from {source.name} and from {between.name} may differ")
        if source == target:
            editor.replace(outer.outputs[0], x)
        else:
            editor.replace(outer.outputs[0], editor.node("Cast", [x], dict(outer.attributes), name=outer.name))


def holds(wide: DataType, narrow: DataType) -> bool:
    """Whether every value of one numeric type is a value of the other."""
    if wide == narrow:
        return True
    if narrow == DataType.BOOL:
        return wide in _INTEGERS or wide in _FLOATS
    if narrow in _INTEGERS:
        signed, bits = _INTEGERS[narrow]
        if wide in _INTEGERS:
            wide_signed, wide_bits = _INTEGERS[wide]
            return wide_bits >= bits and (wide_signed or not signed)
        return wide in _FLOATS and _FLOATS[wide][0] >= bits and _FLOATS[wide][1] >= bits
    if narrow in _FLOATS and wide in _FLOATS:
        return all((_FLOATS[wide][0] >= _FLOATS[narrow][0], _FLOATS[wide][1] >= _FLOATS[narrow][1], _FLOATS[wide][2] <= _FLOATS[narrow][2]))
    return False


def same_result(source: DataType, target: DataType) -> bool:
    """Whether a cast to `target` gives one result from a value as `source` and as any type that holds it."""
    if target == source or target == DataType.BOOL:
        return True
    if target in _FLOATS:
        # Runtimes go to the 16-bit types by way of FLOAT: what that does not hold would be rounded twice, or once.
        return target in (DataType.FLOAT, DataType.DOUBLE) or holds(DataType.FLOAT, source)
    # Integers wrap alike from any width; a float out of range, and NaN, have no one integer.
    return target in _INTEGERS and (source in _INTEGERS or source == DataType.BOOL)

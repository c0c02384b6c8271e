"""What a target's instructions for products of bytes can hold."""

from __future__ import annotations

from .arithmetic import TOP

#: Instruction sets with sums of products of unsigned and signed bytes that cannot overflow 16 bits on the way.
EXACT = ("amx-int8", "avx512-vnni", "avx-vnni", "neon", "neon-dotprod", "neon-i8mm")
REDUCED = 63  # 255 * 63 * 2 < 2**15

#: Products of a uint8 and an int8 that are sure to fit into 32 bits when they are added up.
LONGEST_SUM = (2**31 - 1) // (255 * 128)


def weight_top(isa: str, signed: bool, reduce_range: str = "auto") -> int:
    """The largest integer of a weight beside activations that are int8 (`signed`) or uint8."""
    saturates = not signed and isa not in EXACT
    return REDUCED if reduce_range == "yes" or (reduce_range == "auto" and saturates) else TOP

"""What a product multiplies its weight with: one row a place of its output."""

from __future__ import annotations

import math
from dataclasses import dataclass

import onnx_ir as ir

from graphopt.rewriting import guards


@dataclass(frozen=True)
class Rows:
    """The rows of the matrix that, times a weight as a matrix, is the result of a Conv, Gemm or MatMul without its bias.

    Attributes:
        value: the name of the product's input.
        groups: of a convolution; each has rows of its own.
        length: of a row: inputs of a group times taps.
        kernel, strides, dilations, pads: of a convolution; () for a product of matrices, whose rows lie along the last axis.
    """

    value: str
    groups: int
    length: int
    kernel: tuple[int, ...] = ()
    strides: tuple[int, ...] = ()
    dilations: tuple[int, ...] = ()
    pads: tuple[int, ...] = ()

    @classmethod
    def of(cls, node: ir.Node, weight: tuple[int, ...]) -> Rows:
        """The rows of a product with a weight of that shape; refuses what has other rows."""
        name = node.inputs[0].name or ""  # type: ignore[union-attr]
        if node.op_type == "MatMul":
            guards.require(len(weight) == 2, f"its weight has {len(weight)} dimensions, not 2")
            return cls(name, 1, weight[0])
        if node.op_type == "Gemm":
            guards.require(not guards.attribute(node, "transA", 0), "its first input is transposed")
            return cls(name, 1, weight[1 if guards.attribute(node, "transB", 0) else 0])
        guards.require(node.op_type == "Conv", f"the rows of {node.op_type} are not known")
        guards.require(guards.attribute(node, "auto_pad", "NOTSET") in ("NOTSET", "VALID"), "it pads automatically")
        axes = len(weight) - 2

        def ints(attribute: str, default: tuple[int, ...]) -> tuple[int, ...]:
            return tuple(map(int, guards.attribute(node, attribute, None) or default))

        return cls(
            name, int(guards.attribute(node, "group", 1)), math.prod(weight[1:]), tuple(weight[2:]), ints("strides", (1,) * axes),
            ints("dilations", (1,) * axes), ints("pads", (0,) * 2 * axes),
        )  # fmt: skip

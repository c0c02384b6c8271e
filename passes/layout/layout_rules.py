"""Which operators work in any layout, and whether their results are then the same to the last bit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from . import flips, flips_shape
from .flips import Rule

_UNARY = (
    "Abs", "BitwiseNot", "Cast", "CastLike", "Ceil", "Clip", "Floor", "Identity", "IsInf", "IsNaN", "LeakyRelu", "Neg", "Not", "Relu",
    "Round", "Sign", "Sqrt", "ThresholdedRelu",
)
_BINARY = (
    "Add", "And", "BitwiseAnd", "BitwiseOr", "BitwiseXor", "Div", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Max",
    "Min", "Mod", "Mul", "Or", "PRelu", "Sub", "Where", "Xor",
)

# Kernels approximate them, and may do so differently in the body of a vector loop and in its remainder.
_APPROXIMATED = (
    "Acos", "Acosh", "Asin", "Asinh", "Atan", "Atanh", "Celu", "Cos", "Cosh", "Elu", "Erf", "Exp", "Gelu", "HardSigmoid", "HardSwish",
    "Log", "Mish", "Reciprocal", "Selu", "Shrink", "Sigmoid", "Sin", "Sinh", "Softplus", "Softsign", "Swish", "Tan", "Tanh",
)

EXACT: Final[Mapping[str, Rule]] = {
    **dict.fromkeys(_UNARY, flips.unary),
    **dict.fromkeys(_BINARY, flips.elementwise),
    **dict.fromkeys(("QuantizeLinear", "DequantizeLinear"), flips.quantize),
    "ArgMax": flips.arg_reduction,
    "ArgMin": flips.arg_reduction,
    "Concat": flips.concat,
    "Expand": flips_shape.expand,
    "Flatten": flips_shape.reshape,
    "Gather": flips.gather,
    "GatherElements": flips.gather_elements,
    "Pad": flips_shape.pad,
    "ReduceMax": flips.reduction,
    "ReduceMin": flips.reduction,
    "Reshape": flips_shape.reshape,
    "Slice": flips_shape.slice_,
    "Split": flips.along_axis(0),
    "Squeeze": flips_shape.squeeze,
    "Tile": flips_shape.tile,
    "Unsqueeze": flips_shape.unsqueeze,
}
"""These are correctly rounded, or do not round: the same wherever an element stands in a loop over many."""

ROUNDING: Final[Mapping[str, Rule]] = {
    **EXACT,
    **dict.fromkeys(_APPROXIMATED, flips.unary),
    **dict.fromkeys(("Mean", "Pow", "Sum"), flips.elementwise),
    **dict.fromkeys(
        ("ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMean", "ReduceProd", "ReduceSum", "ReduceSumSquare"),
        flips.reduction,
    ),
    **dict.fromkeys(("Hardmax", "LogSoftmax", "Softmax"), flips.along_axis(-1, last=True)),
    "BatchNormalization": flips.per_channel,
    "CumSum": flips.cumsum,
    "InstanceNormalization": flips.per_channel,
    "LpNormalization": flips.along_axis(-1),
    "MatMul": flips.matmul,
    "Resize": flips_shape.resize,
}
"""Of the others, sums may be taken in another order, and functions be approximated by another loop."""

FIRST_AND_SECOND: Final = frozenset(("GatherElements", "MatMul"))
EVERY: Final = frozenset((*_BINARY, "Concat", "Mean", "Pow", "Sum"))


def data_inputs(op_type: str, count: int) -> range:
    """The numbers of the inputs whose elements an operator works on; the others are arguments."""
    return range(count if op_type in EVERY else min(count, 2 if op_type in FIRST_AND_SECOND else 1))

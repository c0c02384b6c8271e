"""Folding an affine function per channel into weights and biases: the arithmetic, on arrays.

All sums are in double precision and rounded once to the type of the weights. Conv weights are [Cout, Cin/g, ...],
ConvTranspose weights [Cin, Cout/g, ...], matrices [K, N], or [N, K] where transposed.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from graphopt.rewriting import Refuse

_CANCELLED = 1 << 10
_CHUNK = 1 << 20  # elements that are in double precision at a time
# Bits of the significand, the implicit one included, and the exponent of the smallest normal number.
_TYPES = {"float32": (24, -126), "float64": (53, -1022), "float16": (11, -14), "bfloat16": (8, -126)}


def bn_affine(
    scale: np.ndarray, bias: np.ndarray, mean: np.ndarray, variance: np.ndarray, epsilon: float
) -> tuple[np.ndarray, np.ndarray]:
    """`mul` and `add` with BatchNormalization(x) = x * mul + add, in double precision.

    Ioffe and Szegedy 2015, "Batch Normalization", algorithm 2; folded as in Jacob et al. 2018, "Quantization and
    Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference", section 3.2.
    """
    scale, bias, mean, variance = (np.asarray(a).astype(np.float64) for a in (scale, bias, mean, variance))
    spread = variance + epsilon
    if not (spread > 0).all():
        raise Refuse("a variance plus epsilon is not positive")
    mul = scale / np.sqrt(spread)
    return mul, bias - mean * mul


def elementwise_affine(operator: str, value: np.ndarray, *, constant_first: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """`mul` and `add` of x `operator` value, "Add", "Sub", "Mul" or "Div"; `constant_first`: of value - x.

    Raises:
        Refuse: the value is not finite, or a divisor is zero.
    """
    if not np.isfinite(np.asarray(value, np.float64)).all():
        raise Refuse("the constant would not be finite")
    value = np.asarray(value).astype(np.float64)
    one, zero = np.ones(value.shape), np.zeros(value.shape)
    if operator == "Mul":
        return value, zero
    if operator == "Div":
        if not (value != 0).all():
            raise Refuse("it divides by zero")
        return 1 / value, zero
    if operator == "Add":
        return one, value
    return (-one, value) if constant_first else (one, -value)


def composed_affine(steps: Sequence[tuple[np.ndarray, np.ndarray]], dtype: np.dtype) -> tuple[np.ndarray, np.ndarray]:
    """`mul` and `add`, in the type `dtype`, of affine functions one behind the other, the first first.

    Raises:
        Refuse: the constants may be meant to round, or one of the results would not be what the type holds.
    """
    mul, shift, largest = np.ones(()), np.zeros(()), np.zeros(())
    for factor, term in steps:
        mul, shift = mul * factor, shift * factor + term
        largest = np.maximum(largest * np.abs(factor), np.abs(term))
    if (np.abs(shift) * _CANCELLED < largest).any():
        raise Refuse("the constants that are added cancel, which may be meant to round")
    if (mul == 0).any() and not any((factor == 0).any() for factor, _ in steps):
        raise Refuse("the product of the constants would be zero")
    least = np.finfo(dtype).tiny if dtype in (np.float32, np.float64, np.float16) else np.finfo(np.float32).tiny
    if ((mul != 0) & (np.abs(mul) < least)).any():
        raise Refuse("the product of the constants would be too small")
    return rounded(mul, dtype, "the product of the constants"), rounded(shift, dtype, "the sum of the constants")


def conv_output_factor(mul: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """`mul`, one value an output channel, shaped to scale a Conv weight."""
    return mul.reshape(-1, *[1] * (weight.ndim - 1))


def conv_input_factor(mul: np.ndarray, weight: np.ndarray, group: int) -> np.ndarray:
    """`mul`, one value an input channel, shaped to scale a Conv weight."""
    per_output = np.repeat(mul.reshape(group, weight.shape[1]), weight.shape[0] // group, axis=0)
    return per_output.reshape(*per_output.shape, *[1] * (weight.ndim - 2))


def transposed_output_factor(mul: np.ndarray, weight: np.ndarray, group: int) -> np.ndarray:
    """`mul`, one value an output channel, shaped to scale a ConvTranspose weight."""
    per_input = np.repeat(mul.reshape(group, weight.shape[1]), weight.shape[0] // group, axis=0)
    return per_input.reshape(*per_input.shape, *[1] * (weight.ndim - 2))


def conv_of_constant(weight: np.ndarray, per_channel: np.ndarray, group: int) -> np.ndarray:
    """What a Conv without padding answers, per output channel, to an input that is constant in each channel."""
    taps = np.stack([w.reshape(w.shape[0], -1).astype(np.float64).sum(axis=1) for w in weight])
    per_output = np.repeat(per_channel.astype(np.float64).reshape(group, weight.shape[1]), weight.shape[0] // group, axis=0)
    return (taps * per_output).sum(axis=1)


def row_times_matrix(row: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """`row` @ `matrix` in double precision, without a double precision copy of the matrix."""
    step = max(1, _CHUNK // max(1, matrix.shape[1]))
    result = np.zeros(matrix.shape[1])
    for start in range(0, matrix.shape[0], step):
        result += row[start : start + step].astype(np.float64) @ matrix[start : start + step].astype(np.float64)
    return result


def scaled(weight: np.ndarray, factor: np.ndarray, what: str = "the weight") -> np.ndarray:
    """`weight` * `factor` in the type of the weight.

    `factor` has the rank of the weight and broadcasts to it. Rows go through double precision a few at a time, so a
    large weight costs one copy of itself.

    Raises:
        Refuse: the product overflows, or is so small that the type no longer resolves it.
    """
    factor = np.asarray(factor, np.float64)
    result = np.empty(weight.shape, weight.dtype)
    if not result.size:
        return result
    bits, least = _TYPES[weight.dtype.name]
    unit = 2.0 ** (1 - bits)
    resolved = 2.0**least / unit  # rows that reach this lose no more than rounding does
    step = max(1, _CHUNK // max(1, weight[0].size))
    norm, error = np.zeros(weight.shape[0]), np.zeros(weight.shape[0])
    for start in range(0, weight.shape[0], step):
        rows = slice(start, start + step)
        product = weight[rows].astype(np.float64) * (factor if factor.shape[0] == 1 else factor[rows])
        result[rows] = rounded(product, weight.dtype, what)
        product = product.reshape(len(product), -1)
        norm[rows] = np.maximum(product.max(axis=1), -product.min(axis=1))
        if norm[rows].min() < resolved:
            error[rows] = np.abs(result[rows].reshape(product.shape).astype(np.float64) - product).max(axis=1)
    if (error > unit * np.maximum(norm, unit * norm.max())).any():
        raise Refuse(f"{what} would be too small for its type")
    return result


def rounded(array: np.ndarray, dtype: np.dtype, what: str) -> np.ndarray:
    """A double precision array in the type `dtype`, with denormals flushed to zero in the types whose speed they hurt.

    Raises:
        Refuse: an element is not finite, before or after.
    """
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        result = np.asarray(array, np.float64).astype(dtype)
    if not np.isfinite(result).all():
        raise Refuse(f"{what} would not be finite")
    return flushed(result)


def flushed(array: np.ndarray) -> np.ndarray:
    """`array`, which may be changed, without denormals in float32 and float64; ordinary small values elsewhere."""
    if array.dtype in (np.float32, np.float64):
        array[np.abs(array) < np.finfo(array.dtype).tiny] = 0
    return array

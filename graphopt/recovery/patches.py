"""What a linear operator multiplies its weight with, as the rows of a matrix: one row a place of its output."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from graphopt.errors import GraphoptError


class NotLinear(GraphoptError):
    """An operator, or a form of one, whose rows are not known."""


def rows_of(node: ir.Node, x: np.ndarray, weight: tuple[int, ...], chosen: np.ndarray | None, places: int) -> np.ndarray:
    """The rows [places or chosen, K] that, times the weight as a matrix [K, outputs], give the output without bias.

    Args:
        node: Conv without groups, Gemm, or MatMul with a constant right side.
        x: its input.
        weight: the shape of its weight.
        chosen: numbers of the rows to give; None: all.
        places: how many rows there are, from the output.

    Raises:
        NotLinear: another operator, or automatic padding.
    """
    if node.op_type == "MatMul":
        rows = x.reshape(-1, x.shape[-1])
    elif node.op_type == "Gemm":
        rows = x.T if node.attributes.get_int("transA", 0) else x
    elif node.op_type == "Conv":
        return _conv_rows(node, x, weight, chosen, places)
    else:
        raise NotLinear(f"{node.op_type} is not reconstructed")
    return rows if chosen is None else rows[chosen]


def as_matrix(node: ir.Node, weight: np.ndarray) -> np.ndarray:
    """A weight as a matrix [K, outputs]."""
    if node.op_type == "Conv":
        return weight.reshape(weight.shape[0], -1).T
    if node.op_type == "Gemm":
        return (weight.T if node.attributes.get_int("transB", 0) else weight) * node.attributes.get_float("alpha", 1.0)
    return weight


def from_matrix(node: ir.Node, matrix: np.ndarray, like: np.ndarray) -> np.ndarray:
    """The weight of the shape and type of `like` that stands for a matrix [K, outputs]."""
    if node.op_type == "Conv":
        made = matrix.T.reshape(like.shape)
    elif node.op_type == "Gemm":
        matrix = matrix / node.attributes.get_float("alpha", 1.0)
        made = matrix.T if node.attributes.get_int("transB", 0) else matrix
    else:
        made = matrix
    return np.ascontiguousarray(made.astype(like.dtype))


def outputs_as_rows(node: ir.Node, y: np.ndarray) -> np.ndarray:
    """The output as rows [places, outputs], in the order of `rows_of`."""
    if node.op_type == "Conv":
        return np.moveaxis(y, 1, -1).reshape(-1, y.shape[1])
    return y.reshape(-1, y.shape[-1])


def _conv_rows(node: ir.Node, x: np.ndarray, weight: tuple[int, ...], chosen: np.ndarray | None, places: int) -> np.ndarray:
    spatial = len(weight) - 2
    get = node.attributes.get_ints
    if node.attributes.get_string("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        raise NotLinear("automatic padding is not reconstructed")
    kernel = weight[2:]
    strides, dilations = get("strides", (1,) * spatial), get("dilations", (1,) * spatial)
    pads = get("pads", (0,) * (2 * spatial))
    padded = np.pad(x, [(0, 0), (0, 0), *zip(pads[:spatial], pads[spatial:], strict=True)])
    reach = tuple((k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True))
    windows = np.lib.stride_tricks.sliding_window_view(padded, reach, axis=tuple(range(2, 2 + spatial)))
    windows = windows[(slice(None), slice(None), *(slice(None, None, s) for s in strides), *(slice(None, None, d) for d in dilations))]
    windows = np.moveaxis(windows, 1, 1 + spatial)  # [n, *places, channels, *kernel], a view
    shape = windows.shape[: 1 + spatial]
    numbers = np.arange(places) if chosen is None else chosen
    return windows[np.unravel_index(numbers, shape)].reshape(len(numbers), -1)

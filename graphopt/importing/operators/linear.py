"""Products of matrices."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from graphopt.importing.operators.elementwise import in_wide
from graphopt.importing.table import operator


@operator("MatMul")
def matmul(a: Tensor, b: Tensor) -> Tensor:
    return in_wide(torch.matmul, a, b)


@operator("Gemm")
@operator("Gemm", since=7)
def gemm(
    a: Tensor,
    b: Tensor,
    c: Tensor | None = None,
    *,
    alpha: float = 1.0,
    beta: float = 1.0,
    transA: int = 0,
    transB: int = 0,
    broadcast: int = 0,
) -> Tensor:
    """A linear layer where it is one, so that torch's passes and ours know it for one."""
    a = a.t() if transA else a
    if transB and alpha == beta == 1.0 and a.dtype.is_floating_point and (c is None or c.dim() == 1):
        return functional.linear(a, b, c)
    y = in_wide(torch.matmul, a, b.t() if transB else b)
    y = _scaled(y, alpha)
    return y if c is None else y + _scaled(c, beta)


def _scaled(x: Tensor, factor: float) -> Tensor:
    if factor == 1.0:
        return x
    return x * factor if x.dtype.is_floating_point else (x * factor).to(x.dtype)


@operator("Einsum", since=12)
def einsum(*operands: Tensor, equation: str) -> Tensor:
    return torch.einsum(equation, *operands)

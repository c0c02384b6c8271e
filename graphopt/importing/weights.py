"""Constants of a model: which become parameters, which buffers, which stay numbers in the graph."""

from __future__ import annotations

import keyword
import re
from collections.abc import Iterable
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from onnx_ir.tensor_adapters import to_torch_dtype

from graphopt.importing.values import LIMIT, Host, NotImportable, host_of

#: Inputs that set how an operator works and are never weights: operator -> their places.
_SETTINGS = {
    "Resize": {1, 2, 3},
    "Upsample": {1},
    "Clip": {1, 2},
    "Pad": {1, 2, 3},
    "Dropout": {1, 2},
    "OneHot": {1, 2},
    "Pow": {1},
    "Range": {0, 1, 2},
    "STFT": {1, 2, 3},
    "NonMaxSuppression": {2, 3, 4},
    "QuantizeLinear": {1, 2},
    "DequantizeLinear": {1, 2},
    "TopK": {1},
    "Slice": {1, 2, 3, 4},
    "Reshape": {1},
    "Expand": {1},
    "Tile": {1},
}
#: Statistics of what a model was trained on, which no gradient moves.
_STATISTICS = {"BatchNormalization": {3, 4}}
#: Element types that numpy has none of its own for, and the one that their bits are read as.
_BITS = {
    ir.DataType.BFLOAT16: np.uint16,
    ir.DataType.FLOAT8E4M3FN: np.uint8,
    ir.DataType.FLOAT8E4M3FNUZ: np.uint8,
    ir.DataType.FLOAT8E5M2: np.uint8,
    ir.DataType.FLOAT8E5M2FNUZ: np.uint8,
    ir.DataType.FLOAT8E8M0: np.uint8,
}
#: Types that torch cannot compute with, and the one that holds their numbers.
_WIDENED = {ir.DataType.INT4: torch.int8, ir.DataType.UINT4: torch.uint8, ir.DataType.INT2: torch.int8, ir.DataType.UINT2: torch.uint8}


def tensor_of(tensor: ir.TensorProtocol) -> torch.Tensor:
    """A torch copy of a constant, which may be written to.

    Raises:
        NotImportable: torch has no such data type.
    """
    if tensor.dtype in _WIDENED:
        return torch.from_numpy(np.ascontiguousarray(tensor.numpy().astype(np.int8 if tensor.dtype.is_signed() else np.uint8)))
    dtype = torch_dtype(tensor.dtype)
    array = tensor.numpy()
    if tensor.dtype in _BITS:
        return torch.from_numpy(np.array(array).view(_BITS[tensor.dtype])).view(dtype).reshape(array.shape)
    return torch.from_numpy(np.array(array))


def torch_dtype(dtype: ir.DataType | None) -> torch.dtype:
    """Raises NotImportable where torch has no such type."""
    if dtype in _WIDENED:
        return _WIDENED[dtype]
    try:
        return to_torch_dtype(dtype)
    except (TypeError, ValueError, AttributeError):
        raise NotImportable(f"torch has no data type for {dtype.name.lower() if dtype is not None else 'an unknown type'}") from None


def literal_of(tensor: ir.TensorProtocol, uses: Iterable[tuple[ir.Node, int]]) -> Host | None:
    """A constant that is no weight as numbers of the graph: a float scalar or setting, a small array of integers."""
    if tensor.size > LIMIT or tensor.dtype in _BITS or tensor.dtype in _WIDENED:
        return None
    if tensor.dtype in (ir.DataType.INT64, ir.DataType.INT32, ir.DataType.BOOL):
        return host_of(tensor.numpy(), torch_dtype(tensor.dtype))
    if tensor.dtype not in (ir.DataType.FLOAT, ir.DataType.DOUBLE):
        return None
    if len(tensor.shape) and not _only(_SETTINGS, uses):
        return None
    return host_of(tensor.numpy(), torch_dtype(tensor.dtype))


def is_weight(tensor: torch.Tensor, uses: Iterable[tuple[ir.Node, int]]) -> bool:
    """Whether a constant may be tuned: floats, finite, that something computes with. A mask with -inf is none."""
    if not tensor.dtype.is_floating_point or tensor.element_size() == 1 or not bool(torch.isfinite(tensor).all()):
        return False
    uses = list(uses)
    return not _only(_SETTINGS, uses) and not _only(_STATISTICS, uses)


def _only(places: dict[str, set[int]], uses: Iterable[tuple[ir.Node, int]]) -> bool:
    """Whether something uses a constant, and all of it in the given places."""
    found = [index in places.get(node.op_type, ()) for node, index in uses]
    return bool(found) and all(found)


class Names:
    """Gives each tensor a legal name in a module: dotted names that fit become the path through nested modules."""

    def __init__(self) -> None:
        self._leaves: set[str] = set()
        self._modules: set[str] = set()

    def take(self, name: str) -> str:
        """A free name like ``name``, and its parts taken."""
        parts = [legal(part) for part in name.split(".") if part]
        path = ".".join(parts) or "tensor"
        if not self._free(path):
            path = "_".join(parts) or "tensor"
        number, candidate = 0, path
        while not self._free(candidate):
            number += 1
            candidate = f"{path}_{number}"
        self._leaves.add(candidate)
        pieces = candidate.split(".")
        self._modules.update(".".join(pieces[:i]) for i in range(1, len(pieces)))
        return candidate

    def _free(self, path: str) -> bool:
        if path in self._leaves or path in self._modules:
            return False
        pieces = path.split(".")
        if any(hasattr(torch.nn.Module, p) or p in _RESERVED for p in pieces):
            return False
        return not any(".".join(pieces[:i]) in self._leaves for i in range(1, len(pieces)))


_RESERVED = frozenset(("training", "graph", "code", "meta", "forward", *vars(torch.nn.Module()), *dir(torch.fx.GraphModule)))


def legal(name: str) -> str:
    """A part of a dotted name made of ``name``: an identifier, or a number as torch.nn.Sequential gives."""
    return name if name.isdigit() and name.isascii() else identifier(name)


def identifier(name: str) -> str:
    """An identifier made of ``name``, which is no keyword."""
    text = re.sub(r"\W", "_", name, flags=re.ASCII) or "_"
    text = f"_{text}" if text[0].isdigit() else text
    return f"{text}_" if keyword.iskeyword(text) or text == "self" else text


def put(root: torch.nn.Module, path: str, tensor: torch.Tensor, *, parameter: bool) -> None:
    """Registers a tensor under a dotted path, making the modules on the way."""
    *way, leaf = path.split(".")
    module: Any = root
    for part in way:
        if part not in module._modules:
            module.add_module(part, torch.nn.Module())
        module = module._modules[part]
    if parameter:
        module.register_parameter(leaf, torch.nn.Parameter(tensor))
    else:
        module.register_buffer(leaf, tensor)

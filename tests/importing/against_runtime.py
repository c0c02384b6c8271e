"""What tests of operator families share: a small model through the importer and through ONNX Runtime without optimizations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import torch

from graphopt.importing import to_torch
from tests.support import session


def imported(proto: onnx.ModelProto) -> torch.fx.GraphModule:
    return to_torch(ir.from_proto(proto))


def answers(module: Any, feeds: Sequence[np.ndarray]) -> list[Any]:
    found = module(*(torch.from_numpy(np.array(f)) for f in feeds))
    return list(found) if isinstance(found, tuple) else [found]


def check(proto: onnx.ModelProto, *feeds: Mapping[str, np.ndarray], rtol: float = 1e-5) -> torch.fx.GraphModule:
    """The module, after it answered all feeds as ONNX Runtime does: floats within `rtol` of the largest, others equal."""
    module, reference = imported(proto), session(proto)
    names = [i.name for i in proto.graph.input]
    for feed in feeds:
        with torch.no_grad():
            compare(reference.run(None, dict(feed)), answers(module, [feed[n] for n in names]), rtol)
    return module


def compare(wanted: Sequence[Any], got: Sequence[Any], rtol: float = 1e-5) -> None:
    assert len(wanted) == len(got)
    for want, value in zip(wanted, got, strict=True):
        assert isinstance(value, torch.Tensor)
        array = value.detach().numpy()
        assert (array.dtype, array.shape) == (want.dtype, want.shape)
        if want.dtype.kind in "fc":
            largest = float(np.abs(want[np.isfinite(want)]).max(initial=0.0))
            np.testing.assert_allclose(array, want, rtol=rtol, atol=rtol * largest)
        else:
            np.testing.assert_array_equal(array, want)


def check_exported(proto: onnx.ModelProto, feed: Mapping[str, np.ndarray], dynamic: Any = None, *more: Mapping[str, np.ndarray]) -> Any:
    """The module as a torch.export program: it answers as ONNX Runtime does, on the feeds after it as well."""
    module, reference = imported(proto), session(proto)
    names = [i.name for i in proto.graph.input]
    arguments = tuple(torch.from_numpy(np.array(feed[n])) for n in names)
    shapes = {"args": dynamic} if dynamic is not None else None
    program = torch.export.export(_Positional(module), arguments, dynamic_shapes=shapes, strict=False)
    for each in (feed, *more):
        with torch.no_grad():
            compare(reference.run(None, dict(each)), answers(program.module(), [each[n] for n in names]))
    return program


class _Positional(torch.nn.Module):
    """A module whose inputs have no names, so that dynamic shapes can be given as one tuple."""

    def __init__(self, module: torch.nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *args: torch.Tensor) -> Any:
        return self.module(*args)


def check_gradient(proto: onnx.ModelProto, *inputs: np.ndarray) -> None:
    """Gradients by the inputs, in float64, are what differences say."""
    module = imported(proto)
    tensors = tuple(torch.from_numpy(np.array(i)).requires_grad_(i.dtype == np.float64) for i in inputs)
    assert torch.autograd.gradcheck(module, tensors, atol=1e-5)
